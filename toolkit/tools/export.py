"""A run's best model at one scale, for use without the toolkit: each format checked, and a model card.

What is written is opened again and must say of real images what the run's own model says, or nothing is left behind.
"""

import contextlib
import copy
import importlib.util
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from toolkit.config.tool_settings import Export, Format
from toolkit.data.images import views
from toolkit.data.images.header import UNREADABLE
from toolkit.data.loading.batches import EvalBatchBuilder, load
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.index import Splits
from toolkit.data.sources.read import read_bytes
from toolkit.models.multiview import MultiView, ScaleNorm
from toolkit.system import files
from toolkit.system.errors import ExportError, InputError, first_line
from toolkit.tools.export_formats import FILES, NEEDS, WEIGHTS_BESIDE, WRITERS, Source, answer, difference
from toolkit.tools.loaded_run import LoadedRun, load_run
from toolkit.tools.model_card import Card, Gap, write_card
from toolkit.tools.run_data import own_splits
from toolkit.tools.timm_model import TimmModel, middle

log = logging.getLogger(__name__)

IMAGES = 32  # of the check, where there are so many
TRACED = 2  # images of the example that graphs are made from; the check uses other batches
CARD, CONFIG, CLASS_MAP = "README.md", "config.json", "class_map.json"
OURS = frozenset({*FILES.values(), WEIGHTS_BESIDE, CARD, CONFIG, CLASS_MAP})
# Of the constructor: what only training needs, and where pretrained weights came from.
DROPPED = ("drop_rate", "drop_path_rate", "pretrained_cfg", "pretrained_cfg_overlay")


@dataclass(frozen=True)
class Seen:
    """The same N images: `ours` uint8, as evaluation decodes them; the others normalized.

    `by_card` are made by the model card's lines, `by_timm` by timm's transform alone; NaN where PIL cannot read one.
    """

    ours: Tensor
    by_card: Tensor
    by_timm: Tensor


def export(flags: Export) -> Path:
    """Write what was asked for, or all that can be made; returns its folder.

    Raises InputError, and ExportError where a format cannot be made or is off, with nothing written.
    """
    folder = flags.output_dir or flags.run / "export"
    refuse_if_locked(folder, flags.overwrite)
    formats = choose(flags.formats)
    loaded = load_run(flags.run)
    model = describe(loaded, flags.scale)
    splits = own_splits(loaded, flags.data_root)
    seen = look(splits, model)
    log.info("%-11s %d px, checked on %d images of the run", "scale", model.size, len(seen.ours))
    with _staged(folder) as staging:
        differences = _write(loaded, model, seen, formats, staging, must=flags.formats is not None)
        gaps = [measure_gap(loaded, seen.ours, theirs) for theirs in (seen.by_card, seen.by_timm)]
        card = Card(loaded, splits, model, differences, len(seen.ours), *gaps)
        files.write_json(staging / CLASS_MAP, dict(enumerate(loaded.classes)))
        files.write_json(staging / CONFIG, model.config())
        files.write_text(staging / CARD, write_card(card))
    return folder


def _write(
    loaded: LoadedRun, model: TimmModel, seen: Seen, formats: Sequence[Format], folder: Path, *, must: bool
) -> dict[Format, float]:
    """Write and check each format; the largest differences of a logit. One that cannot be made is left out or, if it
    `must` be there, raises ExportError."""
    pixels = views.normalize(seen.ours, loaded.mean, loaded.std)
    expected = answer(lambda batch: loaded.model(batch)[0], pixels)
    plain = model.create()
    plain.load_state_dict(one_scale(loaded.model, model.size).state_dict())
    source, differences = Source(model, plain, pixels[:TRACED]), {}
    for name in formats:
        path = folder / FILES[name]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what exporters say of their own parts
                say = WRITERS[name](source, path)
        except OSError:
            raise
        except Exception as error:  # exporters raise whatever they run into
            reason = first_line(error)
            if must or name == "safetensors":
                raise ExportError(f"{name}: {model.arch} cannot be written: {reason}") from error
            path.unlink(missing_ok=True)
            log.warning("%-11s left out: %s cannot be written: %s", name, model.arch, reason)
            continue
        differences[name] = difference(name, answer(say, pixels), expected)
        log.info("%-11s %s, its logits differ by %.2g at most", name, path.name, differences[name])
    return differences


