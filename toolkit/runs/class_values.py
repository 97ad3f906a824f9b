"""What the best model reaches on each class, as a CSV file beside the predictions of a split."""

import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from toolkit.models.evaluation import ByClass
from toolkit.system import files
from toolkit.system.errors import InputError, expected

log = logging.getLogger(__name__)


def keep(folder: Path, split: str, by_class: Mapping[str, ByClass], classes: Sequence[str]) -> None:
    """Call `write`, and log a warning if it fails: the run's metrics are already known."""
    try:
        write(folder, split, by_class, classes)
    except OSError as error:
        log.warning("%s: values of the classes of %s could not be written: %s", folder, split, expected(error))


def write(folder: Path, split: str, by_class: Mapping[str, ByClass], classes: Sequence[str]) -> None:
    """Write classes/SPLIT.csv, a row per class: its name, its images, and its values at each eval spec by name.

    A cell is empty where a class has no such value. Nothing is written if the task tells nothing of classes.
    """
    if not by_class:
        return
    images = next(iter(by_class.values())).images
    columns = {f"{spec}/{name}": values for spec, of in by_class.items() for name, values in of.values.items()}
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["class", "images", *columns])
    for label, name in enumerate(classes):
        cells = [float(values[label]) for values in columns.values()]
        writer.writerow(
            [name, int(images[label]), *(f"{value:.6f}" if math.isfinite(value) else "" for value in cells)]
        )
    path = _path(folder, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text.getvalue())


def read(folder: Path, split: str) -> dict[str, ByClass]:
    """What `write` wrote, by eval spec; empty if there is no file. Raises InputError on another file."""
    path = _path(folder, split)
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *rows = csv.reader(file)
        images = np.array([int(row[1]) for row in rows])
        found: dict[str, dict[str, np.ndarray]] = {}
        for i, column in enumerate(header[2:], 2):
            spec, _, name = column.partition("/")
            found.setdefault(spec, {})[name] = np.array([float(row[i] or "nan") for row in rows])
        return {spec: ByClass(images, values) for spec, values in found.items()}
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: not what a run writes: {error}") from None


def remove(folder: Path, split: str) -> None:
    _path(folder, split).unlink(missing_ok=True)


def _path(folder: Path, split: str) -> Path:
    return folder / "classes" / f"{split}.csv"
