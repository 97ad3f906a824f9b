"""Locks of files that name their holder, on any storage. Imports no torch.

A lock is the kernel's flock, which ends with its process. Where the storage has none (NFS without lockd, Lustre without
-o flock, some FUSE), it is a file that exists as long as the lock is held, and may outlive its holder.
"""

import contextlib
import errno
import functools
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from toolkit.system import files, storage
from toolkit.system.errors import InputError

log = logging.getLogger(__name__)

NO_FLOCK = (*storage.LACKING, errno.ENOLCK)
SILENT_S, REMIND_S = 5.0, 60.0  # from when on, and how often, a line names the holder that is waited for
LONGEST_WAIT_S = 6 * 3600.0  # for a holder that is not seen to live: one on another machine may have died
RECENT_S = 60.0  # a lock of the cache taken since so long before this process began may be one of the same run
POLL_S = 0.05  # between attempts to take a lock
BEGAN = time.time()
_without_flock: set[int] = set()  # file systems, as device numbers, that a warning was given for
_taking_over = False


@contextlib.contextmanager
def taking_over(allowed: bool) -> Iterator[None]:
    """Within, `--take-over` holds if `allowed`: a lock is broken whose holder is not on this machine."""
    global _taking_over
    before, _taking_over = _taking_over, allowed
    try:
        yield
    finally:
        _taking_over = before


def may_take_over() -> bool:
    return _taking_over


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock; `boot`, `pids`: of its machine and its process numbers; `began`: see proc(5)."""

    host: str
    pid: int
    since: str
    at: float = 0.0  # seconds since 1970
    boot: str = ""
    pids: str = ""
    began: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_local(self) -> bool:
        """Whether it runs, or ran, on this machine since it was switched on, be it in a container."""
        mine = myself()
        return self.boot == mine.boot if self.boot and mine.boot else self.host == mine.host

    @property
    def is_alive(self) -> bool | None:
        """None if this process cannot tell: on another machine, or in another container."""
        if not self.is_local or self.pids not in ("", myself().pids):
            return None
        import psutil  # imported here: most locks are free

        if not psutil.pid_exists(self.pid):
            return False
        return not self.began or _began(self.pid) in ("", self.began)  # else the number belongs to another process now


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return ""


def _began(pid: int) -> str:
    """When a process began, in ticks since the machine did; empty if unknown."""
    return (_text_of(f"/proc/{pid}/stat").rpartition(")")[2].split() or [""] * 20)[19]


def myself() -> Holder:
    return _holder_of(os.getpid())


@functools.lru_cache(maxsize=2)  # of this process, and of one that it was forked from
def _holder_of(pid: int) -> Holder:
    pids = Path("/proc/self/ns/pid")
    return Holder(
        host=socket.gethostname(),
        pid=pid,
        since="",
        boot=_text_of("/proc/sys/kernel/random/boot_id"),
        pids=str(pids.stat().st_ino) if pids.exists() else "",
        began=_began(pid),
    )


def read_holder(note: Path) -> Holder | None:
    """The holder as a note has it, also one of an earlier version; None if there is no readable note."""
    try:
        values = json.loads(note.read_text())
        known = {field.name: values[field.name] for field in fields(Holder) if field.name in values}
        return Holder(**{**known, "pid": int(known["pid"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_marker(path: Path) -> Holder | None:
    """The holder as filelock's own file has it, which stands for the lock where there is no flock."""
    try:
        pid, place = path.read_text().splitlines()[:2]
        since = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
        host, _, pids = place.partition("?pidns-")  # filelock's mark of a container
        return Holder(host, int(pid), f"{since:%c %Z}", pids=str(int(pids, 16)) if pids else "")
    except (OSError, ValueError):
        return None


