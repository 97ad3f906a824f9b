"""Lists a data set leniently: faults that training would reject become findings, so that all of them are reported."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.config.choices import CACHE_GB
from toolkit.config.settings import make_settings
from toolkit.config.tables import CLASSIFICATION
from toolkit.data.sources.detect import find_source
from toolkit.data.sources.findings import Finding, Listing
from toolkit.data.sources.folders import FolderSource, unlabeled
from toolkit.data.sources.index import Found, Index
from toolkit.data.sources.label_rows import BETWEEN, has_several_labels, images_of_classes, multi_hot
from toolkit.data.sources.layouts import find_layout, find_split, innermost, undoubled
from toolkit.data.sources.listing import LeftOut, by_form, class_folders, composed, list_images
from toolkit.data.sources.manifests import ManifestSource
from toolkit.data.sources.splits import find_splits
from toolkit.data.sources.survey_manifests import list_manifests
from toolkit.system.errors import InputError
from toolkit.system.places import expanded
from toolkit.system.system_files import describe_system

BUILT_IN_PX = 64  # native size of the built-in images
ALONE_IN_CLASS = "1 image, too few to hold one out for validation"
ONE_OF_SEVERAL = "1 image: training or the validation that is held out will have none"
NO_IMAGE = "no image of train has it"


@dataclass(frozen=True)
class Survey:
    """The images of each split, whose labels index `classes`; `findings` are about the data set as a whole.

    Where an image may have several labels, they are rows of zeros and ones.
    """

    splits: dict[str, Index]
    classes: tuple[str, ...]
    source: str
    findings: tuple[Finding, ...] = ()

    def label_of(self, split: str, i: int) -> str:
        """The labels of an image in words."""
        label = self.splits[split].labels[i]
        if not label.ndim:
            return f"class {self.classes[label]}"
        return f"labels {BETWEEN.join(self.classes[at] for at in np.flatnonzero(label))}" if label.any() else "no label"


def survey(
    data: str,
    cache_dir: Path | None = None,
    cache_gb: float = CACHE_GB,
    label_column: str | None = None,
    hf_config: str | None = None,
    task: str = CLASSIFICATION,
) -> Survey:
    """List a data set: folders and manifests leniently, other sources as training does, which may raise InputError.

    `task`: tells whether an image has one label or any number of them.
    """
    if not data.strip():
        raise InputError("the path of the data set is empty")
    root, several = innermost(expanded(data)), task != CLASSIFICATION and has_several_labels(task)
    source = find_source(root)
    findings: list[Finding] = []
    if isinstance(source, ManifestSource):
        listings, classes, names = list_manifests(root, label_column, several, findings)
    elif isinstance(source, FolderSource):
        listings = _list_splits(root, findings)
        classes = names = sorted({name for listing in listings.values() for name in listing.classes})
    else:
        values = {"data_root": data, "cache_dir": cache_dir, "cache_gb": cache_gb, "task": task}
        chosen = {"label_column": label_column, "hf_config": hf_config}
        return _as_trained(find_splits(make_settings(values | chosen), BUILT_IN_PX))
    findings += _compare_classes(listings, classes, several)
    number = {name: label for label, name in enumerate(classes)}
    indices = {}
    for split, listing in listings.items():
        rows = [[number[name] for name in labels] for _, labels in listing.images]
        labels = multi_hot(rows, len(classes)) if several else [row[0] for row in rows]
        indices[split] = Index.of_files(root, [file for file, _ in listing.images], labels)
    return Survey(indices, tuple(names), str(root), tuple(findings))


def _list_splits(root: Path, findings: list[Finding]) -> dict[str, Listing]:
    """The splits of a folder of class folders, or of a folder for each split."""
    layout = find_layout(root)
    assert layout is not None
    names = [group[0] for group in by_form(class_folders(layout.train)).values()]
    listings = {"train": _list_folders("train", root, layout.train, names, findings)}
    for split in ("val", "test"):
        place = find_split(root, split, layout.pattern)
        if place is not None and not place.is_dir():
            findings.append(Finding(split, place.name, "unreadable", "must be a folder with a sub-folder per class"))
            listings[split] = Listing([], frozenset())
        elif place is not None:
            folder = undoubled(place, names)
            if split == "test" and not class_folders(folder):
                findings.append(Finding(split, folder.name, "left out", unlabeled(folder)))
            else:
                listings[split] = _list_folders(split, root, folder, names, findings)
    return listings


def _as_trained(found: Found) -> Survey:
    """The survey of a data set that was read strictly; checks only that each class has enough images."""
    splits, several = found.splits(), found.train.labels.ndim > 1
    counts = images_of_classes(found.train.labels, len(found.classes))
    few = {0: NO_IMAGE} if several else {} if "val" in splits else {1: ALONE_IN_CLASS}
    named = zip(found.classes, counts.tolist(), strict=True)
    findings = tuple(Finding("train", name, "class missing", few[count]) for name, count in named if count in few)
    return Survey(splits, tuple(found.classes), found.name, findings)


def _list_folders(split: str, root: Path, folder: Path, known: Sequence[str], findings: list[Finding]) -> Listing:
    """The images of one split; `known`: the classes of train, whose spelling counts."""
    images: list[tuple[str, tuple[str, ...]]] = []
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
        images += [(f"{prefix}{place}/{file}", (name,)) for file in listing.images]
        left_out.add(listing, f"{prefix}{place}/")
    if left_out.system:
        findings.append(Finding(split, left_out.system[0], "left out", describe_system(left_out.system)))
    for kind, files in left_out.kinds().items():
        findings.append(Finding(split, files[0], "left out", f"no image of a class; {len(files)} {kind}"))
    return Listing(images, frozenset(names.values()))


def _compare_classes(listings: dict[str, Listing], classes: Sequence[str], several: bool) -> Iterable[Finding]:
    """Findings on classes that are not in every split; metrics would not be comparable with training."""
    counts = {
        split: Counter(name for _, names in listing.images for name in names) for split, listing in listings.items()
    }
    taught = listings["train"].classes
    if len(taught) < 2:
        yield Finding("train", "", "class missing", f"needs at least 2 classes; it has {len(taught)}")
    for name in classes:
        count = counts["train"][name]
        if name in taught and not count:
            yield Finding("train", name, "class missing", NO_IMAGE if several else "its folder has no images")
        if name in taught and count == 1 and "val" not in listings:
            kind, reason = ("class untested", ONE_OF_SEVERAL) if several else ("class missing", ALONE_IN_CLASS)
            yield Finding("train", name, kind, reason)
        for split in [split for split in listings if split != "train"]:
            if name not in taught and name in listings[split].classes:
                yield Finding(split, name, "class extra", f"{counts[split][name]} images of a class not in train")
            elif name in taught and not counts[split][name]:
                yield Finding(split, name, "class untested", "no images of this class")
