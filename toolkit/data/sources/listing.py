"""What a folder holds: class folders, images, other files, system files, and what cannot be read."""

import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from toolkit.data.images.formats import FORM_OF
from toolkit.system.errors import InputError
from toolkit.system.system_files import describe_system, is_system

EXTENSIONS = frozenset(FORM_OF)
MOST_KINDS = 5  # of left out files that one log line lists
NOT_REGULAR = "is no regular file"


def is_image(path: str | Path) -> bool:
    """Whether a file counts as an image, by its extension."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS and Linux write `é` as different characters."""
    return unicodedata.normalize("NFC", name)


def by_form(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by their composed form, in order; more than one each only where a folder holds both forms."""
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(composed(name), []).append(name)
    return forms


def class_folders(folder: Path) -> tuple[str, ...]:
    """Sub-folders but those of systems, in the order of their composed names, which every system shares.

    Broken links count, because classes would otherwise change their numbers.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not is_system(entry.name) and _is_class(entry)]
    return tuple(sorted(names, key=lambda name: (composed(name), name)))


def _is_class(entry: os.DirEntry[str]) -> bool:
    return _is_folder(entry) or (entry.is_symlink() and _leads_nowhere(entry.path) and not is_image(entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; entry.is_dir() alone would raise for a link to itself."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


@dataclass
class LeftOut:
    """Files that no split uses, by path: `files` in class folders, `loose` ones in none, and those of systems."""

    files: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    system: list[str] = field(default_factory=list)

    def add_beside(self, folder: Path, prefix: str) -> None:
        """Add what lies beside the class folders of a split; `prefix`: of its names."""
        classes = {*class_folders(folder)}
        for name in sorted(os.listdir(folder)):
            if is_system(name):
                self.system.append(prefix + name)
            elif name not in classes:
                self.loose.append(prefix + name)

    def add(self, listing: "Listing", prefix: str) -> None:
        """Add what a class folder holds besides images."""
        self.files += [prefix + name for name in listing.others]
        self.system += [prefix + name for name in listing.system]

    def kinds(self) -> dict[str, list[str]]:
        """The files, but for those of systems, by suffix or reason; largest group first."""
        kinds: dict[str, list[str]] = {}
        for name in self.files:
            kinds.setdefault(os.path.splitext(name)[1].lower() or "without a suffix", []).append(name)
        if self.loose:
            kinds["in no class folder"] = self.loose
        return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))

    def lines(self) -> Iterator[str]:
        """What is left out, as lines of the log."""
        if system := describe_system(self.system):
            yield f"left out: {system}"
        if kinds := self.kinds():
            counts = [f"{len(names)} {kind} ({names[0]})" for kind, names in kinds.items()]
            more = f", {len(counts) - MOST_KINDS} more kinds" if len(counts) > MOST_KINDS else ""
            number = len(self.files) + len(self.loose)
            yield f"{number} files are left out: {', '.join(counts[:MOST_KINDS])}{more}"


class Listing(NamedTuple):
    """The files under a folder, by relative path; `images` are in order, `others` have no image extension.

    `unreadable`: the reason for each folder that cannot be listed, or special file, such as a pipe, with an image
    extension. `dangling`: broken links without an image extension; the target may have been a folder of images.
    `system`: files and folders of systems, and hidden ones, which are not entered.
    """

    images: list[str]
    others: list[str]
    unreadable: dict[str, str]
    dangling: list[str]
    system: list[str]


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
    """All files under a folder, but for those of systems; enters no folder twice, and no parent of the given one."""
    given = Path(folder)
    named = () if ".." in given.parts else given.absolute().parents  # a folder before `..` may be inside
    entered = {_identity(parent) for parent in (*named, *given.resolve().parents)}
    found = Listing([], [], {}, [], [])
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
            if is_system(entry.name):
                found.system.append(name)
            elif _is_folder(entry):
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
