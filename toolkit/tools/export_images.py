"""Images of the run to check an export on, and the gap between other preprocessing and evaluation's."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from toolkit.data.images import views
from toolkit.data.images.header import silence_libraries
from toolkit.data.images.preprocess import UNREADABLE, Preprocess, read
from toolkit.data.loading.batches import EvalBatchBuilder
from toolkit.data.loading.python_data import PATIENCE_S, read_few
from toolkit.data.loading.reader import ImageReader
from toolkit.data.loading.workers import by_need
from toolkit.data.sources.index import Index, Splits
from toolkit.data.sources.read import read_bytes
from toolkit.models.portable import PortableModel
from toolkit.system.errors import InputError
from toolkit.tools.card_code import Gap
from toolkit.tools.export_check import answer
from toolkit.tools.loaded_run import LoadedRun

IMAGES = 32  # in the check, if there are as many


@dataclass(frozen=True)
class CheckImages:
    """The same images several times, each N x 3 x S x S: `ours` uint8, as evaluation decodes them; others normalized.

    `files`: their content. `by_card`: from preprocess.py; `by_library`: from a library's transform alone.
    """

    files: list[bytes]
    gray: str
    ours: Tensor
    by_card: Tensor
    by_library: Tensor

    def whole(self) -> Iterator[Tensor]:
        """Each image before the crop, H x W x 3 uint8, upright."""
        for file in self.files:
            yield torch.from_numpy(np.ascontiguousarray(read(file, self.gray)))


def read_check_images(splits: Splits, model: PortableModel, prepare: Preprocess) -> CheckImages:
    """Read images of val, and if these are too few, of test and train; raises InputError if none can be read.

    Images are usually sorted by class, so evenly spaced ones cover all classes.
    """
    found: list[tuple[bytes, Tensor, Tensor, Tensor]] = []
    transform = model.transform()
    for index in (splits.val, splits.test, splits.train):
        count = min(IMAGES - len(found), 0 if index is None else len(index))
        if index is None or not count:
            continue
        ids = np.linspace(0, len(index) - 1, count).astype(np.int64)
        builder, workers = EvalBatchBuilder(ImageReader(index), (model.size,), leave_out=True), int(bool(index.items))
        (batch,) = by_need(index)([ids], builder, workers, PATIENCE_S)
        for file, ours in zip(_files(index, batch.ids.tolist()), batch.images[model.size], strict=True):
            found += [(file, ours, *others) for others in _others(file, prepare, transform)]
    if not found:
        raise InputError(f"{splits.source}: no image can be read, so nothing can be checked")
    files, *tensors = zip(*found, strict=True)
    return CheckImages([*files], prepare.gray, *(torch.stack(images) for images in tensors))


def _files(index: Index, ids: Sequence[int]) -> Iterator[bytes]:
    """The content of each image's file; of a data set passed from Python, a file of its pixels."""
    if index.items is None:
        yield from (read_bytes(index, i) for i in ids)
        return
    for pixels in read_few(ImageReader(index), ids):
        file = io.BytesIO()
        if pixels is not None:
            Image.fromarray(pixels).save(file, "PNG")
        yield file.getvalue()


def _others(content: bytes, prepare: Preprocess, transform: Any) -> list[tuple[Tensor, Tensor]]:
    """3 x S x S by preprocess.py, and by a library's transform alone; nothing if PIL cannot read the image."""
    silence_libraries()
    try:
        by_card = torch.from_numpy(prepare(content)[0])
        with Image.open(io.BytesIO(content)) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except UNREADABLE:
        return []
    return [(by_card, transform(image))]


def measure_gap(loaded: LoadedRun, ours: Tensor, theirs: Tensor) -> Gap:
    """Gap between other preprocessing (`theirs`, normalized) and evaluation's (`ours`, uint8)."""
    ours = views.normalize(ours, loaded.mean, loaded.std)
    levels = 255 * (theirs - ours).abs() * loaded.std[:, None, None]
    task = loaded.bound_task
    logits = (answer(lambda batch: loaded.model(batch)[0], x) for x in (theirs, ours))
    by_theirs, by_ours = (task.probabilities(task.average([x])).numpy() for x in logits)
    answers = [[loaded.task.answer(row, loaded.classes) for row in rows] for rows in (by_theirs, by_ours)]
    return Gap(
        images=len(theirs),
        mean_levels=float(levels.mean()),
        most_levels=float(levels.max()),
        same=sum(first == second for first, second in zip(*answers, strict=True)),
        probability=float(np.abs(by_theirs - by_ours).max()),
    )
