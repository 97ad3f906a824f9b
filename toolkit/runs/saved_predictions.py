"""Per-image predictions of the best model, as a CSV file with thumbnails of the hardest images.

People, reports and dashboards read them.
"""

import csv
import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toolkit.data.loading.python_data import read_few
from toolkit.data.loading.reader import ImageReader
from toolkit.models.metrics import PredictionTable
from toolkit.runs import class_values
from toolkit.system import files
from toolkit.system.errors import InputError, LoaderError, expected

log = logging.getLogger(__name__)

HARDEST = 24
THUMBNAIL_PX = 128
FORMER = {"said": "predicted", "truth": "p_label", "sure": "confidence"}  # columns of earlier versions -> current names


@dataclass(frozen=True)
class SavedPredictions:
    """Predictions read from a run's folder: N image names, their table, and thumbnails of the hardest images.

    `hardest` maps an index into `names` to a JPEG of at most 128 px, worst first.
    """

    names: tuple[str, ...]
    table: PredictionTable
    hardest: dict[int, Path]


def keep(folder: Path, split: str, table: PredictionTable, images: ImageReader) -> None:
    """Call `write`, and log a warning if it fails: the run's metrics are already known."""
    try:
        write(folder, split, table, images)
    except (OSError, LoaderError) as error:
        log.warning("%s: predictions of %s images could not be written: %s", folder, split, expected(error))


def write(folder: Path, split: str, table: PredictionTable, images: ImageReader) -> None:
    """Write SPLIT.csv, one row per image with name, label and the task's columns of each eval spec, and
    SPLIT-hardest/ID.jpg.

    Classes are keys of class_map.json; -1 in the first column marks an unreadable image. A row of several labels is
    joined by "|".
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    columns = [f"{spec}/{column}" for spec in table.specs for column in table.columns]
    writer.writerow(["name", "label", *columns])
    for i, label in enumerate(table.labels.tolist()):
        cells = [_cell(value) for row in table.values[:, :, i].tolist() for value in row]
        writer.writerow([images.index.names[i], _label(label), *cells])
    thumbnails = folder / f"{split}-hardest"
    thumbnails.mkdir(parents=True, exist_ok=True)
    for old in thumbnails.glob("*.jpg"):
        old.unlink()
    hardest = table.hardest(HARDEST).tolist()
    for i, pixels in zip(hardest, read_few(images, hardest), strict=True):
        if pixels is None:  # it became unreadable after the evaluation
            continue
        image = Image.fromarray(pixels)
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        image.save(thumbnails / f"{i:09d}.jpg", quality=85)
    files.write_text(folder / f"{split}.csv", text.getvalue())


def _cell(value: float) -> int | str:
    return int(value) if math.isfinite(value) and value == int(value) else f"{value:.6g}"


def _label(label: Any) -> Any:
    return "|".join(map(str, label)) if isinstance(label, list) else label


def clear(folder: Path) -> None:
    """Remove the files that `write` wrote to the folder, for all splits."""
    for thumbnails in folder.glob("*-hardest"):
        for image in thumbnails.glob("*.jpg"):
            image.unlink()
        split = thumbnails.name.removesuffix("-hardest")
        (folder / f"{split}.csv").unlink(missing_ok=True)
        class_values.remove(folder, split)


def read(folder: Path, split: str) -> SavedPredictions | None:
    """Read what `write` wrote; None if there is no file yet. Raises InputError on a file that `write` did not write."""
    path = folder / f"{split}.csv"
    if not path.exists():
        return None
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *rows = csv.reader(file)
        named = [column.partition("/") for column in header[2:]]  # a class may have a slash in its name
        specs = tuple(dict.fromkeys(spec for spec, _, _ in named))
        columns = tuple(FORMER.get(column, column) for spec, _, column in named if spec == specs[0])
        values = np.array([row[2:] for row in rows], dtype=np.float64).reshape(len(rows), len(specs), len(columns))
        labels = np.array([[float(part) for part in row[1].split("|")] for row in rows])
        single = labels.shape[1] == 1
        table = PredictionTable(
            specs, labels[:, 0].astype(np.int64) if single else labels, columns, values.transpose(1, 2, 0)
        )
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: not what a run writes: {error}") from None
    found = {int(file.stem): file for file in (folder / f"{split}-hardest").glob("*.jpg")}
    order = [i for i in table.hardest(HARDEST).tolist() if i in found]
    return SavedPredictions(tuple(row[0] for row in rows), table, {i: found[i] for i in order})
