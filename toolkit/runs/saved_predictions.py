"""What a finished model said of each image, for people, reports and dashboards: a CSV file and its hardest images."""

import csv
import io
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from toolkit.data.loading.reader import Pixels
from toolkit.models.metrics import Predictions
from toolkit.system import files
from toolkit.system.errors import BadSampleError, InputError, LoaderError

log = logging.getLogger(__name__)

HARDEST = 24
THUMBNAIL_PX = 128


@dataclass(frozen=True)
class Mistakes:
    """What stands in a run's folder: N names, their predictions, and files of the hardest images, worst first.

    `hardest` maps a place in `names` to a JPEG of at most 128 px.
    """

    names: tuple[str, ...]
    predictions: Predictions
    hardest: dict[int, Path]


def keep(folder: Path, split: str, predictions: Predictions, images: Pixels) -> None:
    """`write`, for a run, which does not fail for it: its figures are known already."""
    try:
        write(folder, split, predictions, images)
    except (OSError, LoaderError) as error:
        log.warning("%s: what was said of each %s image could not be written: %s", folder, split, error)


def write(folder: Path, split: str, predictions: Predictions, images: Pixels) -> None:
    """SPLIT.csv, a row per image: name, label, and per figure the class said, its probability and the label's.

    And SPLIT-hardest/ID.jpg. Classes are numbers of class_map.json; -1: the image could not be read.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    columns = [f"{figure}/{column}" for figure in predictions.figures for column in ("said", "confidence", "truth")]
    writer.writerow(["name", "label", *columns])
    parts = np.stack([predictions.said, predictions.confidence, predictions.truth], axis=1)  # F x 3 x N
    for i, label in enumerate(predictions.labels.tolist()):
        cells = [(int(said), f"{sure:.6g}", f"{truth:.6g}") for said, sure, truth in parts[:, :, i].tolist()]
        writer.writerow([images.index.names[i], label, *(cell for row in cells for cell in row)])
    thumbnails = folder / f"{split}-hardest"
    thumbnails.mkdir(parents=True, exist_ok=True)
    for old in thumbnails.glob("*.jpg"):
        old.unlink()
    for i in predictions.hardest(HARDEST).tolist():
        try:
            image = Image.fromarray(images.whole(i))
        except BadSampleError:  # since it was evaluated
            continue
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        image.save(thumbnails / f"{i:09d}.jpg", quality=85)
    files.write_text(folder / f"{split}.csv", text.getvalue())


def clear(folder: Path) -> None:
    """Remove what `write` wrote there, of whatever splits."""
    for thumbnails in folder.glob("*-hardest"):
        for image in thumbnails.glob("*.jpg"):
            image.unlink()
        (folder / f"{thumbnails.name.removesuffix('-hardest')}.csv").unlink(missing_ok=True)


def read(folder: Path, split: str) -> Mistakes | None:
    """What `write` wrote, or None where nothing was written yet; raises InputError on a file that it did not write."""
    path = folder / f"{split}.csv"
    if not path.exists():
        return None
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *rows = csv.reader(file)
        figures = tuple(column.removesuffix("/said") for column in header[2::3])
        cells = np.array([row[1:] for row in rows], dtype=np.float64).reshape(len(rows), -1).T  # 1 + 3 F x N
        said, confidence, truth = cells[1::3].astype(np.int64), cells[2::3], cells[3::3]
        predictions = Predictions(figures, cells[0].astype(np.int64), said, confidence, truth)
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: not what a run writes: {error}") from None
    found = {int(file.stem): file for file in (folder / f"{split}-hardest").glob("*.jpg")}
    order = [i for i in predictions.hardest(HARDEST).tolist() if i in found]
    return Mistakes(tuple(row[0] for row in rows), predictions, {i: found[i] for i in order})
