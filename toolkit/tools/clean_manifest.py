"""Manifests of the images that passed a scan; training reads them as `--data-root`."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from toolkit.data.sources.index import ALONE, Index
from toolkit.data.sources.label_rows import BETWEEN, images_of_classes
from toolkit.data.sources.labels import CLASS_NAMES
from toolkit.data.sources.survey import Survey
from toolkit.system import files, storage
from toolkit.system.errors import InputError
from toolkit.tools.prediction_rows import csv_line
from toolkit.tools.scan_report import ScanReport

IMAGES = "images"  # link to the data set in the manifest's folder


def refuse_manifest(found: Survey, folder: Path) -> None:
    """Raise InputError if no manifest could be written into `folder`; called before the scan, which takes long."""
    if folder.exists():
        raise InputError(f"--write-manifest: {folder} is there already: give another --output-dir")
    indices = found.splits.values()
    if len({index.root for index in indices}) != 1 or any((index.container != ALONE).any() for index in indices):
        raise InputError(f"--write-manifest: the images of {found.source} are not files of one folder")


def write_manifest(report: ScanReport, folder: Path) -> None:
    """Write `train.csv`, ... of the kept images, and their class names, to a folder that `--data-root` accepts.

    The folder has a link to the data set, because paths in a manifest must stay inside its folder. Raises InputError
    if training would refuse what is kept, or the folder cannot be written.
    """
    kept = {split: index.take(report.kept[split]) for split, index in report.indices.items()}
    counts = images_of_classes(kept["train"].labels, len(report.classes)).tolist()
    labels = [label for label, count in enumerate(counts) if count]
    several = kept["train"].labels.ndim > 1
    rules = [
        *([f"{len(labels)} class would be left in train"] if len(labels) < 2 else []),
        *(["no image would be left in val"] if "val" in kept and not len(kept["val"]) else []),
        *(
            f"class {report.classes[label]!r} would have 1 image in train, too few to hold one out for validation"
            for label in labels
            if "val" not in kept and counts[label] == 1 and not several
        ),
    ]
    if rules:
        raise InputError(f"--write-manifest: {rules[0]}: correct it in {report.source}")
    staging = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        _fill(staging, kept, labels, report)
        os.replace(staging, folder)
    except OSError as error:
        raise InputError(f"--write-manifest: {storage.line(error, staging)}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fill(folder: Path, kept: dict[str, Index], labels: Sequence[int], report: ScanReport) -> None:
    """Write class names and manifests of the kept images, restricted to the classes in `labels`."""
    try:
        (folder / IMAGES).symlink_to(Path(report.indices["train"].root).resolve(), target_is_directory=True)
    except OSError as error:
        raise InputError(
            f"--write-manifest: no link can be made in {folder.parent}: {storage.explain(error)}"
        ) from None
    _write_names(folder / CLASS_NAMES, [report.classes[label] for label in labels])
    number = {label: new for new, label in enumerate(labels)}
    for split, index in kept.items():
        if not len(index):  # no image of a test split may be left
            continue
        rows = zip(index.names, map(np.atleast_1d, index.labels), strict=True)
        cells = ((name, _cell(label, number, index.labels.ndim > 1)) for name, label in rows)
        _write_csv(folder / f"{split}.csv", ((name, cell) for name, cell in cells if cell is not None))


def _cell(label: np.ndarray, number: Mapping[int, int], several: bool) -> str | None:
    """The labels of an image as a manifest has them; None if it has one class, and that is none of train's."""
    names = [str(number[one]) for one in (np.flatnonzero(label) if several else label).tolist() if one in number]
    return BETWEEN.join(names) if names or several else None


def _write_names(file: Path, names: Sequence[str]) -> None:
    """Raise InputError if a name would not be read back unchanged, e.g. one that ends in a space or is not UTF-8."""
    for name in names:
        if name.encode("utf-8", "replace").decode("utf-8-sig").splitlines() != [name] or name != name.strip():
            raise InputError(f"--write-manifest: class {name!r} cannot stand in {CLASS_NAMES}: rename it in the data")
    files.write_text(file, "".join(f"{name}\n" for name in names))


def _write_csv(file: Path, rows: Iterable[tuple[str, str]]) -> None:
    cells = (("filepath", "label"), *((f"{IMAGES}/{name}", label) for name, label in rows))
    try:
        text = "".join(map(csv_line, cells))
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"--write-manifest: {file.name} would be in UTF-8, and the name of an image is not") from None
    files.write_text(file, text)
