"""Lists manifests leniently: a row or a file that training would refuse becomes a finding."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from toolkit.data.sources.columns import read_columns
from toolkit.data.sources.findings import Finding, Listing
from toolkit.data.sources.label_rows import ADVICE, joined_labels
from toolkit.data.sources.labels import CLASS_NAMES
from toolkit.data.sources.manifest_rows import class_names, class_order, manifests_of, without_labels
from toolkit.data.sources.manifests import is_unlabeled, parse_rows
from toolkit.data.sources.multilabel_manifests import class_numbers, has_no_labels, parse_several
from toolkit.system.errors import InputError
from toolkit.system.system_files import is_never_data

L = TypeVar("L")


class Listed(NamedTuple):
    """The splits of manifests, the classes in the order of their numbers, and what messages call these."""

    splits: dict[str, Listing]
    classes: Sequence[str]
    names: Sequence[str]


def list_manifests(root: Path, label_column: str | None, several: bool, findings: list[Finding]) -> Listed:
    """The manifests of a folder; `several`: an image has any number of labels."""
    return (_list_several if several else _list_single)(root, label_column, findings)


def _list_single(root: Path, label_column: str | None, findings: list[Finding]) -> Listed:
    splits = {}
    for split, file in manifests_of(root).items():
        if split == "test" and _is_left_out(file, label_column):
            findings.append(Finding("test", file.name, "left out", without_labels(file)))
            continue
        images: list[tuple[str, tuple[str, ...]]] = []
        try:
            rows = parse_rows(file, split, label_column)
            images = [(name, (str(label),)) for name, label in _good(split, file, rows, findings)]
        except InputError as error:
            findings.append(Finding(split, file.name, "unreadable", str(error)))
        splits[split] = Listing(images, frozenset(name for _, names in images for name in names))
    taught = splits["train"].classes
    classes = sorted({name for listing in splits.values() for name in listing.classes}, key=_by_number)
    if not all(name.isdecimal() for name in taught):
        if joined := joined_labels(taught):
            findings.append(Finding("train", joined, "several labels", f"several of the labels: {ADVICE}"))
        _check_order(root, taught, findings)
        return Listed(splits, classes, classes)
    known = sorted(taught, key=int)
    findings += _gaps(known)
    if [*map(int, known)] != [*range(len(known))]:  # the names cannot be matched to labels
        return Listed(splits, classes, classes)
    return Listed(splits, classes, [*_names(root, known, findings), *classes[len(known) :]])


def _list_several(root: Path, label_column: str | None, findings: list[Finding]) -> Listed:
    places, splits, columns = manifests_of(root), {}, tuple[str, ...]()
    for split, file in places.items():
        images: list[tuple[str, tuple[str, ...]]] = []
        try:
            of_train = split == "train"
            if split == "test" and has_no_labels(read_columns(file), label_column, columns):
                findings.append(Finding("test", file.name, "left out", without_labels(file)))
                continue
            found, rows = parse_several(file, split, label_column, columns or None)
            columns = found if of_train else columns
            images = _good(split, file, rows, findings)
        except InputError as error:
            findings.append(Finding(split, file.name, "unreadable", str(error)))
        used = {name for _, names in images for name in names}
        splits[split] = Listing(images, frozenset({*used, *columns}))
    taught = splits["train"].classes
    try:
        order = [*class_numbers(root, places["train"], columns, {*taught})]
    except InputError as error:
        order = sorted(taught)
        if len(order) > 1:
            findings.append(Finding("train", CLASS_NAMES, "unreadable", str(error)))
    splits["train"] = splits["train"]._replace(classes=frozenset(order))
    extra = sorted({name for listing in splits.values() for name in listing.classes} - {*order}, key=_by_number)
    numbers = bool(order) and all(name.isdecimal() for name in order) and not columns
    names = _names(root, order, findings) if numbers else order
    return Listed(splits, [*order, *extra], [*names, *extra])


def _good(
    split: str, file: Path, rows: Iterable[tuple[str, L] | InputError], findings: list[Finding]
) -> list[tuple[str, L]]:
    """The rows of images; all others are findings."""
    good = []
    for row in rows:
        if isinstance(row, InputError):
            findings.append(Finding(split, file.name, "bad row", str(row)))
        elif is_never_data(row[0]):
            findings.append(Finding(split, row[0], "left out", "a system file"))
        else:
            good.append(row)
    return good


def _is_left_out(file: Path, label_column: str | None) -> bool:
    """Whether a test manifest has no labels."""
    try:
        return is_unlabeled(file, label_column)
    except InputError:  # listing it tells why
        return False


def _by_number(name: str) -> tuple[int, str]:
    """The order of labels: numbers by value, names by text."""
    return int(name) if name.isdecimal() else 0, name


def _names(root: Path, taught: Sequence[str], findings: list[Finding]) -> Sequence[str]:
    """Class names of the labels of train: from the file of names if it is valid, else the labels themselves."""
    try:
        return class_names(root, len(taught))
    except (OSError, InputError) as error:
        findings.append(Finding("train", CLASS_NAMES, "unreadable", str(error)))
        return taught


def _check_order(root: Path, taught: Collection[str], findings: list[Finding]) -> None:
    """A finding if the file that gives the order of the names of classes does not have just these."""
    try:
        class_order(root, {*taught})
    except (OSError, InputError) as error:
        findings.append(Finding("train", CLASS_NAMES, "unreadable", str(error)))


def _gaps(classes: Sequence[str]) -> Iterable[Finding]:
    """A finding if the labels of a manifest are not 0 ... C-1."""
    gap = next((label for label, name in enumerate(classes) if label != int(name)), None)
    if gap is not None:
        reason = f"labels must be 0 ... C-1, each used; {classes[-1]} is used, {gap} is not"
        yield Finding("train", str(gap), "class missing", reason)
