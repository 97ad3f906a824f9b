"""Images of the run to check an export on, and the gap between other preprocessing and evaluation's."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from toolkit.config.choices import GrayRange
from toolkit.data.images import views
from toolkit.data.images.gray import AS_STORED, is_deep, to_bytes
from toolkit.data.images.header import UNREADABLE, silence_libraries
from toolkit.data.loading.batches import EvalBatchBuilder
from toolkit.data.loading.python_data import PATIENCE_S, read_few
from toolkit.data.loading.reader import ImageReader
from toolkit.data.loading.workers import by_need
from toolkit.data.sources.index import Index, Splits
from toolkit.data.sources.read import read_bytes
from toolkit.models.portable import PortableModel, middle
from toolkit.system.errors import InputError
from toolkit.tools.export_formats import answer
from toolkit.tools.loaded_run import LoadedRun
from toolkit.tools.model_card import Gap

IMAGES = 32  # images in the check, if there are as many


@dataclass(frozen=True)
class CheckImages:
    """The same images three times, each N x 3 x S x S: `ours` uint8, as evaluation decodes them; the others normalized.

    `by_card`: from the model card's code; `by_library`: from a library's transform alone. NaN if PIL cannot read it.
    """

    ours: Tensor
    by_card: Tensor
    by_library: Tensor


def read_check_images(splits: Splits, model: PortableModel) -> CheckImages:
    """Read images of val, and if these are too few, of test and train; raises InputError if none can be read.

    Images are usually sorted by class, so evenly spaced ones cover all classes.
    """
    ours: list[Tensor] = []
    theirs: list[tuple[Tensor, Tensor]] = []
    transform = model.transform()
    for index in (splits.val, splits.test, splits.train):
        count = min(IMAGES - len(theirs), 0 if index is None else len(index))
        if index is None or not count:
            continue
        ids = np.linspace(0, len(index) - 1, count).astype(np.int64)
        builder, workers = EvalBatchBuilder(ImageReader(index), (model.size,), leave_out=True), int(bool(index.items))
        (batch,) = by_need(index)([ids], builder, workers, PATIENCE_S)
        ours.append(batch.images[model.size])
        theirs += [_by_pil(file, transform, model.size, index.gray) for file in _files(index, batch.ids.tolist())]
    if not theirs:
        raise InputError(f"{splits.source}: no image can be read, so nothing can be checked")
    by_card, by_library = (torch.stack(tensors) for tensors in zip(*theirs, strict=True))
    return CheckImages(torch.cat(ours), by_card, by_library)


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


def _by_pil(content: bytes, transform: Any, size: int, gray: GrayRange) -> tuple[Tensor, Tensor]:
    """3 x S x S by the model card's code, and by a library's transform alone; NaN if PIL cannot read the image."""
    silence_libraries()
    try:
        with Image.open(io.BytesIO(content)) as file:
            stored = ImageOps.exif_transpose(file)
            mapped = is_deep(stored.mode) and gray != AS_STORED  # as `mapping_code` on the card does
            by_card = Image.fromarray(to_bytes(stored, gray)) if mapped else stored
            image, by_card = stored.convert("RGB"), by_card.convert("RGB")
    except UNREADABLE:
        nothing = torch.full((3, size, size), torch.nan)
        return nothing, nothing
    return transform(middle(by_card)), transform(image)


def measure_gap(loaded: LoadedRun, ours: Tensor, theirs: Tensor) -> Gap:
    """Gap between other preprocessing (`theirs`) and evaluation's (`ours`, uint8), on images that both can read."""
    there = ~theirs.isnan().any(dim=(1, 2, 3))
    theirs, ours = theirs[there], views.normalize(ours[there], loaded.mean, loaded.std)
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