class Lock:
    """The lock of a file; `note`: the file beside it that names the holder (unset: PATH.owner)."""

    def __init__(self, path: Path, note: Path | None = None, poll_s: float = POLL_S) -> None:
        self._path, self._note = path, note or path.with_name(f"{path.name}.owner")
        self._lock: FileLock | SoftFileLock = FileLock(path, poll_interval=poll_s, fallback_to_soft=False)

    @property
    def is_soft(self) -> bool:
        return isinstance(self._lock, SoftFileLock)

    @property
    def is_held(self) -> bool:
        """Whether this object holds it."""
        return self._lock.is_locked

    def acquire(self, timeout_s: float = 0.0) -> bool:
        """Take the lock; False if another holds it for so long. Raises OSError."""
        found = read_holder(self._note)
        if not self._take(timeout_s):
            return False
        if self.is_soft and found and found.is_alive is False:
            log.warning("%s: taken over from %s, which is gone", self._path, found)
        now = {**asdict(myself()), "since": f"{datetime.now().astimezone():%c %Z}", "at": time.time()}
        with contextlib.suppress(OSError):  # it only helps others
            self._note.unlink(missing_ok=True)  # it may belong to another user
            self._note.write_text(json.dumps(now) + "\n")
        return True

    def can_take_over(self) -> bool:
        """Whether --take-over takes it from its holder, who is not seen to live."""
        holder = self.holder()
        if self.is_soft:
            return holder is None or not holder.is_alive
        return holder is not None and not holder.is_local  # on this machine the kernel knows: it is held

    def take_over(self) -> bool:
        """Take the lock in spite of its holder, where `can_take_over`."""
        if not self.can_take_over():
            return False
        holder = self.holder()
        if self.is_soft:
            self._lock.break_lock()
        else:
            self._path.unlink(missing_ok=True)
        log.warning("%s: taken over from %s (--take-over)", self._path, holder or "an unknown process")
        with contextlib.suppress(OSError):
            self._note.unlink(missing_ok=True)
        return self.acquire()

    def release(self) -> None:
        if self.is_held:
            with contextlib.suppress(OSError):
                self._note.unlink(missing_ok=True)
            self._lock.release()

    def holder(self) -> Holder | None:
        """Who holds the lock, or held it when it died; None if nobody wrote that down."""
        noted = read_holder(self._note)
        if not self.is_soft:
            return noted
        marked = _read_marker(Path(self._lock.lock_file))  # the note may be of another one, who was killed
        return noted if noted and marked and noted.pid == marked.pid else marked

    def use_file(self) -> None:
        """From now on a file stands for the lock."""
        self._lock = SoftFileLock(f"{self._path}.held", poll_interval=self._lock.poll_interval)

    def _take(self, timeout_s: float) -> bool:
        try:
            with files.naming(self._path):
                self._lock.acquire(timeout=timeout_s)
        except Timeout:
            holder = self.holder()
            if not (self.is_soft and holder and holder.is_alive is False):
                return False
            self._lock.break_lock()  # filelock does that itself where it can swap two files
            return self._take(timeout_s)
        except OSError as error:
            if self.is_soft or error.errno not in NO_FLOCK:
                raise
            self._warn(error)
            self.use_file()
            return self._take(timeout_s)
        return True

    def _warn(self, error: OSError) -> None:
        device = self._path.parent.stat().st_dev
        if device not in _without_flock:
            _without_flock.add(device)
            log.warning(
                "%s: the storage has no file locks (%s): a file stands for each lock instead, and stays if this "
                "machine dies",
                self._path.parent,
                storage.reason(error),
            )


@contextlib.contextmanager
def locked(path: Path | str, poll_s: float = POLL_S) -> Iterator[None]:
    """Hold the lock of something in the cache, which the first process builds and the others wait for.

    After some seconds a line names who is waited for. Raises InputError if that takes LONGEST_WAIT_S and the holder is
    not seen to live.
    """
    lock = Lock(Path(path), poll_s=poll_s)
    began, pause = time.monotonic(), SILENT_S
    while not lock.acquire(pause):
        holder, waited = lock.holder(), time.monotonic() - began
        if _taking_over and not (holder and holder.at > BEGAN - RECENT_S) and lock.take_over():
            break
        told = str(holder or "an unknown process")
        if not (holder and holder.is_alive) and waited > LONGEST_WAIT_S:
            raise InputError(
                f"{path}: locked by {told}, for more than {waited / 3600:.0f} hours: if that is gone, delete that file "
                "(in training also --take-over; --cache-dir names another place)"
            )
        if holder is None or (holder.pid, holder.boot) != (os.getpid(), myself().boot):
            log.info("waiting   %s is locked by %s, which may be building it", path, told)
        pause = REMIND_S
    try:
        yield
    finally:
        lock.release()
