"""Per-image predictions of the best model, as a CSV file with thumbnails of the hardest images.

People, reports and dashboards read them.
"""

import csv
import io
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from toolkit.data.loading.reader import ImageReader
from toolkit.models.metrics import PredictionTable
from toolkit.system import files
from toolkit.system.errors import BadSampleError, InputError, LoaderError

log = logging.getLogger(__name__)

HARDEST = 24
THUMBNAIL_PX = 128
COLUMNS = ("predicted", "confidence", "p_label")  # per eval spec; read by position: earlier versions used other names


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
        log.warning("%s: predictions of %s images could not be written: %s", folder, split, error)


def write(folder: Path, split: str, table: PredictionTable, images: ImageReader) -> None:
    """Write SPLIT.csv, one row per image with name, label and COLUMNS of each eval spec, and SPLIT-hardest/ID.jpg.

    Classes are keys of class_map.json; -1 marks an unreadable image.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    columns = [f"{spec}/{column}" for spec in table.specs for column in COLUMNS]
    writer.writerow(["name", "label", *columns])
    parts = np.stack([table.predicted, table.confidence, table.p_label], axis=1)  # S x 3 x N
    for i, label in enumerate(table.labels.tolist()):
        cells = [(int(predicted), f"{p:.6g}", f"{p_label:.6g}") for predicted, p, p_label in parts[:, :, i].tolist()]
        writer.writerow([images.index.names[i], label, *(cell for row in cells for cell in row)])
    thumbnails = folder / f"{split}-hardest"
    thumbnails.mkdir(parents=True, exist_ok=True)
    for old in thumbnails.glob("*.jpg"):
        old.unlink()
    for i in table.hardest(HARDEST).tolist():
        try:
            image = Image.fromarray(images.whole(i))
        except BadSampleError:  # it became unreadable after the evaluation
            continue
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        image.save(thumbnails / f"{i:09d}.jpg", quality=85)
    files.write_text(folder / f"{split}.csv", text.getvalue())


def clear(folder: Path) -> None:
    """Remove the files that `write` wrote to the folder, for all splits."""
    for thumbnails in folder.glob("*-hardest"):
        for image in thumbnails.glob("*.jpg"):
            image.unlink()
        (folder / f"{thumbnails.name.removesuffix('-hardest')}.csv").unlink(missing_ok=True)


def read(folder: Path, split: str) -> SavedPredictions | None:
    """Read what `write` wrote; None if there is no file yet. Raises InputError on a file that `write` did not write."""
    path = folder / f"{split}.csv"
    if not path.exists():
        return None
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *rows = csv.reader(file)
        specs = tuple(column.rpartition("/")[0] for column in header[2::3])
        cells = np.array([row[1:] for row in rows], dtype=np.float64).reshape(len(rows), -1).T  # 1 + 3 S x N
        predicted, confidence, p_label = cells[1::3].astype(np.int64), cells[2::3], cells[3::3]
        table = PredictionTable(specs, cells[0].astype(np.int64), predicted, confidence, p_label)
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: not what a run writes: {error}") from None
    found = {int(file.stem): file for file in (folder / f"{split}-hardest").glob("*.jpg")}
    order = [i for i in table.hardest(HARDEST).tolist() if i in found]
    return SavedPredictions(tuple(row[0] for row in rows), table, {i: found[i] for i in order})
