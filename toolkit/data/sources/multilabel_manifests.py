"""CSV manifests of images with any number of classes: a column that holds `a|b`, or a column of 0 and 1 per class.

An empty cell names no class. Labels are names or numbers, as in manifests of one label per image.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from toolkit.data.sources.columns import FILES, OTHERS, SPLITS, Columns, in_words, read_cells, read_columns
from toolkit.data.sources.files import index_files
from toolkit.data.sources.index import Found, Index
from toolkit.data.sources.label_rows import BETWEEN, MOST_NUMBERS, multi_hot
from toolkit.data.sources.labels import CLASS_NAMES, check_range, parse_label
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
from toolkit.system.errors import InputError

log = logging.getLogger(__name__)

SEVERAL = ("tags", "attributes", "classes")  # names of columns that only hold several labels
SWITCH = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}

Labels = tuple[str, ...]


class _Layout(NamedTuple):
    """Where a manifest names images and labels: in the column `label`, or in those of `classes`, by name."""

    file: int
    label: int | None
    classes: Mapping[str, int]


def read_multilabel_manifests(root: Path, cache: Path, label_column: str | None = None) -> Found:
    """The index of each split, with rows of C zeros and ones; raises InputError naming the file and row at fault."""
    indices: dict[str, Index] = {}
    numbers: Mapping[str, int] = {}
    places = manifests_of(root)
    for split, file in places.items():
        columns = read_columns(file, label_column if split == "train" else None)
        if split == "test" and has_no_labels(columns, label_column, numbers):
            log.info("data      %s", without_labels(file))
            continue
        layout = _layout(file, label_column, [*numbers] if split != "train" else None)
        rows = good_rows(file, place_rows(file, split, [*_read_rows(file, split, layout, numbers)]))
        if split == "train":
            used = {label for _, labels in rows for label in labels}
            numbers = class_numbers(root, file, tuple(layout.classes), used)
        labels = multi_hot([[numbers[label] for label in of_row] for _, of_row in rows], len(numbers))
        indices[split] = index_files(root, [name for name, _ in rows], labels.tolist(), cache)
    tell_repeated(indices, places)
    classes = [*numbers]
    if all(name.isdecimal() for name in classes) and (root / CLASS_NAMES).is_file():
        classes = [*class_names(root, len(classes))]
    return Found(indices["train"], indices.get("val"), indices.get("test"), classes)


def parse_several(
    file: Path, split: str, label_column: str | None, known: Sequence[str] | None
) -> tuple[tuple[str, ...], Iterator[tuple[str, Labels] | InputError]]:
    """The classes that are columns, and file and labels of each row, or the error in that row.

    `known`: the columns of train that are classes. Raises InputError if the manifest cannot be read.
    """
    layout = _layout(file, label_column, known)
    return tuple(layout.classes), place_rows(file, split, [*_read_rows(file, split, layout, {})])


def holds_classes(file: Path) -> bool:
    """Whether a manifest has a column of 0 and 1 per class, and none of labels."""
    columns = read_columns(file)
    classes = {} if columns.file is None or columns.label is not None or columns.choices else _class_columns(columns)
    first = next((cells for _, cells in read_cells(file)), [])
    cells = [first[place] if place < len(first) else "" for place in classes.values()]
    return len(cells) > 1 and all(cell.strip().lower() in SWITCH for cell in cells)


def _layout(file: Path, label_column: str | None, known: Sequence[str] | None) -> _Layout:
    """The columns of a manifest; `known`: the classes of train. Raises InputError, which tells what columns it has."""
    columns = read_columns(file, label_column)
    words = in_words(columns.names)
    label = columns.label
    if label is None and label_column is None and not columns.choices:
        label = next((words.index(name) for name in SEVERAL if name in words), None)
    if columns.file is not None and label is not None:
        return _Layout(columns.file, label, {})
    classes = {} if columns.choices or label_column else _class_columns(columns)
    if columns.file is None or len(classes) < 2:
        raise InputError(f"{file}: {name_columns(file, columns)}")
    if known is not None and {*known} != {*classes}:
        strange = sorted({*known} ^ {*classes})[0]
        raise InputError(f"{file}: the column {strange!r} is not in both it and train's manifest: the same classes")
    return _Layout(columns.file, None, {name: classes[name] for name in known or classes})


def _class_columns(columns: Columns) -> dict[str, int]:
    """The columns that can be those of a class each, by name."""
    return {
        composed(name): place
        for place, (name, word) in enumerate(zip(columns.names, in_words(columns.names), strict=True))
        if word and word not in {*FILES, *OTHERS, *SPLITS} and not word.startswith("unnamed:") and place != columns.file
    }


def has_no_labels(columns: Columns, label_column: str | None, known: Collection[str]) -> bool:
    """Whether a test manifest names images but neither labels nor the classes of train."""
    words = in_words(columns.names)
    has_label = columns.label is not None or columns.choices or {*words} & {*SEVERAL} or label_column in columns.names
    return columns.file is not None and not has_label and not {*known} & {*_class_columns(columns)}


def _read_rows(file: Path, split: str, layout: _Layout, known: Mapping[str, int]) -> Iterator[Row[Labels] | InputError]:
    for line, cells in rows_of_split(file, split):
        if isinstance(cells, InputError):
            yield cells
            continue
        where = f"{file}, line {line}"
        try:
            labels = _labels(cells, layout, where)
            for label in labels:
                if known and label not in known:
                    raise InputError(f"{where}: label {label!r} is not one of train's")
            yield Row(line, cells[layout.file] if layout.file < len(cells) else "", labels)
        except InputError as error:
            yield error


def _labels(cells: Sequence[str], layout: _Layout, where: str) -> Labels:
    """The labels of a row, sorted, each once."""
    if layout.label is not None:
        cell = cells[layout.label] if layout.label < len(cells) else ""
        return tuple(sorted({composed(part.strip()) for part in cell.split(BETWEEN) if part.strip()}))
    return tuple(sorted(name for name, place in layout.classes.items() if _is_on(cells, place, f"{where}: {name}")))


def _is_on(cells: Sequence[str], place: int, where: str) -> bool:
    cell = cells[place].strip() if place < len(cells) else ""
    if cell.lower() not in SWITCH:
        raise InputError(f"{where} is {cell!r}, not 0 or 1; --label-column names a column of labels, if there is one")
    return SWITCH[cell.lower()]


def class_numbers(root: Path, file: Path, columns: Sequence[str], used: set[str]) -> dict[str, int]:
    """The number of each class; raises InputError if there are fewer than 2. `columns`: those of a class each."""
    if columns:
        names = [*columns]
    elif used and all(name.isdecimal() for name in used):
        labels = [parse_label(name, f"{file}") for name in used]
        count = max(1 + max(labels), _lines(root / CLASS_NAMES))
        check_range(max(labels), MOST_NUMBERS, f"{file}")
        names = [str(label) for label in range(count)]
    else:
        names = [*class_order(root, used)]
    if len(names) < 2:
        raise InputError(f"{file}: needs at least 2 classes; it has {len(names)}")
    return {name: number for number, name in enumerate(names)}


def _lines(file: Path) -> int:
    """How many names a file of class names has; 0 if there is none."""
    return sum(bool(line.strip()) for line in file.read_bytes().splitlines()) if file.is_file() else 0
