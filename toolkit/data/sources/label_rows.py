"""Labels of images that have any number of classes: rows of C zeros and ones."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from toolkit.config.tables import MULTI_LABEL, look_up
from toolkit.system.errors import InputError

MOST_NUMBERS = 2**20  # classes that are numbers: a row has a value for each
BETWEEN = "|"  # labels of one image in a cell of a CSV file
ADVICE = f"images with several labels are for --task {MULTI_LABEL}"


def has_several_labels(task: str) -> bool:
    """Whether an image has any number of classes in the task of that name."""
    try:
        return bool(getattr(look_up("task", "--task", task), "several_labels", False))
    except InputError:  # an object passed from Python, whose class has no name to be found by
        return False


def joined_labels(labels: Collection[str]) -> str | None:
    """A label that others show to be several, joined by "|": they are parts of it, or share one; None if none is."""
    joined = {label: {part.strip() for part in label.split(BETWEEN)} for label in sorted(labels) if BETWEEN in label}
    alone, counts = {*labels} - {*joined}, Counter(part for parts in joined.values() for part in parts)
    found = (name for name, parts in joined.items() if parts & alone or any(counts[part] > 1 for part in parts))
    return next(found, None)


def multi_hot(rows: Sequence[Iterable[int]], classes: int) -> np.ndarray:
    """N x C of 0 and 1 from the class indexes of each image, all below C."""
    labels = np.zeros((len(rows), classes), dtype=np.int64)
    for row, indexes in zip(labels, rows, strict=True):
        row[[*indexes]] = 1
    return labels


def images_of_classes(labels: np.ndarray, classes: int) -> np.ndarray:
    """The number of images of each class; `labels`: N, or N rows of C zeros and ones."""
    counts = np.bincount(labels, minlength=classes) if labels.ndim == 1 else (labels != 0).sum(0)
    return counts.astype(np.int64)


def count_in(values: Sequence[Any], where: str) -> int:
    """The number of classes that the labels of a data set tell: the length of its vectors, else the largest index."""
    rows = [_row(value, f"{where}[{i}]") for i, value in enumerate(values)]
    lengths = {len(row) for row in rows}
    if len(lengths) == 1 and min(lengths) > 1 and all(_is_vector(row, len(row)) for row in rows):
        return lengths.pop()
    return 1 + max((index for row in rows for index in row), default=0)


def as_rows(values: Sequence[Any], classes: int, where: str) -> np.ndarray:
    """N x C of 0 and 1 from labels that are class indexes, sequences of these, or vectors of C zeros and ones.

    With two classes [0, 1] is such a vector; a set is always of indexes. Raises InputError naming the first other one.
    """
    return np.stack([as_row(value, classes, f"{where}[{i}]") for i, value in enumerate(values)])


def as_row(value: Any, classes: int, where: str) -> np.ndarray:
    """The same of one label."""
    row = _row(value, where)
    if _is_vector(row, classes) and not isinstance(value, set | frozenset):
        return np.array(row, dtype=np.int64)
    if strange := [index for index in row if not 0 <= index < classes]:
        raise InputError(f"{where}: class {strange[0]} is out of range: 0 to {classes - 1}")
    return multi_hot([row], classes)[0]


def _is_vector(row: Sequence[int], classes: int) -> bool:
    return len(row) == classes > 1 and {*row} <= {0, 1}


def _row(value: Any, where: str) -> list[int]:
    """The whole numbers of a label; raises InputError if it holds something else."""
    if isinstance(value, np.ndarray) and value.dtype == object and not value.ndim:
        value = value.item()  # a set, as NumPy holds it
    told = value.tolist() if hasattr(value, "tolist") else value
    parts = [*told] if isinstance(told, list | tuple | set | frozenset) else [told]
    if not all(isinstance(part, int | float) and part == int(part) for part in parts):
        raise InputError(
            f"{where}: label {told!r:.80} must be a class index, a sequence of them, or one 0 or 1 for each class"
        )
    return [int(part) for part in parts]
