"""Images that are named on a command line, each file as it is given, each folder with all that is under it."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from toolkit.data.sources.folders import NOT_REGULAR, search_folder
from toolkit.system.errors import InputError

EMPTY = "there are no images in it"


class Listed(NamedTuple):
    """What is to be told of, by the names that the user knows it by.

    `unreadable`: why some of it cannot be read, which is not to be tried: a pipe could be waited for for ever.
    `left_out`: how many files are no images by their names.
    """

    names: list[str]
    unreadable: dict[str, str]
    left_out: int


def list_paths(paths: Sequence[str]) -> Listed:
    """Files as they are given, folders with all that is under them; raises InputError where there is none.

    What is not there, cannot be entered or holds no images is told beside the images.
    """
    names: list[str] = []
    unreadable: dict[str, str] = {}
    left_out = 0
    for path in paths:
        if os.path.isdir(path):
            listing = search_folder(path)
            below = sorted([*listing.images, *listing.unreadable], key=lambda name: name.split("/"))
            above = path.rstrip("/")
            if not below:
                names.append(path)
                unreadable[path] = EMPTY
            names += [f"{above}/{name}".rstrip("/") for name in below]
            unreadable |= {f"{above}/{name}".rstrip("/"): reason for name, reason in listing.unreadable.items()}
            left_out += len(listing.others) + len(listing.dangling)
        else:
            names.append(path)
            if os.path.exists(path) and not os.path.isfile(path):
                unreadable[path] = NOT_REGULAR
    if all(unreadable.get(name) == EMPTY for name in names):
        raise InputError(f"{' '.join(names)}: {EMPTY}")
    return Listed(names, unreadable, left_out)
