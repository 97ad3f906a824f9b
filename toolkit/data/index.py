"""What images there are: one index per split, from folders or CSV manifests."""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.data import synthetic
from toolkit.errors import InputError
from toolkit.settings import SYNTHETIC, Settings

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
TRAIN, VALIDATION, TEST = ("train",), ("val", "validation"), ("test",)
DEFAULT_VAL_SPLIT = 0.1
MOST_CLASSES = 2**31


@dataclass(frozen=True)
class Index:
    """The images of one split: `paths[i]` is labelled `labels[i]`; the id of an image is i."""

    paths: tuple[Path, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, ids: np.ndarray) -> "Index":
        return Index(tuple(self.paths[i] for i in ids), self.labels[ids])


@dataclass(frozen=True)
class Splits:
    """A whole data set; `test` is None where there is none; a label's name is `classes[label]`."""

    train: Index
    val: Index
    test: Index | None
    classes: tuple[str, ...]
    source: str

    def fingerprint(self) -> str:
        """A hash of the names and labels of the training and validation images, in order."""
        digest = hashlib.sha256()
        for index in (self.train, self.val):
            for path, label in zip(index.paths, index.labels.tolist(), strict=True):
                digest.update(f"{'/'.join(path.parts[-3:])}\0{label}\n".encode())
        return digest.hexdigest()


def open_splits(settings: Settings, largest: int) -> Splits:
    """The data of `--data-root`; `largest` px is the native size of built-in images where none was asked for.

    Raises InputError that names the folder, file or row at fault.
    """
    if settings.data_root == SYNTHETIC:
        size = settings.synthetic_size or largest
        root = synthetic.prepare(size, settings.synthetic_count or synthetic.COUNT)
        source = f"built-in, {size} px"
    else:
        root = Path(settings.data_root).expanduser()
        source = str(root)
    if not root.is_dir():
        raise InputError(f"--data-root {settings.data_root}: no such folder")
    found = _read_manifests(root) if (root / "train.csv").is_file() else _read_folders(root)
    train, val, test, classes = found
    if val is None:
        train, val = _hold_out(train, settings.val_split or DEFAULT_VAL_SPLIT, settings.seed, classes)
    elif settings.val_split is not None:
        raise InputError(f"--val-split would be ignored: {source} has a validation split of its own")
    return Splits(train, val, test, classes, source)


def _first_existing(root: Path, names: Iterable[str], suffix: str = "") -> Path | None:
    return next((root / f"{name}{suffix}" for name in names if (root / f"{name}{suffix}").exists()), None)


def _read_folders(root: Path) -> tuple[Index, Index | None, Index | None, tuple[str, ...]]:
    train_folder = _first_existing(root, TRAIN)
    if train_folder is None or not train_folder.is_dir():
        raise InputError(f"--data-root {root}: neither a folder train/ nor a file train.csv in it")
    classes = tuple(sorted(entry.name for entry in train_folder.iterdir() if entry.is_dir() and _visible(entry)))
    if len(classes) < 2:
        raise InputError(f"{train_folder}: needs a sub-folder per class, at least 2; it has {len(classes)}")
    train = _read_split(train_folder, classes)
    val, test = (_read_other(_first_existing(root, names), classes) for names in (VALIDATION, TEST))
    return train, val, test, classes


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _read_other(folder: Path | None, classes: Sequence[str]) -> Index | None:
    """A split besides train; it must have the very same classes, or labels would mean different things."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise InputError(f"{folder}: must be a folder with a sub-folder per class")
    names = {entry.name for entry in folder.iterdir() if entry.is_dir() and _visible(entry)}
    for name in sorted(names ^ set(classes)):
        where = "is missing" if name in classes else "is not in train"
        raise InputError(f"{folder}: class {name!r} {where}; every split needs the same class folders")
    return _read_split(folder, classes)


def _read_split(folder: Path, classes: Sequence[str]) -> Index:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            path
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in EXTENSIONS
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
        if not found:
            raise InputError(f"{folder / name}: class {name!r} has no images ({', '.join(sorted(EXTENSIONS))})")
        paths += found
        labels += [label] * len(found)
    return Index(tuple(paths), np.array(labels, dtype=np.int64))


def _read_manifests(root: Path) -> tuple[Index, Index | None, Index | None, tuple[str, ...]]:
    """`train.csv`, and `val.csv`, `test.csv` where there are, of `filepath,label`; labels are 0 ... C-1."""
    train = _read_csv(root / "train.csv", None)
    used = np.unique(train.labels)
    count = len(used)
    gap = next((label for label, other in enumerate(used.tolist()) if label != other), None)
    if gap is not None or count < 2:
        found = f"{gap} is not used, {used[-1]} is" if gap is not None else f"there is only {count}"
        raise InputError(f"{root / 'train.csv'}: labels must be 0 ... C-1, at least 2, each used; {found}")
    val, test = (
        _read_csv(file, count) if file else None
        for file in (_first_existing(root, names, ".csv") for names in (VALIDATION, TEST))
    )
    if val is not None:
        absent = sorted(set(range(count)) - set(val.labels.tolist()))
        if absent:
            raise InputError(f"{root}: class {absent[0]} has no image in the validation manifest")
    return train, val, test, tuple(map(str, range(count)))


def _read_csv(file: Path, classes: int | None) -> Index:
    """The rows of a manifest; raises InputError naming file and line."""
    try:
        return _read_rows(file, classes)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: not a CSV file in UTF-8: {error}") from None


def _read_rows(file: Path, classes: int | None) -> Index:
    paths: list[Path] = []
    labels: list[int] = []
    with file.open(newline="", encoding="utf-8-sig") as handle:  # a byte-order mark is no part of the first name
        reader = csv.DictReader(handle)
        columns = reader.fieldnames or []
        lacking = [name for name in ("filepath", "label") if name not in columns]
        if lacking:
            raise InputError(f"{file}: needs the columns filepath,label; it has {','.join(columns) or 'none'}")
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            try:
                label = int(row["label"])
            except (TypeError, ValueError):
                raise InputError(f"{where}: label {row['label']!r} is not a whole number") from None
            if not 0 <= label < MOST_CLASSES or (classes is not None and label >= classes):
                limit = "0 or more" if classes is None else f"0 to {classes - 1}, as in train.csv"
                raise InputError(f"{where}: label {label} is out of range: {limit}")
            path = file.parent / (row["filepath"] or "")
            if not path.is_file():
                raise InputError(f"{where}: there is no file {path}")
            paths.append(path)
            labels.append(label)
    if not paths:
        raise InputError(f"{file}: no rows")
    return Index(tuple(paths), np.array(labels, dtype=np.int64))


def _hold_out(index: Index, share: float, seed: int, classes: Sequence[str]) -> tuple[Index, Index]:
    """Split once, by index, seeded, the same share of each class (at least one image)."""
    rng = np.random.default_rng((seed, 0))
    held: list[int] = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(index.labels == label)
        if len(members) < 2:
            raise InputError(f"--val-split: class {name!r} has {len(members)} image, too few to hold one out")
        count = min(len(members) - 1, max(1, round(share * len(members))))
        held += rng.permutation(members)[:count].tolist()
    mask = np.zeros(len(index), dtype=bool)
    mask[held] = True
    return index.take(np.flatnonzero(~mask)), index.take(np.flatnonzero(mask))
