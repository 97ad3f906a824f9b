"""Atomic writing of files, and the location of the cache. Imports no torch."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.system.errors import InputError


def cache_dir() -> Path:
    """The folder of the cache: $TOOLKIT_CACHE, else $XDG_CACHE_HOME/toolkit, else ~/.cache/toolkit."""
    if "TOOLKIT_CACHE" in os.environ:
        return Path(os.environ["TOOLKIT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "toolkit"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to a disk error, which lacks it if it comes from writing to an open file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def make_folder(folder: Path) -> None:
    """Create the output folder; raises InputError, before any work is done, if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--output-dir {folder}: nothing can be written there: {error.strerror}") from None


def check_output(path: Path) -> None:
    """Raise InputError, before any work is done, if the file of --output cannot be written."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder: give the name of a file in it")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"--output {path}: {error.strerror}") from None


def sync(path: Path) -> None:
    """Flush a file or directory to the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
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


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key(*parts: str | bytes) -> str:
    """A hash of 24 characters, valid in a file name, that differs if any part differs."""
    encoded = (part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape") for part in parts)
    return hashlib.sha256(b"\0".join(encoded)).hexdigest()[:24]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to one .npz file atomically; each process has its own staging file."""
    staging = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    with naming(staging), staging.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    sync(staging)
    os.replace(staging, path)
    sync(path.parent)


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray] | None:
    """Read some arrays of an .npz file that can be rebuilt; None if it is missing or damaged (CRC-32)."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:  # np.load(path) would leave a broken file open
            return {name: arrays[name] for name in names}
    except Exception:  # zipfile and NumPy raise many kinds of errors on damage
        return None
