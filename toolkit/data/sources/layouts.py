"""How a folder is laid out: which of its files and folders are the splits, and what it holds if there are none."""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from toolkit.data.sources.columns import read_cells, read_columns
from toolkit.data.sources.listing import class_folders, composed, is_image
from toolkit.system.errors import InputError
from toolkit.system.system_files import is_system

TRAIN, VALIDATION, TEST = ("train",), ("val", "validation", "valid"), ("test",)
NAMES = {"train": TRAIN, "val": VALIDATION, "test": TEST}
MORE = {"train": ("training",), "val": ("dev",), "test": ("testing",)}  # used where there are none of NAMES
WORD = re.compile(r"(?<![a-z])(?:(train(?:ing)?)|(val(?:id|idation)?|dev)|(test(?:ing)?))(?![a-z])")
ALONE = "{}"  # the pattern of a name that is nothing but the word for its split
TABLES = (".csv", ".tsv")
DEEPEST = 3  # folders around a data set
LOOKED_AT = 20  # rows of a table
MOST_NAMED = 3  # things of a kind that a message lists
ARCHIVES = (".zip", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz")

Kind = Literal["manifest", "folders", "shards", "classes"]


class Layout(NamedTuple):
    """`train`: the file or folder of the training images; the root itself where its sub-folders are the classes.

    `pattern`: how a split's file or folder is called, with {} for train, val or test; empty if there is only one.
    """

    kind: Kind
    train: Path
    pattern: str = ""


def split_of(name: str) -> tuple[str, str] | None:
    """The split that a name speaks of, and its pattern: `seg_train` -> train, `seg_{}`. None if of none, or several."""
    found = list(WORD.finditer(name.lower()))
    if len(found) != 1:
        return None
    (match,) = found
    split = ("train", "val", "test")[(match.lastindex or 1) - 1]
    return split, f"{name.lower()[: match.start()]}{{}}{name.lower()[match.end() :]}"


def spellings(split: str, names: Iterable[str], pattern: str = ALONE, suffix: str = "") -> list[str]:
    """The names of a split among others: as in NAMES, else in any case, or as in MORE."""
    there = {*names}
    usual = [pattern.replace("{}", word) + suffix for word in NAMES[split]]
    more = {*usual, *(pattern.replace("{}", word) + suffix for word in MORE[split])}
    return [name for name in usual if name in there] or sorted(name for name in there if name.lower() in more)


def find_split(root: Path, split: str, pattern: str = ALONE, suffix: str = "") -> Path | None:
    """The path of a split under any of its names, even a broken link; raises InputError if there are several."""
    if not pattern:
        return None
    names = [pattern.replace("{}", word) + suffix for word in NAMES[split]]
    found = [name for name in names if os.path.lexists(root / name)]  # some file systems ignore the case
    found = found or spellings(split, os.listdir(root), pattern, suffix)
    check_single(str(root), found)
    return root / found[0] if found else None


def check_single(where: str, names: Sequence[str]) -> None:
    """Raise InputError if a split exists under several of its names: only one of them would be used."""
    if len(names) > 1:
        raise InputError(f"{where}: has {' and '.join(names)}, which are names of one and the same split: keep one")


def undoubled(folder: Path, classes: Sequence[str] = ()) -> Path:
    """The innermost folder of a split: unpacked archives have train/train/. `classes`: names of no such folder."""
    while True:
        inside = class_folders(folder)
        outer, inner = split_of(folder.name), split_of(inside[0]) if len(inside) == 1 else None
        if not (outer and inner and outer[0] == inner[0]) or inside[0] in classes or not (folder / inside[0]).is_dir():
            return folder
        folder = folder / inside[0]


def find_layout(root: Path) -> Layout | None:
    """The layout of a folder, by names and the first lines of CSV files; None if it is none that is read.

    Raises OSError where a folder cannot be entered.
    """
    if not root.is_dir():
        return None
    train = root / "train"
    if (root / "train.csv").is_file():
        return Layout("manifest", root / "train.csv", ALONE)
    if train.is_dir() and class_folders(inner := undoubled(train)):
        return Layout("folders", inner, ALONE)
    if any((train if train.is_dir() else root).glob("[!.]*.tar" if train.is_dir() else "train*.tar")):
        return Layout("shards", train, ALONE)
    return next(_other_layouts(root, [name for name in sorted(os.listdir(root)) if not is_system(name)]), None)


def _other_layouts(root: Path, names: Sequence[str]) -> Iterator[Layout]:
    """Layouts with other names than the plain ones, the likeliest first."""
    tables = {name: os.path.splitext(name)[0] for name in names if name.lower().endswith(TABLES)}
    spoken = {name: split_of(tables.get(name, name)) for name in names}
    of_train = {name: found[1] for name, found in spoken.items() if found and found[0] == "train"}
    for alone in (True, False):
        some = [name for name, pattern in of_train.items() if (pattern == ALONE) == alone]
        sheets = [name for name in some if name in tables and (root / name).is_file()]
        if alone and sheets:
            yield Layout("manifest", root / sheets[0], ALONE)
        folders = [root / name for name in some if (root / name).is_dir()]
        inner = [undoubled(folder) for folder in folders]
        taught = [place for place in zip(folders, inner, strict=True) if len(class_folders(place[1])) >= 2 - alone]
        if taught and (alone or len(taught) == 1):
            yield Layout("folders", taught[0][1], of_train[taught[0][0].name])
        tars = alone and any(any(folder.glob("[!.]*.tar")) for folder in folders)
        if tars or any(name.endswith(".tar") for name in some):
            yield Layout("shards", root)
        if not alone and len(sheets) == 1 and _names_images(root / sheets[0]):
            yield Layout("manifest", root / sheets[0], of_train[sheets[0]])
    single = [name for name in tables if not spoken[name] and "submission" not in name.lower()]
    single = [name for name in single if _names_images(root / name)]
    classes = _are_classes(root)
    if len(single) == 1 and not (classes and not _lists_files(root / single[0])):
        yield Layout("manifest", root / single[0])
    if classes:
        yield Layout("classes", root)


def _names_images(table: Path) -> bool:
    try:
        return read_columns(table).file is not None
    except (InputError, OSError):
        return False


def _lists_files(table: Path) -> bool:
    """Whether one of the first rows of a table names a file beside it or in a folder there, perhaps without ending."""
    root, column = table.parent, read_columns(table).file
    rows = itertools.islice(read_cells(table), LOOKED_AT)
    named = {_stem(cells[column]) for _, cells in rows if column is not None and column < len(cells)}
    return any(_stem(name) in named for folder in ("", *class_folders(root)) for name in os.listdir(root / folder))


def _stem(path: str) -> str:
    """The name of a file as a table may have it: without folder and ending."""
    return composed(os.path.splitext(path.strip().replace("\\", "/").rpartition("/")[2])[0])


def _are_classes(root: Path) -> bool:
    """Whether the sub-folders of a folder are classes: at least 2, each with images, and none called like a split."""
    folders = class_folders(root)
    patterns = [found[1] for name in folders if (found := split_of(name))]
    if len(folders) < 2 or ALONE in patterns or len({*patterns}) < len(patterns):  # seg_train beside seg_test
        return False
    return all(holds_images(root / name) for name in folders)


def holds_images(folder: Path) -> bool:
    """Whether there are images in a folder itself, as far as it may be read."""
    try:
        return folder.is_dir() and bool(_count_images(folder, 1))
    except OSError:
        return False


def _holds_data(folder: Path) -> bool:
    """Whether a folder is a data set, as far as it may be read."""
    try:
        return find_layout(folder) is not None
    except OSError:
        return False


def _count_images(folder: Path, most: int | None = None) -> int:
    """The number of images in a folder, not below it; at most `most`."""
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            count += is_image(entry.name) and not is_system(entry.name)
            if count == most:
                break
    return count


def innermost(root: Path) -> Path:
    """`root`, or the only folder below it that holds a data set, as an unpacked archive has it."""
    folder = root
    for _ in range(DEEPEST):
        if not folder.is_dir() or find_layout(folder):
            return folder if folder.is_dir() else root
        inside = [folder / name for name in class_folders(folder)]
        if any(split_of(place.name) for place in inside):
            return root
        holding = [place for place in inside if _holds_data(place)]
        if len(holding) != 1 and len(inside) != 1:
            return root
        outer, folder = folder, (holding or inside)[0]
        layout = find_layout(folder)
        if layout and layout.kind == "classes" and any(map(holds_images, (outer, *inside))):
            return root  # then these images have classes too, or none
    return folder if _holds_data(folder) else root


def is_unsplit(root: Path) -> bool:
    """Whether a folder has no training images of its own: perhaps its sub-folders are classes to evaluate."""
    layout = find_layout(root)
    if layout is None:
        return not any(find_split(root, "train", suffix=suffix) for suffix in ("", *TABLES))
    return layout.kind == "classes" or (layout.kind == "manifest" and not layout.pattern and _are_classes(root))


def describe_contents(root: Path) -> str:
    """What a folder holds, in a few words, for the error that no data set was found in it."""
    names = [name for name in sorted(os.listdir(root)) if not is_system(name)]
    folders = [name for name in names if (root / name).is_dir()]
    tables = [name for name in names if name.lower().endswith(TABLES) and (root / name).is_file()]
    packed = [name for name in names if name.lower().endswith(ARCHIVES)]
    holding = [f"{name}/" for name in folders if _holds_data(root / name)]
    parts = [_few("data set", holding) + ": name one"] if len(holding) > 1 else []
    parts.append(_few("folder", folders, lambda name: f"{name}/: {_inside(root / name)}"))
    parts.append(_few("CSV file", tables, lambda name: f"{name}: {_header(root / name)}"))
    parts.append(_few("tar file", [name for name in names if name.endswith(".tar")]))
    parts.append(_few(f"file that hf:{root} reads", [name for name in names if name.endswith((".parquet", ".arrow"))]))
    parts += [_few("archive to unpack", packed), _few("image", [name for name in names if is_image(name)])]
    return "it holds " + ("; ".join(filter(None, parts)) or "nothing that is read")


def _few(what: str, names: Sequence[str], describe: Callable[[str], str] = str) -> str:
    """How many there are, and a description of the first; empty if there are none."""
    more = ", ..." if len(names) > MOST_NAMED else ""
    plural = what if len(names) == 1 else re.sub(r"(?= to | that |$)", "s", what, count=1)
    return f"{len(names)} {plural} ({', '.join(map(describe, names[:MOST_NAMED]))}{more})" if names else ""


def _inside(folder: Path) -> str:
    try:
        return f"{_count_images(folder)} images, {len(class_folders(folder))} folders"
    except OSError as error:
        return error.strerror or str(error)


def _header(table: Path) -> str:
    try:
        columns = read_columns(table)
        return columns.listed() if columns.names else "empty"
    except (InputError, OSError):
        return "not text"
