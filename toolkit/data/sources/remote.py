"""Files at URLs (s3://, gs://, az://), read in blocks that are kept on disk up to a bound. Free of torch.

The cache is shared by all threads, loader processes and ranks of a machine: whoever needs a block first fetches it.
"""

import io
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock

from toolkit.system import files
from toolkit.system.errors import InputError, LoaderError, first_line

BLOCK = 8 * 2**20  # bytes; less where the bound is small
LEAST_BLOCKS = 16  # that fit into the bound
LOCKS = 64  # files; blocks share them, so that they do not pile up
POLL_S = 0.01  # between looks at a lock that another thread or process holds
# what the storages call the facts that change with the content, the surest first
VERSION_KEYS = ("generation", "ETag", "etag", "LastModified", "last_modified", "modificationTime", "mtime")
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}

T = TypeVar("T")


class ReplacedError(InputError):
    """A file is not the one that was listed: unlike an image that cannot be read, nothing can stand in for it."""


class FileVersion(NamedTuple):
    """Of one file: its size in bytes, and a text that is another one once the content is."""

    size: int
    version: str

    @classmethod
    def of(cls, entry: Mapping[str, Any], keys: Iterable[str] = VERSION_KEYS) -> "FileVersion":
        """What a storage says of a file, by the first of `keys` that it has."""
        known = ((key, str(entry.get(key) or "").strip('"')) for key in keys)  # Azure quotes a tag only when asked
        return cls(entry["size"], next((f"{key} {value}" for key, value in known if value), ""))

    def fit(self, entry: Mapping[str, Any]) -> bool:
        """Whether a storage still says the same, of what it says at all."""
        now = FileVersion.of(entry, [self.version.split(" ")[0]])
        return self.size == now.size and now.version in ("", self.version)


def asked(url: str, question: Callable[[Any, str], T]) -> T:
    """What `question(file system, path)` says; raises FileNotFoundError, or InputError in one line.

    The file system is asked for anew each time: fsspec keeps one per process, and none survives a fork.
    """
    import fsspec  # 0.1 s that local data does not need

    protocol = url.split("://")[0]
    try:
        return question(*fsspec.core.url_to_fs(url))
    except (FileNotFoundError, ReplacedError):
        raise
    except ImportError as error:
        package = PACKAGES.get(protocol)
        advice = f"pip install {package}" if package else str(error)
        raise InputError(f"{url}: needs a package for {protocol}:// that is not installed: {advice}") from None
    except Exception as error:  # each storage has its own kinds
        reason = first_line(error)
        raise InputError(
            f"{url}: cannot be read: {reason}; are the name, the credentials and the network right?"
        ) from None


def listed(url: str) -> dict[str, FileVersion | None]:
    """Names in a folder; None stands for a folder in it. Nothing where there is no such folder."""

    def ask(files: Any, path: str) -> dict[str, FileVersion | None]:
        files.invalidate_cache()
        found: dict[str, FileVersion | None] = {}
        for entry in files.ls(path, detail=True):
            name = entry["name"].rstrip("/").rsplit("/", 1)[-1]
            found[name] = None if entry["type"] == "directory" else FileVersion.of(entry)
        return found

    try:
        return asked(url, ask)
    except FileNotFoundError:
        return {}


def fetch(url: str, start: int, end: int, version: FileVersion) -> bytes:
    """Bytes start ... end - 1 of a file as it was when `version` were told.

    Raises OSError where it is gone, ReplacedError where it is another one, LoaderError where the storage fails.
    """

    def ask(files: Any, path: str) -> bytes:
        try:
            return files.cat_file(path, start=start, end=end)
        finally:  # also where the part lies beyond the end of what is there now
            files.invalidate_cache()
            if not version.fit(files.info(path)):  # asked for last: what it tells held while the part was read
                raise ReplacedError(
                    f"{url}: was replaced since it was listed at the start of this run: start again, once nobody "
                    "writes there"
                )

    try:
        content = asked(url, ask)
    except FileNotFoundError:
        raise OSError(f"{url} is not there any more") from None
    except ReplacedError:
        raise
    except InputError as error:  # what was listed before is not the user's mistake
        raise LoaderError(str(error)) from None
    if len(content) != end - start:
        raise LoaderError(f"{url}: gave {len(content)} of {end - start} bytes from {start} on: the storage failed")
    return content


def _touch(file: int | Path) -> None:
    """Say that a block was used, for the least recently used one goes first; the kernel's own clock ticks in ms."""
    now = time.time_ns()
    os.utime(file, ns=(now, now))


@dataclass(frozen=True)
class BlockCache:
    """Blocks of `files` (by URL) in `folder`; all of them together take `bound` bytes at most."""

    folder: Path
    bound: int
    files: Mapping[str, FileVersion]

    @property
    def block(self) -> int:
        return min(BLOCK, max(1, self.bound // LEAST_BLOCKS))

    def read(self, url: str, offset: int, length: int) -> bytes:
        """A part of a file; raises what `fetch` does, and InputError where there is no room on the disk."""
        end, parts = offset + length, []
        while offset < end:
            number, start = divmod(offset, self.block)
            count = min(end - offset, self.block - start)
            parts.append(self._part(url, number, start, count))
            offset += count
        return b"".join(parts)

    def count(self, url: str) -> int:
        """How many blocks a file has."""
        return -(-self.files[url].size // self.block)

    def hold(self, url: str, number: int) -> None:
        """See that a block is there, and among the last to go; raises what `read` does."""
        path = self._path(url, number)
        try:
            _touch(path)
        except FileNotFoundError:
            self._fetched(url, number, path)

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
        path.unlink(missing_ok=True)  # cut short, as after a power failure
        return self._fetched(url, number, path)[start : start + count]

    def _path(self, url: str, number: int) -> Path:
        return self.folder / "blocks" / f"{files.key(url, str(self.files[url]))}-{self.block}-{number}"

    def _fetched(self, url: str, number: int, path: Path) -> bytes:
        """The whole block: from storage, unless another thread or process was quicker."""
        locks = self.folder / "locks"
        for folder in (path.parent, locks):
            folder.mkdir(parents=True, exist_ok=True)
        stripe = int(files.key(path.name), 16) % LOCKS
        with FileLock(locks / f"{stripe}.lock", poll_interval=POLL_S):
            start = number * self.block
            end = min(start + self.block, self.files[url].size)
            if path.exists() and path.stat().st_size == end - start:
                return path.read_bytes()
            content = fetch(url, start, end, self.files[url])
            try:
                with FileLock(locks / "room.lock", poll_interval=POLL_S):
                    self._keep(path, content)
            except OSError as error:
                raise InputError(f"{path.parent}: {error.strerror}; --cache-dir names another place") from None
        return content

    def _keep(self, path: Path, content: bytes) -> None:
        """Write a block once there is room; what a killed process left half written counts and goes like the rest."""
        with os.scandir(path.parent) as entries:
            stats = [(entry.path, entry.stat()) for entry in entries]
        known = sorted((version.st_mtime_ns, version.st_size, name) for name, version in stats)
        total = sum(size for _, size, _ in known) + len(content)
        for _, size, oldest in known:
            if total <= self.bound:
                break
            Path(oldest).unlink()  # who has it open still reads it
            total -= size
        staging = path.with_name(f".tmp-{path.name}")
        staging.write_bytes(content)
        _touch(staging)
        os.replace(staging, path)


class RemoteFile(io.RawIOBase):
    """A file at a URL, to be read and sought in like any other."""

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
