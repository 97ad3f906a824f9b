"""One run per directory: a lock, and a note of its owner. Imports no torch."""

import logging
from pathlib import Path

from toolkit.system import files, host, locks
from toolkit.system.errors import InputError
from toolkit.system.locks import Lock

log = logging.getLogger(__name__)

LOCK, NOTE = ".lock", ".owner.json"
HELD = f"{LOCK}.held"  # stands for the lock where the storage has no locks


class RunLock:
    """The exclusive right to write into a run directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock(folder / LOCK, folder / NOTE)

    def acquire(self) -> None:
        """Lock the directory, and try in it what a run does there; raises InputError if one of that is not possible."""
        files.make_folders(self._folder)
        self.probe()
        try:
            files.remove_trials(self._folder)
            files.try_folder(self._folder)
        except (InputError, OSError):
            self.release()
            raise

    def probe(self) -> None:
        """Lock the directory; raises InputError if another run holds it and may not be displaced (--take-over)."""
        if self._lock.acquire():
            if locks.may_take_over():
                log.info("--take-over: %s was not locked, there is nothing to take over", self._folder)
            return
        if locks.may_take_over() and self._lock.take_over():
            return
        holder = self._lock.holder()
        told = f" ({holder})" if holder else ""
        remedy = "wait for it, or choose another"
        if locks.may_take_over():
            told += "; --take-over does not end it"
        elif self._lock.can_take_over():
            remedy = "wait for it, choose another, or give --take-over if it is gone"
        raise InputError(f"--output-dir {self._folder}: another run is using it{told}; {remedy}")

    def release(self) -> None:
        self._lock.release()


def run_of(path: Path) -> Path:
    """The run directory for `--resume PATH`: PATH itself, or the run of which PATH is a checkpoint."""
    is_checkpoint = path.parent.name == "checkpoints" and path.name.startswith("step-")
    return path.parent.parent if is_checkpoint else path


def refuse_if_locked(output_dir: Path | str | None, resume: str, take_over: bool = False) -> None:
    """Raise InputError if another run is using the directory; called before slow imports. URLs are left to the run.

    `take_over`: wait with that until the run itself locks its directory.
    """
    folder = output_dir or (None if resume in ("auto", "never") or "://" in resume else run_of(Path(resume)))
    if isinstance(folder, Path) and not take_over and host.is_main_process() and (folder / LOCK).exists():
        try:
            lock = RunLock(folder)
            lock.probe()
            lock.release()
        except OSError:  # no permission to write there: the run itself will report it
            return