def refuse_if_locked(folder: Path, overwrite: bool) -> None:
    """Raises InputError unless the folder is new or empty, or holds an export and nothing else, to be replaced."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output-dir {folder}: not a folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and not {CARD, CONFIG} <= names <= OURS:  # a run's best/ holds a file of the same name
        strange = ", ".join(sorted(names - OURS or names)[:3])
        raise InputError(f"--output-dir {folder}: the folder holds other files ({strange}); give an empty or a new one")
    if names and not overwrite:
        raise InputError(f"{folder} holds an export already: --overwrite replaces it, --output-dir names another place")


def choose(asked: Sequence[Format] | None) -> list[Format]:
    """The formats to write; raises InputError where one that was asked for needs a package that is not there."""
    chosen: list[Format] = []
    for name in dict.fromkeys(asked or get_args(Format)):
        missing = [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
        if not missing:
            chosen.append(name)
            continue
        line = f"{name} needs {', '.join(missing)}: pip install -e '.[{name}]'"
        if asked:
            raise InputError(f"--formats {line}")
        log.warning("%-11s left out: %s", name, line)
    return chosen


def describe(loaded: LoadedRun, scale: int | None) -> TimmModel:
    """The timm model that is exported; raises InputError on a size that the run never measured."""
    size = scale or loaded.strategy.selection().sizes[-1]
    known = sorted({*loaded.sizes, *loaded.strategy.norm().scales})
    if size not in known:
        raise InputError(f"--scale {size}: this run's sizes are {', '.join(map(str, known))} px: choose one of them")
    network: Any = loaded.model.model
    data = resolve_model_data_config(network)
    arguments = {name: value for name, value in loaded.arguments.items() if name not in DROPPED}
    return TimmModel(
        arch=loaded.settings.arch,
        arguments=arguments,
        size=size,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        classes=loaded.classes,
        known=dict(network.pretrained_cfg),
    )


def one_scale(model: MultiView, size: int) -> nn.Module:
    """A copy of the network with the normalization that serves `size` px alone: its names are timm's own."""
    network, scale = copy.deepcopy(model.model), str(model.policy.scale_for(size))
    for name, module in [*network.named_modules()]:
        if isinstance(module, ScaleNorm):
            network.set_submodule(name, module.norms[scale])
    return network


def look(splits: Splits, model: TimmModel) -> Seen:
    """Some images of all classes: validation's, and where they are few the others'; raises InputError if there is none.

    They stand in the order of classes as a rule, so every k-th is taken.
    """
    ours: list[Tensor] = []
    theirs: list[tuple[Tensor, Tensor]] = []
    transform = model.transform()
    for index in (splits.val, splits.test, splits.train):
        count = min(IMAGES - len(theirs), 0 if index is None else len(index))
        if index is None or not count:
            continue
        ids = np.linspace(0, len(index) - 1, count).astype(np.int64)
        batch = load(EvalBatchBuilder(ImageReader(index), (model.size,), leave_out=True), ids)
        ours.append(batch.images[model.size])
        theirs += [_by_pil(read_bytes(index, i), transform, model.size) for i in batch.ids.tolist()]
    if not theirs:
        raise InputError(f"{splits.source}: no image can be read, so nothing can be checked")
    by_card, by_timm = (torch.stack(tensors) for tensors in zip(*theirs, strict=True))
    return Seen(torch.cat(ours), by_card, by_timm)


def _by_pil(content: bytes, transform: Any, size: int) -> tuple[Tensor, Tensor]:
    """3 x S x S as the model card makes it, and as timm does; NaN where PIL cannot read the image."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            with Image.open(io.BytesIO(content)) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
        except UNREADABLE:
            nothing = torch.full((3, size, size), torch.nan)
            return nothing, nothing
    return transform(middle(image)), transform(image)


def measure_gap(loaded: LoadedRun, ours: Tensor, theirs: Tensor) -> Gap:
    """How far another preprocessing is from evaluation's, on images that both can read; `ours` uint8."""
    there = ~theirs.isnan().any(dim=(1, 2, 3))
    theirs, ours = theirs[there], views.normalize(ours[there], loaded.mean, loaded.std)
    levels = 255 * (theirs - ours).abs() * loaded.std[:, None, None]
    by_theirs, by_ours = (answer(lambda batch: loaded.model(batch)[0], x).softmax(1) for x in (theirs, ours))
    return Gap(
        images=len(theirs),
        mean_levels=float(levels.mean()),
        most_levels=float(levels.max()),
        same=int((by_theirs.argmax(1) == by_ours.argmax(1)).sum()),
        probability=float((by_theirs - by_ours).abs().max()),
    )


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` at the end of the block; where that raises, it goes."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        around = tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent)
    except OSError as error:
        raise InputError(f"--output-dir {folder}: {error.filename}: {error.strerror}") from None
    with around as place:
        new = Path(place) / "new"
        new.mkdir()
        yield new
        if folder.exists():
            os.replace(folder, Path(place) / "former")
        os.replace(new, folder)
