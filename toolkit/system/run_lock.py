"""One run per directory: a lock that the kernel frees with its process, and a note of its owner. Imports no torch."""

import contextlib
import json
import os
import socket
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from toolkit.system import host
from toolkit.system.errors import InputError

LOCK, NOTE = ".lock", ".owner.json"


class RunLock:
    """The exclusive right to write into a run directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / LOCK)

    def acquire(self) -> None:
        """Lock the directory and write a note of the owner; raises InputError if another run holds it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.probe()
        note = {"host": socket.gethostname(), "pid": os.getpid(), "since": f"{datetime.now().astimezone():%c %Z}"}
        (self._folder / NOTE).write_text(json.dumps(note) + "\n")

    def probe(self) -> None:
        """Like `acquire`, without the note."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise InputError(
                f"--output-dir {self._folder}: another run is using it{self._holder()}; wait for it, or choose another"
            ) from None

    def release(self) -> None:
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                (self._folder / NOTE).unlink(missing_ok=True)
            self._lock.release()

    def _holder(self) -> str:
        try:
            note = json.loads((self._folder / NOTE).read_text())
            return f" (process {note['pid']} on {note['host']}, since {note['since']})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""


def run_of(path: Path) -> Path:
    """The run directory for `--resume PATH`: PATH itself, or the run of which PATH is a checkpoint."""
    is_checkpoint = path.parent.name == "checkpoints" and path.name.startswith("step-")
    return path.parent.parent if is_checkpoint else path


def refuse_if_locked(output_dir: Path | None, resume: str) -> None:
    """Raise InputError if another run is using the directory; called before slow imports."""
    folder = output_dir or (None if resume in ("auto", "never") else run_of(Path(resume)))
    if folder is not None and host.is_main_process() and (folder / LOCK).exists():
        try:
            lock = RunLock(folder)
            lock.probe()
            lock.release()
        except OSError:  # no permission to write there: the run itself will report it
            return
