"""Images named on a command line, on disk or at URLs: each file as given, each folder with all images under it."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from toolkit.config.data_roots import is_url
from toolkit.data.sources.listing import NOT_REGULAR, search_folder
from toolkit.data.sources.url_paths import search_url
from toolkit.system.errors import InputError
from toolkit.system.system_files import is_system

EMPTY = "there are no images in it"


class Listed(NamedTuple):
    """The paths to report on, named as the user gave them.

    `unreadable`: the reason for each name that must not be read: reading a pipe could block forever. `left_out`: number
    of files without an image extension. `system`: files and folders of systems in the folders, or among several paths.
    """

    names: list[str]
    unreadable: dict[str, str]
    left_out: int
    system: Sequence[str] = ()


def list_paths(paths: Sequence[str]) -> Listed:
    """Files as given, and all images under the given folders; raises InputError if there are none.

    The names include missing files, and folders that cannot be listed or hold no images.
    """
    names: list[str] = []
    unreadable: dict[str, str] = {}
    left_out = 0
    # What a shell's `photos/*` names too; one that begins with a dot is meant.
    system = [path for path in paths if is_system(name := _name(path)) and name[0] != "." and len(paths) > 1]
    for path in (path for path in paths if path not in system):
        listing = search_url(path) if is_url(path) else search_folder(path) if os.path.isdir(path) else None
        if listing is not None:
            below = sorted([*listing.images, *listing.unreadable], key=lambda name: name.split("/"))
            above = path.rstrip("/")
            if not below:
                names.append(path)
                unreadable[path] = EMPTY
            names += [f"{above}/{name}".rstrip("/") for name in below]
            unreadable |= {f"{above}/{name}".rstrip("/"): reason for name, reason in listing.unreadable.items()}
            left_out += len(listing.others) + len(listing.dangling)
            system += listing.system
        else:
            names.append(path)
            if not is_url(path) and os.path.exists(path) and not os.path.isfile(path):
                unreadable[path] = NOT_REGULAR
    if not names or all(unreadable.get(name) == EMPTY for name in names):
        raise InputError(f"{' '.join(names or paths)}: {EMPTY}")
    return Listed(names, unreadable, left_out, system)


def _name(path: str) -> str:
    return os.path.basename(path.rstrip("/"))
