"""Checks of labels given as numbers, not names: they must be 0 ... C-1, each used."""

import re
from collections.abc import Sequence

import numpy as np

from toolkit.data.sources.index import Found, Index
from toolkit.data.sources.label_rows import images_of_classes
from toolkit.system.errors import InputError

MOST_CLASSES = 2**31
CLASS_NAMES = "class_names.txt"  # beside manifests or shards: one name per line, in the order of the labels


def parse_label(text: str | None, where: str) -> int:
    """Parse a label; raises InputError whose message begins with `where`."""
    if text is None or not re.fullmatch(r"\s*-?[0-9]{1,40}\s*", text):  # int() accepts 1_0 and digits of other scripts
        raise InputError(f"{where}: label {text and text[:40]!r} is not a whole number")
    label = int(text)
    check_range(label, None, where)
    return label


def is_number(text: str | None) -> bool:
    """Whether a label is a number, of whatever kind, or nothing, rather than the name of a class."""
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def check_range(label: int, classes: int | None, where: str, train: str = "train") -> None:
    """Raise InputError if a label is out of range; `classes`: the number of classes in `train`, None if unknown."""
    if not 0 <= label < (MOST_CLASSES if classes is None else classes):
        limit = "0 or more" if classes is None else f"0 to {classes - 1}, as in {train}"
        raise InputError(f"{where}: label {label} is out of range: {limit}")


def count_classes(train: Index, where: str) -> int:
    """The number of classes; raises InputError if train skips a label or has fewer than 2 classes."""
    used = np.unique(train.labels)
    if train.labels.dtype.kind == "f":
        part = next(label for label in used.tolist() if not label.is_integer())
        raise InputError(f"{where}: label {part:g} is not a whole number")
    if len(used) and used[0] < 0:
        first = int(np.flatnonzero(train.labels < 0)[0])
        check_range(int(train.labels[first]), None, f"{where}: {train.names[first]}")
    gap = next((label for label, other in enumerate(used.tolist()) if label != other), None)
    if gap is not None or len(used) < 2:
        found = f"{gap} is not used, {used[-1]} is" if gap is not None else f"there is only {len(used)}"
        raise InputError(f"{where}: labels must be 0 ... C-1, at least 2, each used; {found}")
    return len(used)


def check_known(split: Index, classes: int, where: str) -> None:
    """Raise InputError naming the first image whose label is not in train."""
    strange = np.flatnonzero(split.labels >= classes)
    if len(strange):
        check_range(int(split.labels[strange[0]]), classes, f"{where}: {split.names[int(strange[0])]}")


def without_images(split: Index, classes: Sequence[str]) -> list[str]:
    """The classes that have no image in a split."""
    counts = images_of_classes(split.labels, len(classes)).tolist()
    return [name for name, count in zip(classes, counts, strict=True) if not count]


def check_in_range(split: Index, classes: int, where: str) -> None:
    """Raise InputError naming the first image whose label is not 0 ... C-1, or whose row is not of C numbers."""
    if split.labels.ndim > 1:
        if split.labels.shape[1] != classes:
            raise InputError(f"{where}: labels of {split.labels.shape[1]} numbers, for {classes} classes")
        return
    strange = np.flatnonzero((split.labels < 0) | (split.labels >= classes))
    if len(strange):
        check_range(int(split.labels[strange[0]]), classes, f"{where}, {split.names[int(strange[0])]}")


def check_splits(found: Found, where: str) -> Found:
    """Return `found`; raises InputError unless the labels of every split are those of train, and each has a name.

    Of rows of numbers, which a task of several labels wants, only their length is checked.
    """
    several, names = found.train.labels.ndim > 1, found.classes
    for split, index in found.splits().items():
        if not len(index):
            raise InputError(f"{where}: {split} has no images")
        if index.labels.shape[1:] != found.train.labels.shape[1:]:
            raise InputError(f"{where}: labels of {split} and of train are of different forms")
    count = found.train.labels.shape[1] if several else count_classes(found.train, f"{where}: train")
    if count > len(names):
        raise InputError(f"{where}: labels of train are 0 to {count - 1}, but only {len(names)} classes have names")
    if count < len(names):
        raise InputError(f"{where}: no image of class {names[count]!r} in train")
    for split, index in found.splits().items():
        check_in_range(index, count, f"{where}: {split}")
    return found


def named(content: bytes | None, count: int, where: str) -> tuple[str, ...]:
    """Class names from the content of a file of names; the labels as text if `content` is None (no such file)."""
    if content is None:
        return tuple(map(str, range(count)))
    try:
        names = [name.strip() for name in content.decode("utf-8-sig").splitlines() if name.strip()]
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text") from None
    if len(names) != count or len({*names}) != count:
        raise InputError(f"{where}: {len({*names})} different names; it needs one a line for each of {count} classes")
    return tuple(names)
