"""An index of images that are parts of larger files: each file is read once, and again if it changes."""

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from toolkit.data.images.header import read_header
from toolkit.data.sources.files import UNREAD
from toolkit.data.sources.index import COLUMNS, Index, Names
from toolkit.data.sources.remote import BlockCache, FileVersion
from toolkit.system import files, host

VERSION = 3  # of the table's format and of how containers are read
TYPES = dict(zip(COLUMNS, (np.int32, np.int64, np.int64, np.int64, np.int32, np.int32, np.uint8), strict=True))
MOST_THREADS = 16  # each holds a few MB of a remote shard
READ = COLUMNS[1:]  # the columns of a table besides names; a container's number is not stored: it depends on the others


class Container(NamedTuple):
    """A file that holds images; `name` is its name in messages, `path` its location."""

    name: str
    path: str
    version: FileVersion


class Part(NamedTuple):
    """One image of a container: offset and length in bytes; size and orientation as in `Index`."""

    name: str
    offset: int
    length: int
    label: int
    width: int
    height: int
    orientation: int


def file_version(path: str) -> FileVersion:
    stat = os.stat(path)
    return FileVersion(stat.st_size, str(stat.st_mtime_ns))


def read_size(stream: IO[bytes]) -> tuple[int, int, int]:
    """Width, height and orientation of an image; UNREAD if its header cannot be read."""
    try:
        return read_header(stream)[:3]
    except ValueError:
        return UNREAD


def index_containers(
    root: str,
    containers: Sequence[Container],
    read: Callable[[Container], Iterable[Part]],
    cache: Path,
    blocks: BlockCache | None = None,
) -> Index:
    """All parts of all containers, in order; threads call `read` for containers that are new or changed."""
    (cache / "index").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(min(MOST_THREADS, 4 * host.cpu_quota())) as pool:
        todo = pool.map(lambda container: _table(container, read, cache / "index"), containers)
        tables = list(tqdm(todo, "reading shards", len(containers), unit="shard", disable=None))
    counts = [len(table["ends"]) for table in tables]
    columns: dict[str, Any] = {name: np.concatenate([table[name] for table in tables]) for name in READ}
    return Index(
        root=root,
        names=Names.joined([Names(table["blob"], table["ends"]) for table in tables]),
        containers=tuple(container.path for container in containers),
        container=np.repeat(np.arange(len(tables), dtype=np.int32), counts),
        stamp=files.key(repr([container.version for container in containers])),
        blocks=blocks,
        **columns,
    )


def _table(container: Container, read: Callable[[Container], Iterable[Part]], folder: Path) -> dict[str, np.ndarray]:
    """The columns of one container, cached in `folder`; one process reads the container, the others wait for it."""
    file = folder / f"{files.key(repr(container))}-parts-v{VERSION}.npz"
    with FileLock(f"{file}.lock"):
        known = files.read_arrays(file, ("blob", "ends", *READ))
        if known is not None:
            return known
        parts = list(read(container))
        names = Names.of(part.name for part in parts)
        values = zip(*(part[1:] for part in parts), strict=True) if parts else itertools.repeat((), len(READ))
        columns = {name: np.array(column, dtype=TYPES[name]) for name, column in zip(READ, values, strict=False)}
        table = {"blob": names.blob, "ends": names.ends, **columns}
        files.write_arrays(file, table)
        return table
