"""CSV manifests: `train.csv`, and optionally val.csv and test.csv, of files and labels: 0 ... C-1, or names of classes.

An optional `class_names.txt` names the classes of numbers, or gives the order of names.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from toolkit.data.sources.base import Source, SourceOptions
from toolkit.data.sources.columns import read_cells, read_columns
from toolkit.data.sources.files import index_files
from toolkit.data.sources.index import Found, Index
from toolkit.data.sources.labels import CLASS_NAMES, check_range, count_classes, is_number, named, parse_label
from toolkit.data.sources.layouts import find_layout, find_split, split_of
from toolkit.data.sources.listing import composed
from toolkit.data.sources.manifest_files import ManifestFiles
from toolkit.system.errors import InputError
from toolkit.system.places import expanded
from toolkit.system.system_files import describe_system, is_never_data

log = logging.getLogger(__name__)


class ManifestSource(Source):
    """A folder with `train.csv`, or with another CSV file whose columns name images."""

    def recognizes(self, data_root: str) -> bool:
        layout = find_layout(expanded(data_root))
        return layout is not None and layout.kind == "manifest"

    def read(self, data_root: str, options: SourceOptions) -> Found:
        return read_manifests(expanded(data_root), options.cache, options.label_column)


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


def read_manifests(root: Path, cache: Path, label_column: str | None = None) -> Found:
    """The index of each split; raises InputError naming the file and row at fault."""
    places, indices = manifests_of(root), {}
    numbers: Mapping[str, int] = {}
    classes: Sequence[str] = ()
    for split, file in places.items():
        if split == "test" and is_unlabeled(file, label_column):
            log.info("data      %s", without_labels(file))
            continue
        rows = _good_rows(file, parse_rows(file, split, label_column, numbers or len(classes) or None))
        names = [name for name, _ in rows]
        if split == "train" and isinstance(rows[0][1], str):
            classes = class_order(root, {str(label) for _, label in rows})
            numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[label] if isinstance(label, str) else label for _, label in rows]
        indices[split] = index_files(root, names, labels, cache)
        if split == "train":
            count = count_classes(indices[split], str(file))
            classes = classes or class_names(root, count)
    _tell_repeated(indices, places)
    return Found(indices["train"], indices.get("val"), indices.get("test"), classes)


def _tell_repeated(indices: Mapping[str, Index], places: Mapping[str, Path]) -> None:
    """Warn of files that are listed more than once: held out for validation, such an image would be trained on too."""
    named = {split: Counter(index.names) for split, index in indices.items()}
    for split, names in named.items():
        repeated = [name for name, count in names.items() if count > 1]
        if repeated:
            log.warning("%s lists %d files more than once, such as %s", places[split], len(repeated), repeated[0])
    for one, other in itertools.combinations(named, 2):
        if shared := [name for name in named[other] if name in named[one]]:
            log.warning("%d files are in both %s and %s, such as %s", len(shared), one, other, shared[0])


def _good_rows(file: Path, rows: Iterable[tuple[str, int | str] | InputError]) -> list[tuple[str, int | str]]:
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


def is_unlabeled(file: Path, label_column: str | None = None) -> bool:
    """Whether a manifest names images but has no column of labels, as that of a competition's test images."""
    try:
        columns = read_columns(file, label_column)
    except InputError:
        return read_columns(file).file is not None
    return columns.file is not None and columns.label is None and not columns.choices


def without_labels(file: Path) -> str:
    """That a test manifest without labels is left out, and what to do with its images."""
    return f"{file.name} is left out: it has no labels; `toolkit predict RUN IMAGES` predicts what it lists"


def parse_rows(
    file: Path, split: str, label_column: str | None = None, classes: int | Collection[str] | None = None
) -> Iterator[tuple[str, int | str] | InputError]:
    """File and label of each row, or the error in that row; raises InputError if the manifest cannot be read.

    `classes`: the number or the names of those of train; None: its first row shows which of the two labels are.
    """
    rows = list(_read_rows(file, split, label_column, classes))
    written = [row.name for row in rows if not isinstance(row, InputError)]
    found = iter(ManifestFiles(file.parent, split).find(written, f"looking for the files of {file.name}"))
    first: dict[str, _Row] = {}
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


class _Row(NamedTuple):
    line: int
    name: str
    label: int | str


def _read_rows(
    file: Path, split: str, label_column: str | None, classes: int | Collection[str] | None
) -> Iterator[_Row | InputError]:
    columns, by_split = _usable_columns(file, label_column), _split_column(file)
    texts = None if classes is None else not isinstance(classes, int)
    some = False
    for line, cells in read_cells(file):
        where = f"{file}, line {line}"
        said = split if by_split is None else _split_said(cells, by_split)
        if said != split:
            if not said and split == "train":
                yield InputError(f"{where}: its split is none of train, val and test: {','.join(cells)}")
            continue
        some = True
        name, label = (cells[i] if i < len(cells) else None for i in (columns.file, columns.label))
        texts = not is_number(label) if texts is None else texts
        try:
            yield _Row(line, name or "", _label(label, texts, where, classes))
        except InputError as error:
            yield error
    if not some:
        raise InputError(f"{file}: no rows" if by_split is None else f"{file}: no rows of {split}")


def _label(cell: str | None, texts: bool, where: str, classes: int | Collection[str] | None) -> int | str:
    """A label as a number, or the composed form of a name; raises InputError if it is none of train's."""
    if not texts:
        label = parse_label(cell, where)
        check_range(label, classes if isinstance(classes, int) else None, where, "train.csv")
        return label
    name = composed((cell or "").strip())
    if not name:
        raise InputError(f"{where}: no label")
    if not isinstance(classes, int | None) and name not in classes:
        raise InputError(f"{where}: label {name!r} is not one of train's")
    return name


class _Usable(NamedTuple):
    file: int
    label: int


def _usable_columns(file: Path, label_column: str | None) -> _Usable:
    """Raises InputError, which tells what columns there are, unless one names images and one holds labels."""
    columns = read_columns(file, label_column)
    if columns.file is not None and columns.label is not None:
        return _Usable(columns.file, columns.label)
    has = f"it has {columns.listed()}"
    folder = file.with_suffix("")
    if folder.is_dir():
        has += f"; to use the folder {folder.name}/ instead, move this file away"
    if columns.file is not None:
        several = f": {' or '.join(columns.choices)}" if columns.choices else ""
        has += f"; --label-column names the one of labels{several}"
    raise InputError(f"{file}: needs the columns filepath,label; {has}")
