"""Lists a data set leniently: faults that training would reject become findings, so that all of them are reported."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from toolkit.config.choices import CACHE_GB
from toolkit.config.settings import make_settings
from toolkit.data.sources.detect import find_source
from toolkit.data.sources.folders import FolderSource, unlabeled
from toolkit.data.sources.index import Found, Index
from toolkit.data.sources.labels import CLASS_NAMES
from toolkit.data.sources.layouts import find_layout, find_split, innermost, undoubled
from toolkit.data.sources.listing import LeftOut, by_form, class_folders, composed, list_images
from toolkit.data.sources.manifest_rows import class_names, class_order, manifests_of, without_labels
from toolkit.data.sources.manifests import ManifestSource, is_unlabeled, parse_rows
from toolkit.data.sources.splits import find_splits
from toolkit.system.errors import InputError
from toolkit.system.places import expanded
from toolkit.system.system_files import describe_system, is_never_data

BUILT_IN_PX = 64  # native size of the built-in images
ALONE_IN_CLASS = "1 image, too few to hold one out for validation"


class Finding(NamedTuple):
    """A fault; `name` is that of an image, a class or a manifest."""

    split: str
    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """The images of each split, whose labels index `classes`; `findings` are about the data set as a whole."""

    splits: dict[str, Index]
    classes: tuple[str, ...]
    source: str
    findings: tuple[Finding, ...] = ()


class _Listing(NamedTuple):
    """A split as stored: (file, class) of each image, and all classes that it names."""

    images: list[tuple[str, str]]
    classes: frozenset[str]


def survey(
    data: str,
    cache_dir: Path | None = None,
    cache_gb: float = CACHE_GB,
    label_column: str | None = None,
    hf_config: str | None = None,
) -> Survey:
    """List a data set: folders and manifests leniently, other sources as training does, which may raise InputError."""
    if not data.strip():
        raise InputError("the path of the data set is empty")
    root = innermost(expanded(data))
    source = find_source(root)
    findings: list[Finding] = []
    if isinstance(source, ManifestSource):
        listings = {
            split: _list_manifest(split, file, label_column, findings)
            for split, file in manifests_of(root).items()
            if not (split == "test" and _is_left_out(file, label_column, findings))
        }
        taught = listings["train"].classes
        numbers = all(name.isdecimal() for name in taught)
        classes = sorted({name for listing in listings.values() for name in listing.classes}, key=_by_number)
        if not numbers:
            _check_order(root, taught, findings)
    elif isinstance(source, FolderSource):
        listings, numbers = _list_splits(root, findings), False
        classes = sorted({name for listing in listings.values() for name in listing.classes})
    else:
        values = {"data_root": data, "cache_dir": cache_dir, "cache_gb": cache_gb}
        chosen = {"label_column": label_column, "hf_config": hf_config}
        return _as_trained(find_splits(make_settings(values | chosen), BUILT_IN_PX))
    findings += _compare_classes(listings, classes)
    number = {name: label for label, name in enumerate(classes)}
    indices = {
        split: Index.of_files(root, [file for file, _ in listing.images], [number[name] for _, name in listing.images])
        for split, listing in listings.items()
    }
    if numbers:
        known = sorted(taught, key=int)
        findings += _gaps(known)
        if [*map(int, known)] == [*range(len(known))]:  # otherwise the names cannot be matched to labels
            classes = [*_names(root, known, findings), *classes[len(known) :]]
    return Survey(indices, tuple(classes), str(root), tuple(findings))


def _by_number(name: str) -> tuple[int, str]:
    """The order of labels: numbers by value, names by text."""
    return int(name) if name.isdecimal() else 0, name


def _list_splits(root: Path, findings: list[Finding]) -> dict[str, _Listing]:
    """The splits of a folder of class folders, or of a folder for each split."""
    layout = find_layout(root)
    assert layout is not None
    names = [group[0] for group in by_form(class_folders(layout.train)).values()]
    listings = {"train": _list_folders("train", root, layout.train, names, findings)}
    for split in ("val", "test"):
        place = find_split(root, split, layout.pattern)
        if place is not None and not place.is_dir():
            findings.append(Finding(split, place.name, "unreadable", "must be a folder with a sub-folder per class"))
            listings[split] = _Listing([], frozenset())
        elif place is not None:
            folder = undoubled(place, names)
            if split == "test" and not class_folders(folder):
                findings.append(Finding(split, folder.name, "left out", unlabeled(folder)))
            else:
                listings[split] = _list_folders(split, root, folder, names, findings)
    return listings


def _as_trained(found: Found) -> Survey:
    """The survey of a data set that was read strictly; checks only that each class has an image to hold out."""
    splits = found.splits()
    counts = np.bincount(found.train.labels, minlength=len(found.classes)).tolist()
    alone = [] if "val" in splits else [name for name, n in zip(found.classes, counts, strict=True) if n == 1]
    findings = tuple(Finding("train", name, "class missing", ALONE_IN_CLASS) for name in alone)
    return Survey(splits, tuple(found.classes), found.name, findings)


def _list_folders(split: str, root: Path, folder: Path, known: Sequence[str], findings: list[Finding]) -> _Listing:
    """The images of one split; `known`: the classes of train, whose spelling counts."""
    images: list[tuple[str, str]] = []
    spelling = {composed(name): name for name in known}
    prefix = f"{folder.relative_to(root)}/" if folder != root else ""
    names = {place: spelling.get(composed(place), place) for place in class_folders(folder)}
    left_out = LeftOut()
    left_out.add_beside(folder, prefix)
    for place, name in names.items():
        try:
            listing = list_images(folder / place)
        except (OSError, InputError) as error:
            findings.append(Finding(split, name, "unreadable", str(error)))
            continue
        images += [(f"{prefix}{place}/{file}", name) for file in listing.images]
        left_out.add(listing, f"{prefix}{place}/")
    if left_out.system:
        findings.append(Finding(split, left_out.system[0], "left out", describe_system(left_out.system)))
    for kind, files in left_out.kinds().items():
        findings.append(Finding(split, files[0], "left out", f"no image of a class; {len(files)} {kind}"))
    return _Listing(images, frozenset(names.values()))


def _is_left_out(file: Path, label_column: str | None, findings: list[Finding]) -> bool:
    """Whether a test manifest has no labels; that is a finding."""
    try:
        left_out = is_unlabeled(file, label_column)
    except InputError:  # listing it tells why
        return False
    if left_out:
        findings.append(Finding("test", file.name, "left out", without_labels(file)))
    return left_out


def _list_manifest(split: str, file: Path, label_column: str | None, findings: list[Finding]) -> _Listing:
    images: list[tuple[str, str]] = []
    try:
        for row in parse_rows(file, split, label_column):
            if isinstance(row, InputError):
                findings.append(Finding(split, file.name, "bad row", str(row)))
            elif is_never_data(row[0]):
                findings.append(Finding(split, row[0], "left out", "a system file"))
            else:
                images.append((row[0], str(row[1])))
    except InputError as error:
        findings.append(Finding(split, file.name, "unreadable", str(error)))
    return _Listing(images, frozenset(name for _, name in images))


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


def _compare_classes(listings: dict[str, _Listing], classes: Sequence[str]) -> Iterable[Finding]:
    """Findings on classes that are not in every split; metrics would not be comparable with training."""
    counts = {split: Counter(name for _, name in listing.images) for split, listing in listings.items()}
    taught = listings["train"].classes
    if len(taught) < 2:
        yield Finding("train", "", "class missing", f"needs at least 2 classes; it has {len(taught)}")
    for name in classes:
        count = counts["train"][name]
        if name in taught and not count:
            yield Finding("train", name, "class missing", "its folder has no images")
        if name in taught and count == 1 and "val" not in listings:
            yield Finding("train", name, "class missing", ALONE_IN_CLASS)
        for split in [split for split in listings if split != "train"]:
            if name not in taught and name in listings[split].classes:
                yield Finding(split, name, "class extra", f"{counts[split][name]} images of a class not in train")
            elif name in taught and not counts[split][name]:
                yield Finding(split, name, "class untested", "no images of this class")


def _gaps(classes: Sequence[str]) -> Iterable[Finding]:
    """A finding if the labels of a manifest are not 0 ... C-1."""
    gap = next((label for label, name in enumerate(classes) if label != int(name)), None)
    if gap is not None:
        reason = f"labels must be 0 ... C-1, each used; {classes[-1]} is used, {gap} is not"
        yield Finding("train", str(gap), "class missing", reason)
