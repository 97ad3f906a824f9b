"""Image folders: `root/train/CLASS/*.jpg`, and the same in val (or validation, or valid) and test; or `root/CLASS/`."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from toolkit.data.sources.base import Source, SourceOptions
from toolkit.data.sources.files import index_files
from toolkit.data.sources.index import Found, Index
from toolkit.data.sources.layouts import (
    Layout,
    find_layout,
    find_split,
    holds_images,
    innermost,
    split_of,
    undoubled,
)
from toolkit.data.sources.listing import (
    MOST_KINDS,
    LeftOut,
    by_form,
    class_folders,
    composed,
    list_images,
    search_folder,
)
from toolkit.data.sources.unusable import why_not
from toolkit.system.errors import InputError
from toolkit.system.places import expanded
from toolkit.system.system_files import describe_system

log = logging.getLogger(__name__)


class FolderSource(Source):
    """A folder with `train/CLASS/`, or with class folders alone."""

    def recognizes(self, data_root: str) -> bool:
        layout = find_layout(expanded(data_root))
        return layout is not None and layout.kind in ("folders", "classes")

    def read(self, data_root: str, options: SourceOptions) -> Found:
        return read_folders(expanded(data_root), options.cache)


def read_folders(root: Path, cache: Path) -> Found:
    """The index of each split; raises InputError naming the folder at fault."""
    layout = find_layout(root)
    if layout is None or layout.kind not in ("folders", "classes"):
        raise InputError(why_not(root))
    _tell_more_splits(root, layout)
    groups = by_form(class_folders(layout.train))
    if len(groups) < 2:
        raise InputError(f"{layout.train}: needs a sub-folder per class, at least 2; it has {len(groups)}")
    classes = [names[0] for names in groups.values()]
    left_out = LeftOut()
    train = _read_split(root, layout.train, classes, cache, left_out)
    for label, name in enumerate(classes):
        if label not in train.labels:
            raise InputError(f"{layout.train / name}: class {name!r} has no images: {_held(layout.train, name)}")
    val, test = (_read_other(root, split, place, classes, cache, left_out) for split, place in _places(root, layout))
    if unused := _unused(root, layout):
        log.info("data      not used, because not named like a split: %s", ", ".join(f"{name}/" for name in unused))
    for line in left_out.lines():
        log.info("data      %s", line)
    return Found(train, val, test, classes)


def _places(root: Path, layout: Layout) -> list[tuple[str, Path | None]]:
    find_split(root, "train", layout.pattern)  # raises if there are two
    return [(split, find_split(root, split, layout.pattern)) for split in ("val", "test")]


def _unused(root: Path, layout: Layout) -> list[str]:
    """Folders beside those of the splits that are called like splits, or hold images or class folders."""
    if not layout.pattern:
        return []
    places = [find_split(root, split, layout.pattern) for split in ("train", "val", "test")]
    used = {place.name for place in places if place is not None} | {layout.train.relative_to(root).parts[0]}
    return [name for name in class_folders(root) if name not in used and (split_of(name) or _holds_some(root / name))]


def _holds_some(folder: Path) -> bool:
    """Whether there are images in a folder or its sub-folders, as far as they may be read."""
    try:
        return holds_images(folder) or any(holds_images(folder / name) for name in class_folders(folder))
    except OSError:
        return False


def _tell_more_splits(root: Path, layout: Layout) -> None:
    """Log that a data root is the folder of one split, whose other splits are then not used."""
    whole = find_layout(root.absolute().parent) if layout.kind == "classes" and split_of(root.name) else None
    if whole is not None and whole.kind == "folders" and whole.train == root.absolute():
        log.info(
            "data      %s is train/ of a data set: --data-root %s uses its other splits too", root, whole.train.parent
        )


def unlabeled_test(data_root: str) -> Path | None:
    """The folder of test images without class folders that belongs to a data set; None if there is none."""
    root = innermost(expanded(data_root))
    layout = find_layout(root)
    place = find_split(root, "test", layout.pattern) if layout and layout.kind == "folders" else None
    if layout is None or place is None or not place.is_dir():
        return None
    folder = undoubled(place, class_folders(layout.train))
    return folder if not class_folders(folder) and holds_images(folder) else None


def unlabeled(folder: Path) -> str:
    """That a test split without class folders is left out of the scores, and who predicts it."""
    count = len(search_folder(folder).images)
    if not count:
        return f"{folder.name}/ is left out: no images in it"
    return (
        f"{folder.name}/ is left out: {count} images without class folders are not scored; the recipe predicts them at "
        f"its end (test_predictions.csv), toolkit predict RUN {folder} at any time"
    )


def _read_other(
    root: Path, split: str, place: Path | None, classes: Sequence[str], cache: Path, left_out: LeftOut
) -> Index | None:
    """A split other than train; a class that is not in train would have no label."""
    if place is None:
        return None
    if not place.is_dir():
        raise InputError(f"{place}: must be a folder with a sub-folder per class")
    folder = undoubled(place, classes)
    known, there = {composed(name) for name in classes}, class_folders(folder)
    for name in there:
        if composed(name) not in known:
            flat = f"; {_one_folder(folder, name, split)}" if len(there) == 1 else ""
            raise InputError(f"{folder}: class {name!r} is not in train; a split has no other classes{flat}")
    if not there and split == "test":
        log.info("data      %s", unlabeled(folder))
        return None
    index = _read_split(root, folder, classes, cache, left_out)
    if not len(index):
        found = f"{len(search_folder(folder).images)} images, none in a class folder"
        raise InputError(f"{place}: {found}: move them into {folder}/CLASS/, or move {place.name}/ away")
    return index


def _one_folder(folder: Path, name: str, split: str) -> str:
    """What to do with a split whose images are all in one folder that is no class."""
    if split == "test":
        return f"images without labels belong into {folder} itself"
    count = len(search_folder(folder / name).images)
    return f"its {count} images are in no class folders: move them into {folder}/CLASS/, or move {folder.name}/ away"


def _held(folder: Path, name: str) -> str:
    """What a class folder without images holds, and what to do."""
    found = search_folder(folder / name)
    kinds = Counter(os.path.splitext(path)[1].lower() or "without an ending" for path in found.others)
    parts = [f"{count} {kind}" for kind, count in kinds.most_common(MOST_KINDS)]
    held = ", ".join(filter(None, [*parts, describe_system(found.system)])) or "nothing"
    return f"it holds {held}; put images there (.jpg, .png, .webp and others, see docs/data.md), or remove the folder"


def _read_split(root: Path, folder: Path, classes: Sequence[str], cache: Path, left_out: LeftOut) -> Index:
    """The images of one split; a class may have none."""
    names: list[str] = []
    labels: list[int] = []
    prefix = f"{folder.relative_to(root)}/" if folder != root else ""
    left_out.add_beside(folder, prefix)
    there = by_form(class_folders(folder))
    for label, name in enumerate(classes):
        for place in there.get(composed(name), ()):
            listing = list_images(folder / place)
            left_out.add(listing, f"{prefix}{place}/")
            names += [f"{prefix}{place}/{path}" for path in listing.images]
            labels += [label] * len(listing.images)
    return index_files(root, names, labels, cache)
