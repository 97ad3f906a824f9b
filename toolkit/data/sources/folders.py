"""Image folders: `root/train/CLASS/*.jpg`, and the same in val (or validation, or valid) and test."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from toolkit.data.sources.base import Source, SourceOptions
from toolkit.data.sources.files import index_files
from toolkit.data.sources.index import Found, Index
from toolkit.system.errors import InputError

log = logging.getLogger(__name__)

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif"})
TRAIN, VALIDATION, TEST = ("train",), ("val", "validation", "valid"), ("test",)
MOST_KINDS = 5  # of left out files that one log line lists
NOT_REGULAR = "is no regular file"


class FolderSource(Source):
    """A folder with `train/CLASS/`."""

    def recognizes(self, data_root: str) -> bool:
        train = Path(data_root).expanduser() / "train"
        return train.is_dir() and bool(class_folders(train))

    def read(self, data_root: str, options: SourceOptions) -> Found:
        return read_folders(Path(data_root).expanduser(), options.cache)


def find_split(root: Path, names: Iterable[str], suffix: str = "") -> Path | None:
    """The path of a split under any of its names, even a broken link; raises InputError if there are several."""
    places = [root / f"{name}{suffix}" for name in names if os.path.lexists(root / f"{name}{suffix}")]
    check_single(str(root), [place.name for place in places])
    return places[0] if places else None


def check_single(where: str, names: Sequence[str]) -> None:
    """Raise InputError if a split exists under several of its names: only one of them would be used."""
    if len(names) > 1:
        raise InputError(f"{where}: has {' and '.join(names)}, which are names of one and the same split: keep one")


def is_unsplit(root: Path) -> bool:
    """Whether a folder has no train of any kind: perhaps its sub-folders are classes."""
    return not (find_split(root, TRAIN) or find_split(root, TRAIN, ".csv") or any(root.glob("train*.tar")))


def read_folders(root: Path, cache: Path) -> Found:
    """The index of each split; raises InputError naming the folder at fault."""
    train_folder = find_split(root, TRAIN)
    if train_folder is None or not train_folder.is_dir():
        raise InputError(
            f"--data-root {root}: neither a folder train/ nor a file train.csv nor shards train*.tar in it"
            + _where_to_move(root)
        )
    classes = class_folders(train_folder)
    if len(classes) < 2:
        raise InputError(f"{train_folder}: needs a sub-folder per class, at least 2; it has {len(classes)}")
    left_out: list[str] = []
    train = _read_split(root, train_folder, classes, cache, left_out)
    val, test = (_read_other(root, find_split(root, names), classes, cache, left_out) for names in (VALIDATION, TEST))
    kinds = kinds_of(left_out)
    if kinds:
        counts = [f"{len(names)} {kind} ({names[0]})" for kind, names in kinds.items()]
        more = f", {len(counts) - MOST_KINDS} more kinds" if len(counts) > MOST_KINDS else ""
        log.info("data      %d files are left out: %s%s", len(left_out), ", ".join(counts[:MOST_KINDS]), more)
    return Found(train, val, test, classes)


def _where_to_move(root: Path) -> str:
    """A hint for a root whose folders can be the classes of train; empty if it has one, or names of splits."""
    inside = class_folders(root)
    if len(inside) < 2 or {*TRAIN, *VALIDATION, *TEST} & {*inside}:
        return ""
    more = ", ..." if len(inside) > 2 else ""
    return f"; it has {len(inside)} folders ({', '.join(inside[:2])}{more}): move them into {root}/train/"


def class_folders(folder: Path) -> tuple[str, ...]:
    """Sub-folders that are not hidden; broken links count, because classes would otherwise change their numbers."""
    return tuple(
        sorted(
            entry.name
            for entry in folder.iterdir()
            if not entry.name.startswith(".") and (entry.is_dir() or (_leads_nowhere(entry) and not is_image(entry)))
        )
    )


def _read_other(
    root: Path, folder: Path | None, classes: Sequence[str], cache: Path, left_out: list[str]
) -> Index | None:
    """A split other than train; it must have the same classes, otherwise its labels would mean other classes."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise InputError(f"{folder}: must be a folder with a sub-folder per class")
    for name in sorted({*class_folders(folder)} ^ {*classes}):
        where = "is missing" if name in classes else "is not in train"
        raise InputError(f"{folder}: class {name!r} {where}; every split needs the same class folders")
    return _read_split(root, folder, classes, cache, left_out)


