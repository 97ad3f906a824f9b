"""Object stores (s3://, gs://, az://) and whatever else fsspec reads, by URL. Imports no torch.

Every question to a store goes through `ask`, which puts each store's own errors into one line. Keys are relative to the
URL of an `ObjectStore`, with slashes.
"""

import contextlib
import errno
import hashlib
import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from toolkit.system.errors import InputError, StoreError, first_line
from toolkit.system.stored import Stored

EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "azure"),
}
PACKAGES = {"s3": "s3fs", "gcs": "gcsfs", "azure": "adlfs"}  # by extra
STREAMS = 8  # objects that are sent or fetched at once
START_S = 45.0  # longest wait for the first answers of a store
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # what a disk answers, not a store

T = TypeVar("T")


def missing_extra(url: str) -> str:
    """What to install to open a URL, empty if it is there, or not known here."""
    extra = EXTRAS.get(url.split("://")[0])
    if extra is None or importlib.util.find_spec(PACKAGES[extra]):
        return ""
    return _to_install(extra)


def _to_install(extra: str) -> str:
    return f"pip install {PACKAGES[extra]} (extra [{extra}])"


def ask(url: str, question: Callable[[Any, str], T]) -> T:
    """The result of `question(file system, path)`; raises FileNotFoundError, FileExistsError, or StoreError.

    Raises InputError if a package is missing. Gets the file system from fsspec on each call, because none survives a
    fork; fsspec keeps one per process.
    """
    import fsspec  # imported here: takes 0.1 s, which local data does not need

    protocol = url.split("://")[0]
    try:
        return question(*fsspec.core.url_to_fs(url))
    except (FileNotFoundError, FileExistsError, InputError):
        raise
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        advice = _to_install(extra) if extra else str(error)
        raise InputError(f"{url}: needs a package for {protocol}:// that is not installed: {advice}") from None
    except Exception as error:  # each storage has its own error types
        raise StoreError(first_line(error)) from None


def query(url: str, question: Callable[[Any, str], T]) -> T:
    """The result of `question(file system, path)`; raises FileNotFoundError, or InputError in one line."""
    try:
        return ask(url, question)
    except StoreError as error:
        raise InputError(
            f"{url}: cannot be read: {error}; are the name, the credentials and the network right?"
        ) from None


class ObjectStore:
    """The objects under a URL. `answered`: when the store last answered or took bytes, by `time.monotonic`."""

    def __init__(self, url: str) -> None:
        self.url, self.answered = url, time.monotonic()

    def _ask(self, key: str, question: Callable[[Any, str], T]) -> T:
        def of_key(files_there: Any, root: str) -> T:
            return question(files_there, f"{root}/{key}" if key else root)

        result = ask(self.url, of_key)
        self.answered = time.monotonic()
        return result

    def list(self, folder: str = "") -> dict[str, Stored]:
        """Every object under a folder, by key; raises FileNotFoundError if there is no such bucket, StoreError."""

        def found(there: Any, path: str) -> dict[str, Stored]:
            there.invalidate_cache()
            return {name: Stored.of(entry) for name, entry in there.find(path, detail=True).items()}

        root = self._ask("", lambda _, path: f"{path}/")
        keys = {name.removeprefix(root): stored for name, stored in self._ask(folder, found).items()}
        return {key: stored for key, stored in keys.items() if key and not key.endswith("/")}

    def read(self, key: str) -> bytes | None:
        """The content of an object, None if there is none; raises StoreError."""
        try:
            return self._ask(key, lambda there, path: there.cat_file(path))
        except FileNotFoundError:
            return None

    def write(self, key: str, content: bytes, new: bool = False) -> bool:
        """Write an object at once. `new`: only if there is none, where the store can do that; False if there is one."""
        mode = "create" if new else "overwrite"
        try:
            self._ask(key, lambda there, path: there.pipe_file(path, content, mode=mode))
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise StoreError(f"there is no such bucket: {first_line(error)}") from None
        return True

    def send(self, file: Path, key: str, moved: Callable[[], object] = lambda: None) -> None:
        """Copy a local file into the store; `moved`: called whenever a part of it has arrived.

        Raises StoreError, and FileNotFoundError if the file is gone.
        """
        try:
            self._ask(key, lambda there, path: there.put_file(str(file), path, callback=self._callback(moved)))
        except FileNotFoundError as error:
            if not file.exists():
                raise
            raise StoreError(f"there is no such bucket: {first_line(error)}") from None

    def fetch(self, key: str, file: Path) -> None:
        """Copy an object to a local file, which is never seen half-written.

        Raises FileNotFoundError if there is no object, OSError if the disk is full, StoreError.
        """
        staging = file.with_name(f".tmp-{file.name[:100]}")

        def get(there: Any, path: str) -> None:
            try:
                there.get_file(path, str(staging), callback=self._callback())
            except OSError as error:
                if error.errno in FULL:
                    raise _DiskFullError(error) from None
                raise

        staging.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._ask(key, get)
        except _DiskFullError as error:
            raise OSError(error.cause.errno, error.cause.strerror, str(file)) from None
        staging.replace(file)

    def copy(self, key: str, to: str) -> None:
        """Copy an object within the store; raises StoreError."""
        target = self._ask(to, lambda _, path: path)
        with self._absent_as_error(key):
            self._ask(key, lambda there, path: there.cp_file(path, target))

    def remove(self, key: str) -> None:
        """Delete an object, if there is one; raises StoreError."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(key, lambda there, path: there.rm_file(path))

    @contextlib.contextmanager
    def _absent_as_error(self, key: str) -> Any:
        try:
            yield
        except FileNotFoundError:
            raise StoreError(f"{self.url}/{key} is gone") from None

    def _callback(self, moved: Callable[[], object] = lambda: None) -> Any:
        from fsspec.callbacks import Callback

        def answered(_: int | None, count: int, **__: Any) -> None:
            if count:  # 0 when it begins
                self.answered = time.monotonic()
                moved()

        return Callback(hooks={"answered": answered})


class _DiskFullError(InputError):
    """Passes through `ask` as it is."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def together(jobs: Iterable[Callable[[], object]], streams: int = STREAMS) -> None:
    """Run all jobs in a few daemon threads, which do not keep a process alive; raises the first error, once all ended.

    After an error no further job starts.
    """
    tasks: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    errors: list[BaseException] = []
    for job in jobs:
        tasks.put(job)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while not errors:
                job = tasks.get_nowait()
                try:
                    job()
                except BaseException as error:
                    errors.append(error)

    threads = [threading.Thread(target=work, daemon=True, name="store") for _ in range(min(streams, tasks.qsize()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def within(seconds: float, work: Callable[[], T], store: ObjectStore | None = None) -> T:
    """The result of `work`; raises StoreError if it takes longer.

    `store`: the time counts from its last answer. A store that never answers would else hold the process for minutes.
    """
    done: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            errors.append(error)

    thread, began = threading.Thread(target=run, daemon=True, name="store"), time.monotonic()
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
        if time.monotonic() - max(began, store.answered if store else began) > seconds:
            raise StoreError(f"no answer for {seconds:g} s")
    if errors:
        raise errors[0]
    return done[0]


def md5(file: Path) -> str:
    """MD5 of a file, in hex, as stores give it."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
