"""Files at URLs (s3://, gs://, az://), read in blocks that are cached on disk up to a bound. Does not import torch.

All threads, loader processes and ranks of a machine share the cache; the first that needs a block fetches it.
"""

import contextlib
import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.system import files, storage
from toolkit.system.errors import InputError, LoaderError
from toolkit.system.locks import locked
from toolkit.system.stored import FileVersion
from toolkit.system.stores import query

BLOCK = 8 * 2**20  # bytes; less if the bound is small
LEAST_BLOCKS = 16  # minimum number of blocks that fit into the bound
LOCKS = 64  # lock files; blocks share them, so that their number stays small
RELEASED = 0  # time at which a block was used, in ns: nobody needs it in this epoch
POLL_S = 0.01  # between attempts to take a lock that another thread or process holds


class ReplacedError(InputError):
    """A file changed since it was listed; unlike an unreadable image, it has no substitute."""


def listed(url: str) -> dict[str, FileVersion | None]:
    """Entries of a folder, by name; None marks a sub-folder. Empty if the folder does not exist."""

    def ask(files: Any, path: str) -> dict[str, FileVersion | None]:
        files.invalidate_cache()
        found: dict[str, FileVersion | None] = {}
        for entry in files.ls(path, detail=True):
            name = entry["name"].rstrip("/").rsplit("/", 1)[-1]
            found[name] = None if entry["type"] == "directory" else FileVersion.of(entry)
        return found

    try:
        return query(url, ask)
    except FileNotFoundError:
        return {}


def fetch(url: str, start: int, end: int, version: FileVersion) -> bytes:
    """Bytes start ... end - 1 of a file, which must still have `version`.

    Raises OSError if the file is gone, ReplacedError if it changed, LoaderError if the storage fails.
    """

    def ask(files: Any, path: str) -> bytes:
        try:
            return files.cat_file(path, start=start, end=end)
        finally:  # also if the part is beyond the end of the current file
            files.invalidate_cache()
            if not version.fit(files.info(path)):  # checked last, so that it covers the read
                raise ReplacedError(
                    f"{url}: was replaced since it was listed at the start of this run: start again, once nobody "
                    "writes there"
                )

    try:
        content = query(url, ask)
    except FileNotFoundError:
        raise OSError(f"{url} is not there any more") from None
    except ReplacedError:
        raise
    except InputError as error:  # the file was listed before, so it is not a user error
        raise LoaderError(str(error)) from None
    if len(content) != end - start:
        raise LoaderError(f"{url}: gave {len(content)} of {end - start} bytes from {start} on: the storage failed")
    return content


def _touch(file: int | Path) -> None:
    """Mark a block as used: the least recently used is deleted first. The kernel's own clock has ms resolution."""
    now = time.time_ns()
    os.utime(file, ns=(now, now))


@dataclass(frozen=True)
class BlockCache:
    """Disk cache of blocks of `files` (by URL) in `folder`; all blocks together take at most `bound` bytes."""

    folder: Path
    bound: int
    files: Mapping[str, FileVersion]

    @property
    def block(self) -> int:
        return min(BLOCK, max(1, self.bound // LEAST_BLOCKS))

    def read(self, url: str, offset: int, length: int) -> bytes:
        """A part of a file; raises the errors of `fetch`, and InputError if the disk is full."""
        end, parts = offset + length, []
        while offset < end:
            number, start = divmod(offset, self.block)
            count = min(end - offset, self.block - start)
            parts.append(self._part(url, number, start, count))
            offset += count
        return b"".join(parts)

    def count(self, url: str) -> int:
        """Number of blocks of a file."""
        return -(-self.files[url].size // self.block)

    def hold(self, url: str, number: int) -> None:
        """Ensure that a block is cached, and mark it as used; raises the errors of `read`."""
        path = self._path(url, number)
        try:
            _touch(path)
        except FileNotFoundError:
            self._fetched(url, number, path)

    def release(self, url: str) -> None:
        """Mark the blocks of a file as used longest ago: they make room first."""
        for number in range(self.count(url)):
            with contextlib.suppress(OSError):  # only a hint
                os.utime(self._path(url, number), ns=(RELEASED, RELEASED))

    def _part(self, url: str, number: int, start: int, count: int) -> bytes:
        path = self._path(url, number)
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return self._fetched(url, number, path)[start : start + count]
        try:
            _touch(handle)
            content = os.pread(handle, count, start)
        finally:
            os.close(handle)
        if len(content) == count:
            return content
        path.unlink(missing_ok=True)  # truncated, as after a power failure
        return self._fetched(url, number, path)[start : start + count]

    def _path(self, url: str, number: int) -> Path:
        return self.folder / "blocks" / f"{files.key(url, str(self.files[url]))}-{self.block}-{number}"

    def _fetched(self, url: str, number: int, path: Path) -> bytes:
        """The whole block, from storage unless another thread or process has fetched it meanwhile."""
        locks = self.folder / "locks"
        for folder in (path.parent, locks):
            folder.mkdir(parents=True, exist_ok=True)
        stripe = int(files.key(path.name), 16) % LOCKS
        with locked(locks / f"{stripe}.lock", POLL_S):
            start = number * self.block
            end = min(start + self.block, self.files[url].size)
            if path.exists() and path.stat().st_size == end - start:
                return path.read_bytes()
            content = fetch(url, start, end, self.files[url])
            try:
                with locked(locks / "room.lock", POLL_S):
                    self._keep(path, content)
            except OSError as error:
                raise InputError(
                    f"{path.parent}: {storage.explain(error, path)}; --cache-dir names another place"
                ) from None
        return content

    def _keep(self, path: Path, content: bytes) -> None:
        """Write a block after making room. Call it with the lock of the room."""
        noted = self.folder / "blocks.bytes"  # what all take, or more: 10^5 blocks take long to list
        try:
            used = int(noted.read_text())
        except (FileNotFoundError, ValueError):
            used = self.bound
        if used + len(content) > self.bound:
            used = self._make_room(path.parent, len(content))
        noted.write_text(f"{used + len(content)}\n")  # first, so that it is never too little
        staging = path.with_name(f".tmp-{path.name}")
        staging.write_bytes(content)
        _touch(staging)
        os.replace(staging, path)

    def _make_room(self, blocks: Path, size: int) -> int:
        """Delete the least recently used blocks if `size` bytes do not fit; what is left, in bytes.

        Of released ones a sixteenth of the bound more, so that it is long until the next time. Half-written files of
        killed processes count and are deleted like blocks.
        """
        with os.scandir(blocks) as entries:
            stats = [(entry.path, entry.stat()) for entry in entries]
        known = sorted((stat.st_mtime_ns, stat.st_size, name) for name, stat in stats)
        used = sum(length for _, length, _ in known)
        goal = self.bound if used + size <= self.bound else self.bound - self.bound // LEAST_BLOCKS
        for used_ns, length, oldest in known:
            if used + size <= (goal if used_ns == RELEASED else self.bound):
                break
            Path(oldest).unlink()  # processes that have it open can still read it
            used -= length
        return used


class RemoteFile(io.RawIOBase):
    """A file at a URL as a readable, seekable stream."""

    def __init__(self, cache: BlockCache, url: str) -> None:
        self._cache, self._url, self._at = cache, url, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._cache.files[self._url].size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._cache.files[self._url].size - self._at))
        buffer[:count] = self._cache.read(self._url, self._at, count)
        self._at += count
        return count