def _read_split(root: Path, folder: Path, classes: Sequence[str], cache: Path, left_out: list[str]) -> Index:
    names: list[str] = []
    labels: list[int] = []
    left_out += [f"{folder.name}/{name}" for name in loose_files(folder)]
    for label, name in enumerate(classes):
        listing = list_images(folder / name)
        left_out += [f"{folder.name}/{name}/{path}" for path in listing.others]
        if not listing.images:
            raise InputError(f"{folder / name}: class {name!r} has no images ({', '.join(sorted(EXTENSIONS))})")
        names += [f"{folder.name}/{name}/{path}" for path in listing.images]
        labels += [label] * len(listing.images)
    return index_files(root, names, labels, cache)


def is_image(path: str | Path) -> bool:
    """Whether a file counts as an image, by its extension."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def loose_files(folder: Path) -> list[str]:
    """Names of the entries beside the class folders of a split, which belong to no class."""
    classes = {*class_folders(folder)}
    return sorted(name for name in os.listdir(folder) if name not in classes and not name.startswith("."))


def kinds_of(left_out: Iterable[str]) -> dict[str, list[str]]:
    """Group left out files, SPLIT/FILE or SPLIT/CLASS/FILE, by the reason or suffix; largest group first."""
    kinds: dict[str, list[str]] = {}
    for name in left_out:
        suffix = os.path.splitext(name)[1].lower()
        loose = name.count("/") == 1
        kinds.setdefault("in no class folder" if loose else suffix or "without a suffix", []).append(name)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


class Listing(NamedTuple):
    """The files under a folder, by relative path; `images` are in order, `others` have no image extension.

    `unreadable`: the reason for each folder that cannot be listed, or special file, such as a pipe, with an image
    extension. `dangling`: broken links without an image extension; the target may have been a folder of images.
    """

    images: list[str]
    others: list[str]
    unreadable: dict[str, str]
    dangling: list[str]


def list_images(folder: Path) -> Listing:
    """All files under a folder, as `search_folder`, when no image may be missing.

    Raises InputError naming a broken link that may be a folder, or an entry that cannot be read.
    """
    if _leads_nowhere(folder):
        raise InputError(_nowhere(folder))
    found = search_folder(folder)
    for name, reason in found.unreadable.items():
        raise InputError(f"{folder / name}: {reason}")
    for name in found.dangling:
        raise InputError(_nowhere(folder / name))
    return found


def search_folder(folder: str | Path) -> Listing:
    """All files under a folder except hidden ones; enters no folder twice, and no parent of the given folder."""
    given = Path(folder)
    named = () if ".." in given.parts else given.absolute().parents  # a folder before `..` may be inside
    entered = {_identity(parent) for parent in (*named, *given.resolve().parents)}
    found = Listing([], [], {}, [])
    todo = [(str(folder), "")]  # no recursion: Python limits its depth
    while todo:
        path, prefix = todo.pop()
        try:
            identity = _identity(path)
            if identity in entered:  # a link to a parent or to a folder already searched
                continue
            entered.add(identity)
            todo += reversed(_search_one(path, prefix, found))
        except OSError as error:
            found.unreadable[prefix.rstrip("/")] = f"the folder cannot be listed: {error.strerror}"
    found.images.sort(key=lambda path: path.split("/"))
    return found


def _search_one(path: str, prefix: str, found: Listing) -> list[tuple[str, str]]:
    """The sub-folders of a folder, each with the prefix of its files' names; adds the folder's files to `found`."""
    folders = []
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name)):
            name = prefix + entry.name
            if entry.name.startswith("."):
                continue
            # entry.is_dir() would raise for a link to itself
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                folders.append((entry.path, f"{name}/"))
            elif is_image(entry.name):
                if _is_special(entry):
                    found.unreadable[name] = NOT_REGULAR
                else:
                    found.images.append(name)
            elif entry.is_symlink() and _leads_nowhere(entry.path):
                found.dangling.append(name)
            else:
                found.others.append(name)
    return folders


def _leads_nowhere(path: str | Path) -> bool:
    """Whether the path is a link to a missing target; False for a circular link."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return os.path.islink(path)
    except OSError:
        return False
    return False


def _nowhere(path: str | Path) -> str:
    return f"{path}: is a link to nothing: mount what it leads to ({os.readlink(path)}), or remove the link"


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Whether it is a pipe, socket or device, or a link to one: a read could block forever. Free for a plain file."""
    return not entry.is_file(follow_symlinks=False) and os.path.exists(entry.path) and not os.path.isfile(entry.path)


def _identity(path: str | Path) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino
