"""`root/train/CLASS/*.jpg`, and val or validation, and test."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from toolkit.data.index import Found, Index
from toolkit.data.sources.files import index_files
from toolkit.errors import InputError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
TRAIN, VALIDATION, TEST = ("train",), ("val", "validation"), ("test",)


def first_existing(root: Path, names: Iterable[str], suffix: str = "") -> Path | None:
    return next((root / f"{name}{suffix}" for name in names if (root / f"{name}{suffix}").exists()), None)


def read_folders(root: Path, cache: Path) -> Found:
    """The index of each split; raises InputError naming the folder at fault."""
    train_folder = first_existing(root, TRAIN)
    if train_folder is None or not train_folder.is_dir():
        raise InputError(
            f"--data-root {root}: neither a folder train/ nor a file train.csv nor shards train*.tar in it"
        )
    classes = class_folders(train_folder)
    if len(classes) < 2:
        raise InputError(f"{train_folder}: needs a sub-folder per class, at least 2; it has {len(classes)}")
    train = _read_split(root, train_folder, classes, cache)
    val, test = (_read_other(root, first_existing(root, names), classes, cache) for names in (VALIDATION, TEST))
    return Found(train, val, test, classes)


def class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _read_other(root: Path, folder: Path | None, classes: Sequence[str], cache: Path) -> Index | None:
    """A split besides train; it must have the very same classes, or labels would mean different things."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise InputError(f"{folder}: must be a folder with a sub-folder per class")
    for name in sorted({*class_folders(folder)} ^ {*classes}):
        where = "is missing" if name in classes else "is not in train"
        raise InputError(f"{folder}: class {name!r} {where}; every split needs the same class folders")
    return _read_split(root, folder, classes, cache)


def _read_split(root: Path, folder: Path, classes: Sequence[str], cache: Path) -> Index:
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(image_files(folder / name), key=lambda path: path.split("/"))
        if not found:
            raise InputError(f"{folder / name}: class {name!r} has no images ({', '.join(sorted(EXTENSIONS))})")
        names += [f"{folder.name}/{name}/{path}" for path in found]
        labels += [label] * len(found)
    return index_files(root, names, labels, cache)


def image_files(folder: Path) -> Iterator[str]:
    """Paths of the images under a folder, relative to it: hidden ones left out, no folder entered twice or upwards."""
    entered = {_identity(parent) for parent in (*folder.absolute().parents, *folder.resolve().parents)}

    def walk(path: str, prefix: str) -> Iterator[str]:
        identity = _identity(path)
        if identity in entered:  # a link to a folder above or beside
            return
        entered.add(identity)
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name)):
                if entry.name.startswith("."):
                    continue
                # of a link that leads to itself, entry.is_dir() would raise
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    yield from walk(entry.path, f"{prefix}{entry.name}/")
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    if _is_special(entry):
                        raise InputError(f"{entry.path}: is no regular file")
                    yield prefix + entry.name

    yield from walk(str(folder), "")


def _is_special(entry: os.DirEntry[str]) -> bool:
    """A pipe, socket or device, or a link to one: to read it could wait for ever. Costs nothing for a plain file."""
    return not entry.is_file(follow_symlinks=False) and os.path.exists(entry.path) and not os.path.isfile(entry.path)


def _identity(path: str | Path) -> tuple[int, int]:
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino
