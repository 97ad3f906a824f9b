"""Lists a data set leniently: faults that training would reject become findings, so that all of them are reported."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from toolkit.config.choices import CACHE_GB
from toolkit.config.settings import make_settings
from toolkit.data.sources.detect import find_source
from toolkit.data.sources.folders import (
    TEST,
    TRAIN,
    VALIDATION,
    FolderSource,
    class_folders,
    find_split,
    kinds_of,
    list_images,
    loose_files,
)
from toolkit.data.sources.index import Found, Index
from toolkit.data.sources.labels import CLASS_NAMES, named
from toolkit.data.sources.manifests import ManifestSource, parse_rows
from toolkit.data.sources.splits import find_splits
from toolkit.system.errors import InputError

SPLITS = {"train": TRAIN, "val": VALIDATION, "test": TEST}
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


def survey(data: str, cache_dir: Path | None = None, cache_gb: float = CACHE_GB) -> Survey:
    """List a data set: folders and manifests leniently, other sources as training does, which may raise InputError."""
    root = Path(data).expanduser()
    findings: list[Finding] = []
    source = find_source(root)
    if not isinstance(source, ManifestSource | FolderSource):
        values = {"data_root": data, "cache_dir": cache_dir, "cache_gb": cache_gb}
        return _as_trained(find_splits(make_settings(values), BUILT_IN_PX))
    suffix = ".csv" if isinstance(source, ManifestSource) else ""
    read = _list_manifest if suffix else _list_folders
    places = {split: find_split(root, names, suffix) for split, names in SPLITS.items()}
    listings = {split: read(split, place, findings) for split, place in places.items() if place is not None}
    names = {name for listing in listings.values() for name in listing.classes}
    classes = sorted(names, key=int if suffix else None)
    findings += _compare_classes(listings, classes, test_may_lack=bool(suffix))
    number = {name: label for label, name in enumerate(classes)}
    indices = {
        split: Index.of_files(root, [file for file, _ in listing.images], [number[name] for _, name in listing.images])
        for split, listing in listings.items()
    }
    if suffix:
        taught = sorted(listings["train"].classes, key=int)
        findings += _gaps(taught)
        if [*map(int, taught)] == [*range(len(taught))]:  # otherwise the names cannot be matched to labels
            classes = [*_names(root / CLASS_NAMES, taught, findings), *classes[len(taught) :]]
    return Survey(indices, tuple(classes), str(root), tuple(findings))


def _as_trained(found: Found) -> Survey:
    """The survey of a data set that was read strictly; checks only that each class has an image to hold out."""
    splits = found.splits()
    counts = np.bincount(found.train.labels, minlength=len(found.classes)).tolist()
    alone = [] if "val" in splits else [name for name, n in zip(found.classes, counts, strict=True) if n == 1]
    findings = tuple(Finding("train", name, "class missing", ALONE_IN_CLASS) for name in alone)
    return Survey(splits, tuple(found.classes), found.name, findings)


def _list_folders(split: str, folder: Path, findings: list[Finding]) -> _Listing:
    if not folder.is_dir():
        findings.append(Finding(split, folder.name, "unreadable", "must be a folder with a sub-folder per class"))
        return _Listing([], frozenset())
    images: list[tuple[str, str]] = []
    names = class_folders(folder)
    left_out = [f"{folder.name}/{name}" for name in loose_files(folder)]
    for name in names:
        try:
            listing = list_images(folder / name)
        except (OSError, InputError) as error:
            findings.append(Finding(split, name, "unreadable", str(error)))
            continue
        images += [(f"{folder.name}/{name}/{file}", name) for file in listing.images]
        left_out += [f"{folder.name}/{name}/{file}" for file in listing.others]
    for kind, files in kinds_of(left_out).items():
        findings.append(Finding(split, files[0], "left out", f"no image of a class; {len(files)} {kind}"))
    return _Listing(images, frozenset(names))


def _list_manifest(split: str, file: Path, findings: list[Finding]) -> _Listing:
    images: list[tuple[str, str]] = []
    try:
        for row in parse_rows(file, None):
            if isinstance(row, InputError):
                findings.append(Finding(split, file.name, "bad row", str(row)))
            else:
                images.append((row[0], str(row[1])))
    except InputError as error:
        findings.append(Finding(split, file.name, "unreadable", str(error)))
    return _Listing(images, frozenset(name for _, name in images))


def _names(file: Path, taught: Sequence[str], findings: list[Finding]) -> Sequence[str]:
    """Class names of the labels of train: from the file of names if it is valid, else the labels themselves."""
    try:
        return named(file.read_bytes() if file.is_file() else None, len(taught), str(file))
    except (OSError, InputError) as error:
        findings.append(Finding("train", file.name, "unreadable", str(error)))
        return taught


def _compare_classes(listings: dict[str, _Listing], classes: Sequence[str], test_may_lack: bool) -> Iterable[Finding]:
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
                untested = split == "test" and test_may_lack
                yield Finding(split, name, "class untested" if untested else "class missing", "no images of this class")


def _gaps(classes: Sequence[str]) -> Iterable[Finding]:
    """A finding if the labels of a manifest are not 0 ... C-1."""
    gap = next((label for label, name in enumerate(classes) if label != int(name)), None)
    if gap is not None:
        reason = f"labels must be 0 ... C-1, each used; {classes[-1]} is used, {gap} is not"
        yield Finding("train", str(gap), "class missing", reason)
