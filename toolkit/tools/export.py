"""Export a run's best model at one scale, for use without the toolkit, with its preprocessing and a model card.

Each file is loaded back and must reproduce the logits of the run's model on real images; one that does not is removed.
"""

import contextlib
import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from toolkit.config.arguments import checked
from toolkit.config.choices import TOLERANCE, Format, OnnxInput
from toolkit.data.images import preprocess, views
from toolkit.data.images.preprocess import Preprocess
from toolkit.models.portable import PortableModel
from toolkit.models.source import Model
from toolkit.runs.mirror.copies import find_run, results_folder
from toolkit.system import files, storage
from toolkit.system.errors import ExportError, InputError, first_line
from toolkit.system.places import expanded
from toolkit.system.result import Result
from toolkit.system.system_files import is_system
from toolkit.tools.card_code import Card, Gap
from toolkit.tools.export_check import Difference, answer, compare
from toolkit.tools.export_formats import FILES, NEEDS, WEIGHTS_BESIDE, Source, Writer, writers
from toolkit.tools.export_images import CheckImages, measure_gap, read_check_images
from toolkit.tools.export_model import describe, one_scale
from toolkit.tools.loaded_run import LoadedRun, load_run
from toolkit.tools.model_card import write_card
from toolkit.tools.run_data import own_splits

log = logging.getLogger(__name__)

CARD, CONFIG, CLASS_MAP, PREPROCESS = "README.md", "config.json", "class_map.json", "preprocess.py"
OURS = frozenset({*FILES.values(), WEIGHTS_BESIDE, CARD, CONFIG, CLASS_MAP, PREPROCESS})


@dataclass(frozen=True, repr=False)
class ExportReport(Result):
    """`differences`: largest absolute logit difference by format, over `checked` images at `size` px.

    `failed`: why a format is not there. `by_card`, `by_library`: gap of preprocess.py, and of a library's transform
    alone, to evaluation's.
    """

    folder: Path
    size: int
    checked: int
    differences: dict[Format, float]
    by_card: Gap
    by_library: Gap
    failed: dict[Format, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        passed = [f"{name:11} logits differ by {most:.2g} at most" for name, most in self.differences.items()]
        failed = [f"{name:11} left out: {reason}" for name, reason in self.failed.items()]
        return "\n".join([f"{'export':11} {self.folder}: {self.size} px, {self.checked} images", *passed, *failed])


@dataclass(frozen=True)
class Written:
    """The formats that were written and passed the check, and why the others did not."""

    passed: dict[Format, Difference] = field(default_factory=dict)
    failed: dict[Format, str] = field(default_factory=dict)

    def reasons(self, formats: Collection[Format]) -> str:
        """Why these formats failed, as one line; empty if they passed."""
        return "; ".join(f"{name}: {reason}" for name, reason in self.failed.items() if name in formats)


@checked("Export")
def export(
    run: str | Path,
    *,
    scale: int | None = None,
    formats: Sequence[Format] | None = None,
    onnx_input: OnnxInput = "float32",
    tolerance: float = TOLERANCE,
    data_root: str | None = None,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    model: Model | None = None,
    data: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write the run's best model to `output_dir`. The flags of `toolkit export` describe the arguments.

    `model`: as in `train`, for a run that was trained with a model of the user's own. `data`: the data sets that were
    passed to `train`, in place of `data_root`. Raises InputError, and ExportError if a format in `formats`, or
    safetensors, cannot be made or its logits differ; the formats that passed are written before.
    """
    directory = find_run(run)
    folder = results_folder(run, directory, "export") if output_dir is None else expanded(output_dir)
    refuse_existing_export(folder, overwrite)
    chosen = {name: writers(onnx_input)[name] for name in choose(formats, onnx_input)}
    loaded = load_run(directory, model=model)
    exported = describe(loaded, scale)
    splits = own_splits(loaded, data_root, data)
    prepare = Preprocess(exported.size, exported.mean, exported.std, loaded.settings.range, exported.fit)
    images = read_check_images(splits, exported, prepare)
    checked = len(images.files)
    log.info("%-11s %d px, checked on %d images of the run", "scale", exported.size, checked)
    with _staged(folder) as staging:
        written = _write(loaded, exported, images, chosen, staging, tolerance)
        if not written.passed:
            raise ExportError(f"nothing was written: {written.reasons(written.failed)}")
        by_card, by_library = (
            measure_gap(loaded, images.ours, theirs) for theirs in (images.by_card, images.by_library)
        )
        card = Card(loaded, splits, exported, written.passed, tolerance, onnx_input, by_card, by_library)
        files.write_text(staging / PREPROCESS, Path(preprocess.__file__).read_text(encoding="utf-8"))
        files.write_json(staging / CLASS_MAP, dict(enumerate(loaded.classes)))
        config = {**exported.config(), "preprocess": asdict(prepare), **loaded.task.exported(loaded.classes)}
        files.write_json(staging / CONFIG, config)
        files.write_text(staging / CARD, write_card(card))
    log.info("%-11s %s: %s", "wrote", folder, ", ".join(sorted(path.name for path in folder.iterdir())))
    required = {*(formats or ()), "safetensors"}
    for name in written.failed.keys() - required:
        log.warning("%-11s left out: %s", name, written.failed[name])
    if reasons := written.reasons(required):
        raise ExportError(f"{reasons}; written to {folder}: {', '.join(written.passed)}")
    differences = {name: found.largest for name, found in written.passed.items()}
    return ExportReport(folder, exported.size, checked, differences, by_card, by_library, written.failed)


def _write(
    loaded: LoadedRun,
    model: PortableModel,
    images: CheckImages,
    chosen: Mapping[Format, Writer],
    folder: Path,
    tolerance: float,
) -> Written:
    """Write each format and compare its logits with those of the run's model; one that fails leaves no file."""
    pixels = views.normalize(images.ours, loaded.mean, loaded.std)
    expected = answer(lambda batch: loaded.model(batch)[0], pixels)
    plain = model.create()
    plain.load_state_dict(one_scale(loaded.model, model.size).state_dict())
    source, written = Source(model, plain, pixels, images.whole), Written()
    for name, write in chosen.items():
        path = folder / FILES[name]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # exporters warn about their own internals
                found = compare(write(source, path), expected)
        except OSError:
            raise
        except Exception as error:  # exporters raise any type of exception
            written.failed[name] = f"{model.name} cannot be written: {first_line(error)}"
        else:
            if found.within(tolerance):
                written.passed[name] = found
                log.info("%-11s %s: %s", name, path.name, found)
                continue
            written.failed[name] = f"refused: {found}; --tolerance allows {tolerance:g} x, and no other top-1"
        for made in (path, Path(f"{path}.data")):
            made.unlink(missing_ok=True)
    return written


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


def choose(names: Sequence[Format] | None, onnx_input: OnnxInput = "float32") -> list[Format]:
    """The formats to write, None: all that can be made. Raises InputError if a named format needs a missing package."""
    asked = {*(names or ()), *(["onnx"] if onnx_input == "uint8" else [])}
    if names and not asked <= {*names}:
        raise InputError(f"--onnx-input {onnx_input} would be ignored: --formats {','.join(names)} has no onnx")
    chosen: list[Format] = []
    for name in dict.fromkeys(names or get_args(Format)):
        missing = [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
        if not missing:
            chosen.append(name)
            continue
        line = f"{name} needs {', '.join(missing)}: pip install -e '.[{name}]'"
        if name in asked:
            raise InputError(f"--formats {line}" if names else f"--onnx-input {onnx_input}: {line}")
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
