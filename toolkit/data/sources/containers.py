"""An index of images that are parts of larger files: each file is read once, and again if it changes."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from toolkit.data.images.header import read_header
from toolkit.data.images.preprocess import readable_formats
from toolkit.data.sources import index_tables
from toolkit.data.sources.files import UNREAD
from toolkit.data.sources.index import COLUMNS, Index, Names
from toolkit.data.sources.remote import BlockCache, FileVersion
from toolkit.system import files, host
from toolkit.system.locks import locked
from toolkit.system.system_files import describe_system

log = logging.getLogger(__name__)

VERSION = 4  # of the table's format and of how containers are read
TYPES = dict(zip(COLUMNS, (np.int32, np.int64, np.int64, np.int64, np.int32, np.int32, np.uint8), strict=True))
MOST_THREADS = 16  # each holds a few MB of a remote shard
NAMED = ("blob", "ends", "system", "system_ends")
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


class Contents(NamedTuple):
    """What a container holds; `system`: names of files of systems in it, which are left out."""

    parts: Iterable[Part]
    system: Sequence[str] = ()


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
    read: Callable[[Container], Contents],
    cache: Path,
    blocks: BlockCache | None = None,
    fields: str = "",
    split: str = "",
) -> Index:
    """All parts of all containers, in order; threads call `read` for containers that are new or changed.

    `fields`: which of several fields of a container `read` takes, if a user may choose. `split`: of whose containers
    there may be an index beside the data.
    """
    (cache / "index").mkdir(parents=True, exist_ok=True)
    folder, kind = cache / "index", (fields, *readable_formats())
    path = folder / f"{files.key(repr(containers), *kind)}-v{VERSION}.index"
    made_from = [[container.name, *container.version] for container in containers] + [VERSION, *kind]

    def tables() -> Iterator[dict[str, np.ndarray]]:
        with ThreadPoolExecutor(min(MOST_THREADS, 4 * host.cpu_quota())) as pool:
            todo = pool.map(lambda container: _table(container, read, folder, kind), containers)
            yield from tqdm(todo, "reading shards", len(containers), unit="shard", disable=None)

    with locked(f"{path}.lock"):
        found = index_tables.read_if_valid(path) or (split and index_tables.fetch_index(root, split, made_from, path))
    if not found:
        for _ in tables():  # all processes share this work
            pass
    with locked(f"{path}.lock"):
        if (table := index_tables.read_if_valid(path)) is None:
            index_tables.write(path, *_joined([*tables()], made_from))
            table = index_tables.read(path)
            path.with_suffix(index_tables.UNFIT).unlink(missing_ok=True)
    if table.about["left_out"]:
        log.info("data      left out: %s", table.about["left_out"])
    return Index(
        root=root,
        names=table.names,
        containers=tuple(container.path for container in containers),
        stamp=files.key(repr([container.version for container in containers])),
        blocks=blocks,
        table=path,
        **{name: table.columns[name] for name in COLUMNS},
    )


def _joined(tables: Sequence[dict[str, np.ndarray]], made_from: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The joined columns of all containers, and `Table.about`."""
    names = Names.joined([Names(table["blob"], table["ends"]) for table in tables])
    system = Names.joined([Names(table["system"], table["system_ends"]) for table in tables])
    counts = [len(table["ends"]) for table in tables]
    columns = {name: np.concatenate([table[name] for table in tables]) for name in READ}
    columns |= {"blob": names.blob, "ends": names.ends}
    columns["container"] = np.repeat(np.arange(len(tables), dtype=np.int32), counts)
    return columns, {"made_from": made_from, "left_out": describe_system(system) if len(system) else ""}


def _table(
    container: Container, read: Callable[[Container], Contents], folder: Path, kind: Sequence[str]
) -> dict[str, np.ndarray]:
    """The columns of one container, cached in `folder`; one process reads the container, the others wait for it.

    `kind`: what the result depends on besides the container.
    """
    file = folder / f"{files.key(repr(container), *kind)}-parts-v{VERSION}.npz"
    with locked(f"{file}.lock"):
        known = files.read_arrays(file, (*NAMED, *READ))
        if known is not None:
            return known
        contents = read(container)
        parts = list(contents.parts)
        names, system = Names.of(part.name for part in parts), Names.of(contents.system)
        values = zip(*(part[1:] for part in parts), strict=True) if parts else itertools.repeat((), len(READ))
        columns = {name: np.array(column, dtype=TYPES[name]) for name, column in zip(READ, values, strict=False)}
        table = {"blob": names.blob, "ends": names.ends, **columns}
        table |= {"system": system.blob, "system_ends": system.ends}
        files.write_arrays(file, table)
        return table
