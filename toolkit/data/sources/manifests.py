"""CSV manifests: `train.csv`, and optionally val.csv and test.csv, of `filepath,label`; labels are 0 ... C-1.

An optional `class_names.txt` names the classes.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from toolkit.data.sources.base import Source, SourceOptions
from toolkit.data.sources.files import each, index_files
from toolkit.data.sources.folders import TEST, VALIDATION, find_split
from toolkit.data.sources.index import Found, Index
from toolkit.data.sources.labels import CLASS_NAMES, check_complete, check_range, count_classes, named, parse_label
from toolkit.system.errors import InputError


class ManifestSource(Source):
    """A folder with `train.csv`."""

    def recognizes(self, data_root: str) -> bool:
        return (Path(data_root).expanduser() / "train.csv").is_file()

    def read(self, data_root: str, options: SourceOptions) -> Found:
        return read_manifests(Path(data_root).expanduser(), options.cache)


def read_manifests(root: Path, cache: Path) -> Found:
    """The index of each split; raises InputError naming the file and row at fault."""
    train = _read_csv(root / "train.csv", None, cache)
    count = count_classes(train, str(root / "train.csv"))
    val, test = (
        _read_csv(file, count, cache) if file else None
        for file in (find_split(root, names, ".csv") for names in (VALIDATION, TEST))
    )
    if val is not None:
        check_complete(val, count, str(root), "the validation manifest")
    names = root / CLASS_NAMES
    return Found(train, val, test, named(names.read_bytes() if names.is_file() else None, count, str(names)))


def _read_csv(file: Path, classes: int | None, cache: Path) -> Index:
    names: list[str] = []
    labels: list[int] = []
    for row in parse_rows(file, classes):
        if isinstance(row, InputError):
            raise row
        names.append(row[0])
        labels.append(row[1])
    return index_files(file.parent, names, labels, cache)


def parse_rows(file: Path, classes: int | None) -> Iterator[tuple[str, int] | InputError]:
    """File and label of each row, or the error in that row; raises InputError if the manifest cannot be read."""
    rows = list(_read_rows(file, classes))
    paths = [f"{file.parent}/{row.name}" for row in rows if not isinstance(row, InputError)]
    there = iter(each(os.path.isfile, paths, f"looking for the files of {file.name}"))
    for row in rows:
        if isinstance(row, InputError):
            yield row
        elif next(there):
            yield row.name, row.label
        else:
            yield InputError(f"{file}, line {row.line}: there is no file {file.parent / row.name}")


class _Row(NamedTuple):
    line: int
    name: str
    label: int


def _read_rows(file: Path, classes: int | None) -> Iterator[_Row | InputError]:
    some = False
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:  # drops a byte-order mark before the first name
            reader = csv.DictReader(handle)
            reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or []]
            if not {"filepath", "label"} <= {*columns}:
                folder = file.with_suffix("")
                beside = f"; to use the folder {folder.name}/ instead, move this file away" if folder.is_dir() else ""
                raise InputError(
                    f"{file}: needs the columns filepath,label; it has {','.join(columns) or 'none'}{beside}"
                )
            for row in reader:
                some = True
                try:
                    yield _parse_row(row, file, reader.line_num, classes)
                except InputError as error:
                    yield error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: not a CSV file in UTF-8: {error}") from None
    if not some:
        raise InputError(f"{file}: no rows")


def _parse_row(row: dict[str, str], file: Path, line: int, classes: int | None) -> _Row:
    where = f"{file}, line {line}"
    label = parse_label(row["label"], where)
    check_range(label, classes, where, "train.csv")
    name = row["filepath"] or ""
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise InputError(f"{where}: {name} leads out of {file.parent}: paths are relative to the manifest")
    return _Row(line, name, label)
