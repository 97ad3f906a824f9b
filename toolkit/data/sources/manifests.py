"""CSV manifests: `train.csv`, and optionally val.csv and test.csv, of files and labels: 0 ... C-1, or names of classes.

An optional `class_names.txt` names the classes of numbers, or gives the order of names.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from toolkit.data.sources.base import Source, SourceOptions
from toolkit.data.sources.columns import read_columns
from toolkit.data.sources.files import index_files
from toolkit.data.sources.index import Found
from toolkit.data.sources.label_rows import ADVICE, BETWEEN, joined_labels
from toolkit.data.sources.labels import check_range, count_classes, is_number, parse_label
from toolkit.data.sources.layouts import find_layout
from toolkit.data.sources.listing import composed
from toolkit.data.sources.manifest_rows import (
    Row,
    class_names,
    class_order,
    good_rows,
    manifests_of,
    name_columns,
    place_rows,
    rows_of_split,
    tell_repeated,
    without_labels,
)
from toolkit.data.sources.multilabel_manifests import holds_classes, read_multilabel_manifests
from toolkit.system.errors import InputError
from toolkit.system.places import expanded

log = logging.getLogger(__name__)


class ManifestSource(Source):
    """A folder with `train.csv`, or with another CSV file whose columns name images."""

    def recognizes(self, data_root: str) -> bool:
        layout = find_layout(expanded(data_root))
        return layout is not None and layout.kind == "manifest"

    def read(self, data_root: str, options: SourceOptions) -> Found:
        if options.several_labels:
            return read_multilabel_manifests(expanded(data_root), options.cache, options.label_column)
        return read_manifests(expanded(data_root), options.cache, options.label_column)


def read_manifests(root: Path, cache: Path, label_column: str | None = None) -> Found:
    """The index of each split; raises InputError naming the file and row at fault."""
    places, indices = manifests_of(root), {}
    numbers: Mapping[str, int] = {}
    classes: Sequence[str] = ()
    for split, file in places.items():
        if split == "test" and is_unlabeled(file, label_column):
            log.info("data      %s", without_labels(file))
            continue
        rows = good_rows(file, parse_rows(file, split, label_column, numbers or len(classes) or None))
        names = [name for name, _ in rows]
        if split == "train" and isinstance(rows[0][1], str):
            texts = {str(label) for _, label in rows}
            if joined := joined_labels(texts):
                raise InputError(f"{file}: label {joined!r} is several of the labels: {ADVICE}")
            classes = class_order(root, texts)
            numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[label] if isinstance(label, str) else label for _, label in rows]
        indices[split] = index_files(root, names, labels, cache)
        if split == "train":
            count = count_classes(indices[split], str(file))
            classes = classes or class_names(root, count)
    tell_repeated(indices, places)
    return Found(indices["train"], indices.get("val"), indices.get("test"), classes)


def is_unlabeled(file: Path, label_column: str | None = None) -> bool:
    """Whether a manifest names images but has no column of labels, as that of a competition's test images."""
    try:
        columns = read_columns(file, label_column)
    except InputError:
        return read_columns(file).file is not None
    return columns.file is not None and columns.label is None and not columns.choices


def parse_rows(
    file: Path, split: str, label_column: str | None = None, classes: int | Collection[str] | None = None
) -> Iterator[tuple[str, int | str] | InputError]:
    """File and label of each row, or the error in that row; raises InputError if the manifest cannot be read.

    `classes`: the number or the names of those of train; None: its first row shows which of the two labels are.
    """
    return place_rows(file, split, list(_read_rows(file, split, label_column, classes)))


def _read_rows(
    file: Path, split: str, label_column: str | None, classes: int | Collection[str] | None
) -> Iterator[Row[int | str] | InputError]:
    columns = _usable_columns(file, label_column)
    texts = None if classes is None else not isinstance(classes, int)
    joins: bool | None = None  # found out at the first error
    for line, cells in rows_of_split(file, split):
        if isinstance(cells, InputError):
            yield cells
            continue
        name, label = (cells[i] if i < len(cells) else None for i in (columns.file, columns.label))
        texts = not is_number(label) if texts is None else texts
        try:
            yield Row(line, name or "", _label(label, texts, f"{file}, line {line}", classes))
        except InputError as error:
            joins = _joins(file, split, columns.label) if joins is None else joins
            yield InputError(f"{error}; {ADVICE}" if joins or BETWEEN in (label or "") else str(error))


def _joins(file: Path, split: str, column: int) -> bool:
    """Whether some labels of a manifest are several joined by "|"."""
    rows = (cells for _, cells in rows_of_split(file, split) if not isinstance(cells, InputError))
    return joined_labels({cells[column].strip() for cells in rows if column < len(cells)}) is not None


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
    hint = f"; {ADVICE}" if label_column is None and holds_classes(file) else ""
    raise InputError(f"{file}: {name_columns(file, columns)}{hint}")
