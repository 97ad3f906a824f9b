"""Which columns of a Hugging Face dataset hold images and labels, and the labels of images that have several.

Several labels are a column of sequences of classes, of whole numbers or of texts, or a column of booleans per class.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from toolkit.data.sources.label_rows import ADVICE, MOST_NUMBERS, as_rows, count_in, multi_hot
from toolkit.data.sources.listing import composed
from toolkit.system.errors import InputError

USUAL = ("labels", "label")  # of several columns of sequences


class Columns(NamedTuple):
    """Names of the columns of images and labels; `classes`: names of the classes, None if the data set has none.

    `label`: a column of one class an image; None: `several` holds any number of them, in one column of sequences or a
    column of booleans per class.
    """

    image: str
    label: str | None
    classes: Sequence[str] | None
    several: tuple[str, ...] = ()


def find_columns(where: str, features: Mapping[str, Any], label_column: str | None, several: bool) -> Columns:
    """The columns to read; raises InputError that tells which there are. `several`: an image has any number of labels.

    `label_column`: the name of that of labels, if it was given.
    """
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    has = ", ".join(f"{column}: {kind}" for column, kind in kinds.items())
    images = [column for column in kinds if kinds[column] == "Image"]
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    if image is None:
        raise InputError(f"{where}: needs one column of kind Image, or one named 'image'; it has {has}")
    sequences = [column for column, feature in features.items() if _of_sequence(feature)]
    if several and (found := _several(where, features, label_column, sequences)):
        return Columns(image, None, *found)
    whole = [column for column in kinds if _dtype(features[column]).startswith(("int", "uint"))]
    named = [column for column in kinds if kinds[column] == "ClassLabel"]  # whole numbers too
    usual = "label" if "label" in whole else None
    label = label_column or ("label" if "label" in named else named[0] if len(named) == 1 else usual)
    hint = f"; {ADVICE}" if not several and (sequences if label_column is None else label_column in sequences) else ""
    if label is None:
        choices = f"--label-column takes one of {', '.join(named or whole)}; " if named or whole else ""
        more = "one column of sequences of labels, columns of booleans, or " if several else ""
        needs = f"needs {more}one column of kind ClassLabel, or one named 'label'"
        raise InputError(f"{where}: {needs}; {choices}it has {has}{hint}")
    if label not in whole:
        sort = "labels" if several else "whole numbers"
        raise InputError(f"{where}: --label-column {label}: no column of {sort}; it has {has}{hint}")
    return Columns(image, label, getattr(features[label], "names", None))


def _dtype(feature: Any) -> str:
    return str(getattr(feature, "dtype", "") or "")


def _of_sequence(feature: Any) -> Any:
    """What a sequence holds, if that can be labels; else None."""
    inner = getattr(feature, "feature", None)
    return inner if _dtype(inner).startswith(("int", "uint", "string", "large_string", "bool")) else None


def _several(
    where: str, features: Mapping[str, Any], label_column: str | None, sequences: Sequence[str]
) -> tuple[Sequence[str] | None, tuple[str, ...]] | None:
    """The classes, None if only the labels tell them, and the columns; None: no column holds several labels."""
    column = label_column if label_column in sequences else None
    if label_column is None and sequences:
        column = next((name for name in USUAL if name in sequences), sequences[0] if len(sequences) == 1 else None)
        if column is None:
            raise InputError(f"{where}: --label-column takes one of {', '.join(sequences)}")
    if column is not None:
        return getattr(features[column].feature, "names", None), (column,)
    flags = tuple(name for name, feature in features.items() if _dtype(feature) == "bool")
    one = label_column or "label" in features or any(type(each).__name__ == "ClassLabel" for each in features.values())
    return None if one or len(flags) < 2 else (flags, flags)


def classes_of(train: Any, columns: Columns, where: str) -> tuple[str, ...]:
    """The names of the classes where an image has several; `train`: the split. Raises InputError naming a bad row."""
    if columns.classes is not None:
        names = tuple(columns.classes)
    elif (values := _values(train, columns, where)) and any(isinstance(part, str) for row in values for part in row):
        names = tuple(sorted({_name(part, f"{where}, row {i}") for i, row in enumerate(values) for part in row}))
    else:
        count = count_in(values, f"{where}: {columns.several[0]}")
        if count > MOST_NUMBERS:
            raise InputError(f"{where}: {columns.several[0]} holds {count - 1}, which is no class index")
        names = tuple(map(str, range(count)))
    if len(names) < 2:
        raise InputError(f"{where}: needs at least 2 classes; it has {len(names)}")
    return names


def label_rows(split: Any, columns: Columns, classes: Sequence[str], where: str) -> np.ndarray:
    """N x C of 0 and 1: the labels of a split; raises InputError naming a bad row."""
    values = _values(split, columns, where)
    if len(columns.several) > 1:
        return np.array(values, dtype=np.int64).reshape(-1, len(classes))
    if not any(isinstance(part, str) for row in values for part in row):
        if columns.classes is not None:
            values = [{*row} for row in values]  # always indexes, never a vector of zeros and ones
        return as_rows(values, len(classes), f"{where}: {columns.several[0]}")
    numbers = {name: number for number, name in enumerate(classes)}
    rows = []
    for i, row in enumerate(values):
        names = [_name(part, f"{where}, row {i}") for part in row]
        if strange := [name for name in names if name not in numbers]:
            raise InputError(f"{where}, row {i}: label {strange[0]!r} is not one of train's")
        rows.append([numbers[name] for name in names])
    return multi_hot(rows, len(classes))


def is_secret(split: Any, columns: Columns, where: str) -> bool:
    """Whether no image of a split has a label, or each only -1: so test labels are kept secret on the hub."""
    return all({*row} <= {-1} for row in _values(split, columns, where)) if len(columns.several) == 1 else False


def _values(split: Any, columns: Columns, where: str) -> list[Any]:
    """What each row says: a sequence of labels, or of a boolean per class."""
    found = [split.data.column(name).to_pylist() for name in columns.several]
    for name, column in zip(columns.several, found, strict=True):
        empty = next((i for i, value in enumerate(column) if value is None), None)
        if empty is not None:
            raise InputError(f"{where}: row {empty} has no {name}; a row without labels has an empty sequence")
    return found[0] if len(found) == 1 else [*zip(*found, strict=True)]


def _name(label: Any, where: str) -> str:
    name = composed(label.strip()) if isinstance(label, str) else ""
    if not name:
        raise InputError(f"{where}: label {label!r} is not a name")
    return name
