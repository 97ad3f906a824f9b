"""`train.csv`, and val.csv and test.csv where there are, of `filepath,label`; labels are 0 ... C-1."""

import csv
import os
from pathlib import Path

from toolkit.data.index import Found, Index
from toolkit.data.sources.files import index_files
from toolkit.data.sources.folders import TEST, VALIDATION, first_existing
from toolkit.data.sources.labels import check_complete, check_range, count_classes, parse_label
from toolkit.errors import InputError


def read_manifests(root: Path, cache: Path) -> Found:
    """The index of each split; raises InputError naming the file and row at fault."""
    train = _read_csv(root / "train.csv", None, cache)
    count = count_classes(train, str(root / "train.csv"))
    val, test = (
        _read_csv(file, count, cache) if file else None
        for file in (first_existing(root, names, ".csv") for names in (VALIDATION, TEST))
    )
    if val is not None:
        check_complete(val, count, str(root), "the validation manifest")
    return Found(train, val, test, tuple(map(str, range(count))))


def _read_csv(file: Path, classes: int | None, cache: Path) -> Index:
    try:
        names, labels = _read_rows(file, classes)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: not a CSV file in UTF-8: {error}") from None
    return index_files(file.parent, names, labels, cache)


def _read_rows(file: Path, classes: int | None) -> tuple[list[str], list[int]]:
    names: list[str] = []
    labels: list[int] = []
    with file.open(newline="", encoding="utf-8-sig") as handle:  # a byte-order mark is no part of the first name
        reader = csv.DictReader(handle)
        columns = reader.fieldnames or []
        lacking = [name for name in ("filepath", "label") if name not in columns]
        if lacking:
            raise InputError(f"{file}: needs the columns filepath,label; it has {','.join(columns) or 'none'}")
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            label = parse_label(row["label"], where)
            check_range(label, classes, where, "train.csv")
            name = row["filepath"] or ""
            if os.path.isabs(name) or ".." in Path(name).parts:
                raise InputError(f"{where}: {name} leads out of {file.parent}: paths are relative to the manifest")
            if not (file.parent / name).is_file():
                raise InputError(f"{where}: there is no file {file.parent / name}")
            names.append(name)
            labels.append(label)
    if not names:
        raise InputError(f"{file}: no rows")
    return names, labels
