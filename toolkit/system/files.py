"""Atomic writing of files. Imports no torch."""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.system import storage
from toolkit.system.errors import InputError

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

# What a storage answers that has no fsync, or none of folders: rclone, s3fs, gcsfuse, 9p, CIFS and others.
NO_SYNC = (*storage.LACKING, errno.EBADF, errno.EACCES, errno.EISDIR)
TRIAL = ".tmp-trial-"
_without_sync: set[int] = set()  # file systems, as device numbers, that a warning was given for


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to a disk error, which lacks it if it comes from writing to an open file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def make_folders(folder: Path) -> None:
    """Create a folder and those above it; raises OSError, also if it is a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


def make_folder(folder: Path) -> None:
    """Create the output folder; raises InputError, before any work is done, if nothing can be written there."""
    try:
        make_folders(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if not storage.concerns_place(error):
            raise
        raise InputError(
            f"--output-dir {folder}: nothing can be written there: {storage.explain(error, folder)}"
        ) from None


def try_folder(folder: Path, shown: Path | None = None) -> None:
    """Do once, with a few bytes, all that a run does in its directory; raises InputError naming what fails.

    `shown`: the folder that the message names instead. Raises OSError where no other place would help, such as too many
    open files.
    """
    trial: Path

    def create() -> None:
        nonlocal trial
        trial = Path(tempfile.mkdtemp(prefix=TRIAL, dir=folder))
        (trial / "a").mkdir()

    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("create a folder", create),
        ("write a file", lambda: (trial / "a" / "file").write_bytes(b"trial")),
        ("write a file to the disk (fsync)", lambda: sync(trial / "a" / "file")),
        ("rename a file", lambda: os.replace(trial / "a" / "file", trial / "a" / "renamed")),
        ("rename a folder", lambda: os.replace(trial / "a", trial / "b")),
        ("delete files", lambda: shutil.rmtree(trial)),
    )
    for what, step in steps:
        try:
            step()
        except OSError as error:
            remove_trials(folder)
            # Of renaming a folder, gcsfuse says that too many files are open.
            lacking = what.startswith("rename") and error.errno in (*storage.LACKING, errno.EMFILE)
            if not (lacking or storage.concerns_place(error)):
                raise
            told = storage.explain(error, folder)
            if lacking:
                told = f"{storage.reason(error)}; take an --output-dir on a local disk"
            raise InputError(f"--output-dir {shown or folder}: the storage cannot {what}: {told}") from None


def remove_trials(folder: Path) -> None:
    """Delete what a trial left that failed or was killed."""
    for trial in folder.glob(f"{TRIAL}*"):
        shutil.rmtree(trial, ignore_errors=True)


def check_output(path: Path) -> None:
    """Raise InputError, before any work is done, if the file of --output cannot be written."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder: give the name of a file in it")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"--output {path}: {storage.explain(error, path)}") from None


def sync(path: Path) -> None:
    """Flush a file or directory to the disk (fsync); where the storage cannot do that, warn once per file system."""
    try:
        with naming(path), _opened(path) as handle:
            os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
        device = path.stat().st_dev
        if device not in _without_sync:
            _without_sync.add(device)
            what = "folders" if path.is_dir() else "files"
            log.warning(
                "%s: the storage cannot fsync %s (%s): what was saved last could be lost in a power failure, not when "
                "a process is killed",
                path if path.is_dir() else path.parent,
                what,
                storage.reason(error),
            )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old file or the new one."""
    staging = path.with_name(f".tmp-{os.getpid()}-{path.name}")  # several processes may write the same file
    with naming(staging):
        staging.write_text(text, encoding="utf-8", errors="surrogateescape")  # file names need not be valid text
    sync(staging)
    try:
        os.replace(staging, path)
    except OSError:
        staging.unlink()
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def free_name(path: Path) -> Path:
    """The path itself if there is nothing, else with the first number that is free behind it."""
    names = itertools.chain([path], (path.with_name(f"{path.name}-{i}") for i in itertools.count(1)))
    return next(name for name in names if not os.path.lexists(name))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key(*parts: str | bytes) -> str:
    """A hash of 24 characters, valid in a file name, that differs if any part differs."""
    encoded = (part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape") for part in parts)
    return hashlib.sha256(b"\0".join(encoded)).hexdigest()[:24]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file of this process to write, which replaces `path` at the end: readers see the old file or the new one."""
    staging = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with naming(staging):
            yield staging
        sync(staging)
        os.replace(staging, path)
    except BaseException:
        with contextlib.suppress(OSError):
            staging.unlink()
        raise
    sync(path.parent)


def write_arrays(path: Path, arrays: Mapping[str, "np.ndarray"]) -> None:
    """Write arrays to one .npz file atomically."""
    import numpy as np

    with replacing(path) as staging, staging.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path, names: Iterable[str]) -> "dict[str, np.ndarray] | None":
    """Read some arrays of an .npz file that can be rebuilt; None if it is missing or damaged (CRC-32)."""
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file) as arrays:  # np.load(path) would leave a broken file open
            return {name: arrays[name] for name in names}
    except Exception:  # zipfile and NumPy raise many kinds of errors on damage
        return None
