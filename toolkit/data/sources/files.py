"""An index of images that are single files; their headers are read once and cached."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from toolkit.data.images.header import read_header
from toolkit.data.images.preprocess import readable_formats
from toolkit.data.sources.index import Index
from toolkit.system import files, host
from toolkit.system.locks import locked

VERSION = 3  # of the table's format and of how headers are read
FIELDS = ("bytes", "mtime", "width", "height", "orientation")
NEVER = -1  # a modification time that no file has
UNREAD = (0, 0, 1)  # width, height, orientation of a file whose header cannot be read
BAR_FROM = 2000  # files; fewer are done before a progress bar would appear
PIECE = 64  # files that one thread takes at a time

A = TypeVar("A")
B = TypeVar("B")


def index_files(root: Path, names: Sequence[str], labels: Sequence[int], cache: Path) -> Index:
    """Files under `root` with their sizes in px.

    Threads read the headers, and `cache` keeps them. A file of unchanged size and time stamp is not opened again.
    """
    table = cache / "index" / f"{files.key(str(root.resolve()), *names, *readable_formats())}-v{VERSION}.npz"
    table.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{table}.lock"):  # the first process reads, the others wait and use its table
        columns = _read_changed(root, names, _load(table, len(names)))
        if columns is not None:
            files.write_arrays(table, dict(zip(FIELDS, columns, strict=True)))
        else:
            columns = _load(table, len(names))
            assert columns is not None
    size, mtime, width, height, orientation = columns
    return replace(
        Index.of_files(root, names, labels),
        length=size,
        width=width.astype(np.int32),
        height=height.astype(np.int32),
        orientation=orientation.astype(np.uint8),
        stamp=files.key(mtime.tobytes()),
    )


def _load(table: Path, count: int) -> list[np.ndarray] | None:
    """The cached columns; None if there are no usable ones."""
    arrays = files.read_arrays(table, FIELDS)
    return [*arrays.values()] if arrays and all(len(column) == count for column in arrays.values()) else None


def _stat(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _header(path: str) -> tuple[int, int, int, bool]:
    """Width, height, orientation, and whether that holds until the file changes: False if the storage failed."""
    try:
        with open(path, "rb") as stream:
            return (*read_header(stream)[:3], True)
    except ValueError:
        return (*UNREAD, True)
    except OSError:
        return (*UNREAD, False)


def each(work: Callable[[A], B], items: Sequence[A], what: str) -> list[B]:
    """Call `work` on each item in threads, results in order; shows a progress bar named `what` for many items."""
    pieces = [items[start : start + PIECE] for start in range(0, len(items), PIECE)]  # one future costs 40 us
    bar = tqdm(total=len(items), desc=what, unit="file", disable=None if len(items) > BAR_FROM else True)
    done: list[B] = []
    with ThreadPoolExecutor(4 * host.cpu_quota()) as pool, bar:
        for results in pool.map(lambda piece: [work(item) for item in piece], pieces):
            done += results
            bar.update(len(results))
    return done


def _read_changed(root: Path, names: Sequence[str], known: list[np.ndarray] | None) -> list[np.ndarray] | None:
    """All columns, with changed files read again; None if no file changed."""
    paths = [f"{root}/{name}" for name in names]
    stats = np.array(each(_stat, paths, "looking at files"), dtype=np.int64).reshape(-1, 2)
    if known is None:
        known = [np.zeros(len(names), dtype=np.int64) for _ in FIELDS]
        stale = np.arange(len(names))
    else:
        stale = np.flatnonzero((stats[:, 0] != known[0]) | (stats[:, 1] != known[1]))
    if not len(stale) and len(names):
        return None
    known[0], known[1] = stats[:, 0], stats[:, 1]
    headers = each(_header, [paths[i] for i in stale.tolist()], "reading image headers")
    for column, values in zip(known[2:], np.array(headers, dtype=np.int64).reshape(-1, 4).T, strict=False):
        column[stale] = values
    known[1][stale[[not lasting for *_, lasting in headers]]] = NEVER  # read again at the next start
    return known
