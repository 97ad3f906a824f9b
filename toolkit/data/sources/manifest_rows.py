"""What manifests of one and of several labels per image share: which files there are, their rows, classes in order."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from toolkit.data.sources.columns import Columns, read_cells, read_columns
from toolkit.data.sources.index import Index
from toolkit.data.sources.labels import CLASS_NAMES, named
from toolkit.data.sources.layouts import find_layout, find_split, split_of
from toolkit.data.sources.listing import composed
from toolkit.data.sources.manifest_files import ManifestFiles
from toolkit.system.errors import InputError
from toolkit.system.system_files import describe_system, is_never_data

log = logging.getLogger(__name__)

L = TypeVar("L")  # what a row says of its image


def manifests_of(root: Path) -> dict[str, Path]:
    """The manifest of each split that has one: of several, the same file if a column tells them apart."""
    layout = find_layout(root)
    assert layout is not None
    if (column := _split_column(layout.train)) is not None:
        found = {_split_said(cells, column) for _, cells in read_cells(layout.train)}
        return {split: layout.train for split in ("train", "val", "test") if split in {"train", *found}}
    places = {split: find_split(root, split, layout.pattern, layout.train.suffix) for split in ("train", "val", "test")}
    return {split: place for split, place in (places | {"train": layout.train}).items() if place is not None}


def _split_column(file: Path) -> int | None:
    """The column that tells splits apart; only of a file whose name says no split, as those were always read whole."""
    return None if split_of(file.stem) else read_columns(file).split


def _split_said(cells: Sequence[str], column: int) -> str:
    """The split that a row names; empty if none."""
    return (split_of(cells[column].strip() if column < len(cells) else "") or ("",))[0]


def tell_repeated(indices: Mapping[str, Index], places: Mapping[str, Path]) -> None:
    """Warn of files that are listed more than once: held out for validation, such an image would be trained on too."""
    named = {split: Counter(index.names) for split, index in indices.items()}
    for split, names in named.items():
        repeated = [name for name, count in names.items() if count > 1]
        if repeated:
            log.warning("%s lists %d files more than once, such as %s", places[split], len(repeated), repeated[0])
    for one, other in itertools.combinations(named, 2):
        if shared := [name for name in named[other] if name in named[one]]:
            log.warning("%d files are in both %s and %s, such as %s", len(shared), one, other, shared[0])


def good_rows(file: Path, rows: Iterable[tuple[str, L] | InputError]) -> list[tuple[str, L]]:
    """All rows but those of system files; raises the first error."""
    good, system = [], []
    for row in rows:
        if isinstance(row, InputError):
            raise row
        if is_never_data(row[0]):
            system.append(row[0])
        else:
            good.append(row)
    if system:
        log.info("data      left out: %s, listed in %s", describe_system(system), file.name)
    if not good:
        raise InputError(f"{file}: no rows but those of system files")
    return good


def class_names(root: Path, count: int) -> tuple[str, ...]:
    """The names of classes that are numbers."""
    file = root / CLASS_NAMES
    return named(file.read_bytes() if file.is_file() else None, count, str(file))


def class_order(root: Path, labels: set[str]) -> tuple[str, ...]:
    """The classes whose labels are names: in the order of class_names.txt if there is one, else sorted."""
    names = tuple(sorted(labels))
    if not (root / CLASS_NAMES).is_file():
        return names
    given = tuple(map(composed, class_names(root, len(names))))
    if strange := sorted({*given} ^ labels):
        raise InputError(f"{root / CLASS_NAMES}: {strange[0]!r} is not in both it and the labels of train")
    return given


def without_labels(file: Path) -> str:
    """That a test manifest without labels is left out, and what to do with its images."""
    return f"{file.name} is left out: it has no labels; `toolkit predict RUN IMAGES` predicts what it lists"


class Row(NamedTuple, Generic[L]):
    """A row of a manifest: its line, the file as it is written there, and what it says of the image."""

    line: int
    name: str
    label: L


def place_rows(file: Path, split: str, rows: Sequence[Row[L] | InputError]) -> Iterator[tuple[str, L] | InputError]:
    """File and label of each row, or the error in that row; an image that has two labels is one."""
    written = [row.name for row in rows if not isinstance(row, InputError)]
    found = iter(ManifestFiles(file.parent, split).find(written, f"looking for the files of {file.name}"))
    first: dict[str, Row[L]] = {}
    for row in rows:
        if isinstance(row, InputError):
            yield row
            continue
        name = next(found)
        if isinstance(name, InputError):
            yield InputError(f"{file}, line {row.line}: {name}")
            continue
        before = first.setdefault(name, row)
        if before.label != row.label:
            labels = f"label {row.label!r} here, {before.label!r} in line {before.line}"
            yield InputError(f"{file}, line {row.line}: {name} has two labels: {labels}; an image has one")
        else:
            yield name, row.label


def rows_of_split(file: Path, split: str) -> Iterator[tuple[int, list[str] | InputError]]:
    """Line and cells of the rows of a split, or the error in a row; raises InputError if there are none."""
    by_split, some = _split_column(file), False
    for line, cells in read_cells(file):
        said = split if by_split is None else _split_said(cells, by_split)
        if said == split:
            some = True
            yield line, cells
        elif not said and split == "train":
            reason = f"its split is none of train, val and test: {','.join(cells)}"
            yield line, InputError(f"{file}, line {line}: {reason}")
    if not some:
        raise InputError(f"{file}: no rows" if by_split is None else f"{file}: no rows of {split}")


def name_columns(file: Path, columns: Columns) -> str:
    """Which columns a manifest needs, and which it has."""
    has = f"it has {columns.listed()}"
    folder = file.with_suffix("")
    if folder.is_dir():
        has += f"; to use the folder {folder.name}/ instead, move this file away"
    if columns.file is not None:
        several = f": {' or '.join(columns.choices)}" if columns.choices else ""
        has += f"; --label-column names the one of labels{several}"
    return f"needs the columns filepath,label; {has}"
