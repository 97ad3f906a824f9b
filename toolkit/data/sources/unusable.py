"""Why a path is not read as a data set. Imports no torch, so that a command refuses it before slow imports."""

import contextlib
import os
import re
from pathlib import Path

from toolkit.config.data_roots import BUILT_IN
from toolkit.config.tables import TABLES
from toolkit.data.sources.layouts import describe_contents, find_layout, holds_images, innermost, spellings, split_of
from toolkit.data.sources.listing import class_folders, search_folder
from toolkit.system.errors import InputError
from toolkit.system.places import expanded

PREFIXED = re.compile(r"[\w-]+:")  # such as mine:photos, of a source of the user's own


def refuse_unusable(data_root: str) -> None:
    """Raise InputError for a path that is no data set, or not there.

    Names with a prefix, such as `hf:NAME`, sources of the user's own and folders that cannot be entered are left to the
    run.
    """
    own = any(not str(entry).startswith("toolkit.") for entry in TABLES["source"].values())
    if data_root in BUILT_IN or ":" in data_root or own or not data_root.strip():
        return
    with contextlib.suppress(OSError):
        root = expanded(data_root)
        if not root.is_dir() or find_layout(innermost(root)) is None:
            raise InputError(why_unread(data_root))


def why_unread(data_root: str) -> str:
    """Why no source reads a path."""
    root = expanded(data_root)
    if root.exists() and not root.is_dir():
        return f"--data-root {data_root}: is a file: give the folder that holds it, unpacked if it is an archive"
    if not root.is_dir():
        own = "; a source of your own needs --import MODULE" if PREFIXED.match(data_root) else ""
        return f"--data-root {data_root}: no such folder{own}"
    return why_not(root)


def why_not(root: Path) -> str:
    """Why no data set is read in a folder, and what is there."""
    trains = spellings("train", os.listdir(root))
    flat = [name for name in trains if (root / name).is_dir()]
    if flat:
        inside = len(class_folders(root / flat[0]))
        folder, problem = root / flat[0], f"needs a sub-folder per class, at least 2; it has {inside}"
        images = len(search_folder(folder).images) if not inside else 0
        labels = f", but {images} images: {root}/train.csv of filepath,label can name their classes" if images else ""
        return f"{folder}: {problem}{labels}; {root}: {describe_contents(root)}"
    return (
        f"--data-root {root}: neither a folder train/ nor a file train.csv nor shards train*.tar in it, nor "
        f"class folders alone; {describe_contents(root)}{_where_to_move(root)}"
    )


def _where_to_move(root: Path) -> str:
    """A hint for class folders that lie beside splits; empty if there are none."""
    inside = class_folders(root)
    classes = [name for name in inside if not split_of(name) and holds_images(root / name)]
    if len(classes) < 2 or len(classes) == len(inside):
        return ""
    more = ", ..." if len(classes) > 2 else ""
    return f": move the folders of classes ({', '.join(classes[:2])}{more}) into {root}/train/"
