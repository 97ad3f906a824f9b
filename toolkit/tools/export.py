"""Export a run's best model at one scale, for use without the toolkit, with a model card.

Each file is loaded back and must reproduce the logits of the run's model on real images; otherwise nothing is written.
"""

import contextlib
import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from toolkit.config.choices import Format
from toolkit.data.images import views
from toolkit.models.portable import PortableModel
from toolkit.models.source import Model
from toolkit.system import files, storage
from toolkit.system.errors import ExportError, InputError, first_line
from toolkit.system.system_files import is_system
from toolkit.tools.export_formats import FILES, NEEDS, WEIGHTS_BESIDE, WRITERS, Source, answer, difference
from toolkit.tools.export_images import measure_gap, read_check_images
from toolkit.tools.export_model import describe, one_scale
from toolkit.tools.loaded_run import LoadedRun, load_run
from toolkit.tools.model_card import Card, Gap, write_card
from toolkit.tools.run_data import own_splits

log = logging.getLogger(__name__)

TRACED = 2  # images in the example batch for tracing; the check uses other batch sizes
CARD, CONFIG, CLASS_MAP = "README.md", "config.json", "class_map.json"
OURS = frozenset({*FILES.values(), WEIGHTS_BESIDE, CARD, CONFIG, CLASS_MAP})


@dataclass(frozen=True)
class ExportReport:
    """`differences`: largest absolute logit difference by format, over `checked` images at `size` px.

    `by_card`, `by_library`: gap of the model card's preprocessing, and of a library's transform alone, to evaluation's.
    """

    folder: Path
    size: int
    checked: int
    differences: dict[Format, float]
    by_card: Gap
    by_library: Gap


def export(
    run: Path,
    *,
    scale: int | None = None,
    formats: Sequence[Format] | None = None,
    data_root: str | None = None,
    output_dir: Path | None = None,
    overwrite: bool = False,
    model: Model | None = None,
    data: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write the run's best model to `output_dir`. The flags of `toolkit export` describe the arguments.

    `model`: as in `train`, for a run that was trained with a model of the user's own. `data`: the data sets that were
    passed to `train`, in place of `data_root`. Raises InputError, and ExportError if a format cannot be made or its
    logits differ; then nothing is written.
    """
    folder = run / "export" if output_dir is None else output_dir
    refuse_existing_export(folder, overwrite)
    chosen = choose(formats)
    loaded = load_run(run, model=model)
    exported = describe(loaded, scale)
    splits = own_splits(loaded, data_root, data)
    images = read_check_images(splits, exported)
    log.info("%-11s %d px, checked on %d images of the run", "scale", exported.size, len(images.ours))
    with _staged(folder) as staging:
        differences = _write(loaded, exported, images.ours, chosen, staging, must=formats is not None)
        by_card, by_library = (
            measure_gap(loaded, images.ours, theirs) for theirs in (images.by_card, images.by_library)
        )
        card = Card(loaded, splits, exported, differences, len(images.ours), by_card, by_library)
        files.write_json(staging / CLASS_MAP, dict(enumerate(loaded.classes)))
        files.write_json(staging / CONFIG, exported.config())
        files.write_text(staging / CARD, write_card(card))
    log.info("%-11s %s: %s", "wrote", folder, ", ".join(sorted(path.name for path in folder.iterdir())))
    return ExportReport(folder, exported.size, len(images.ours), differences, by_card, by_library)


def _write(
    loaded: LoadedRun, model: PortableModel, ours: Tensor, formats: Sequence[Format], folder: Path, *, must: bool
) -> dict[Format, float]:
    """Write and check each format; return its largest logit difference. `ours`: N x 3 x S x S uint8, as in evaluation.

    A format that cannot be made is left out; with `must`, or for safetensors, it raises ExportError.
    """
    pixels = views.normalize(ours, loaded.mean, loaded.std)
    expected = answer(lambda batch: loaded.model(batch)[0], pixels)
    plain = model.create()
    plain.load_state_dict(one_scale(loaded.model, model.size).state_dict())
    source, differences = Source(model, plain, pixels[:TRACED]), {}
    for name in formats:
        path = folder / FILES[name]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # exporters warn about their own internals
                say = WRITERS[name](source, path)
        except OSError:
            raise
        except Exception as error:  # exporters raise any type of exception
            reason = first_line(error)
            if must or name == "safetensors":
                raise ExportError(f"{name}: {model.name} cannot be written: {reason}") from error
            path.unlink(missing_ok=True)
            log.warning("%-11s left out: %s cannot be written: %s", name, model.name, reason)
            continue
        differences[name] = difference(name, answer(say, pixels), expected)
        log.info("%-11s %s, its logits differ by %.2g at most", name, path.name, differences[name])
    return differences


def refuse_existing_export(folder: Path, overwrite: bool) -> None:
    """Raise InputError unless the folder is new or empty, or holds only an export and `overwrite` is set."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output-dir {folder}: not a folder")
    names = {path.name for path in folder.iterdir() if not is_system(path.name)} if folder.is_dir() else set()
    if names and not {CARD, CONFIG} <= names <= OURS:  # a run's best/ also holds model.safetensors
        strange = ", ".join(sorted(names - OURS or names)[:3])
        raise InputError(f"--output-dir {folder}: the folder holds other files ({strange}); give an empty or a new one")
    if names and not overwrite:
        raise InputError(f"{folder} holds an export already: --overwrite replaces it, --output-dir names another place")


def choose(names: Sequence[Format] | None) -> list[Format]:
    """The formats to write, None: all that can be made. Raises InputError if a named format needs a missing package."""
    chosen: list[Format] = []
    for name in dict.fromkeys(names or get_args(Format)):
        missing = [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
        if not missing:
            chosen.append(name)
            continue
        line = f"{name} needs {', '.join(missing)}: pip install -e '.[{name}]'"
        if names:
            raise InputError(f"--formats {line}")
        log.warning("%-11s left out: %s", name, line)
    return chosen


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` when the block ends; if the block raises, it is deleted."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        around = tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent)
    except OSError as error:
        raise InputError(f"--output-dir {folder}: {storage.line(error, folder)}") from None
    with around as place:
        files.try_folder(Path(place), folder)
        new = Path(place) / "new"
        new.mkdir()
        yield new
        if folder.exists():
            os.replace(folder, Path(place) / "former")
        os.replace(new, folder)
