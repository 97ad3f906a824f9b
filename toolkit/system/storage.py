"""What errors of the storage and of the system mean: one line with the file, the cause and what to do."""

import errno
import os
import re
import traceback
from pathlib import Path

AGAIN = "run the same command again"
GONE = f"its server does not answer: once it does, {AGAIN}"
LOCAL_DISK = "this storage cannot do that: take a place on a local disk"
ACCESS = "check its owner and permissions, or take another place"
OPEN_FILES = "this process may not open more files: raise `ulimit -n`, or lower --num-workers"
THREADS = f"no process, thread or lock is left (`ulimit -u`): lower --num-workers, or {AGAIN}"
SHARED_MEMORY = "raise /dev/shm (docker run --shm-size=1g or --ipc=host), or lower --num-workers"
# What to do, by the name of the error; not every system has all of them.
ADVICE = {
    "ENOSPC": "make room there, or take another place",
    "EDQUOT": "your quota there is used up: delete files, or ask for more",
    "EFBIG": "the storage or `ulimit -f` does not allow files so large: raise the limit, or take another place",
    "EROFS": "it is mounted read-only: take a place that can be written to",
    "EIO": "the disk, or the way to it, failed: see `dmesg`",
    "EREMOTEIO": "the disk, or the way to it, failed: see `dmesg`",
    "EUCLEAN": "the file system is damaged: check it with fsck",
    "EBADMSG": "the file system is damaged: check it with fsck",
    "ESTALE": f"it was replaced or deleted on the server of this network storage: {AGAIN}",
    **dict.fromkeys(("ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET"), GONE),
    **dict.fromkeys(("ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "ECOMM", "ENOLINK", "ENONET", "EPROTO"), GONE),
    **dict.fromkeys(("ENOTCONN", "ESHUTDOWN", "ENODEV", "ENXIO", "ENOMEDIUM"), "it is gone: mount it again"),
    **dict.fromkeys(("EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED", "ENOKEY"), "log in to that storage again (kinit)"),
    **dict.fromkeys(("EACCES", "EPERM"), ACCESS),
    "ENAMETOOLONG": "take a shorter name",
    "EILSEQ": "the storage does not allow this name: take another one",
    "ELOOP": "its symbolic links lead in a circle: repair them",
    "ENOTDIR": "a part of this path is a file, not a folder",
    "EISDIR": "it is a folder, not a file",
    "ENOENT": "it is not there: was it moved, deleted or unmounted?",
    **dict.fromkeys(("EEXIST", "ENOTEMPTY"), f"another process wrote there: {AGAIN}"),
    "EMFILE": OPEN_FILES,
    "ENFILE": "the machine may not open more files: end other programs, or raise fs.file-max",
    "ENOMEM": "no memory is left: lower --num-workers or --batch-size, or end other programs",
    "EAGAIN": THREADS,
    "EINTR": f"a signal interrupted it: {AGAIN}",
    "EBUSY": f"another program uses it: end that, then {AGAIN}",
    "ETXTBSY": f"it is a program that runs: end that, then {AGAIN}",
    "EMLINK": "the folder has too many entries: delete some, or take another place",
    **dict.fromkeys(("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EXDEV", "EINVAL", "ENOLCK", "ENOTTY"), LOCAL_DISK),
}
BY_NUMBER = {getattr(errno, name): text for name, text in ADVICE.items() if hasattr(errno, name)}
NO_INODES = "no file entries (inodes) are left there: delete files, however small (`df -i` counts them)"
OF_PATHS = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ)
# What the machine or the process lacks, wherever the file lies.
ANYWHERE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR)
# What a storage answers that lacks an operation.
LACKING = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EPERM, errno.EINVAL)


def number_of(error: BaseException) -> int | None:
    """The errno of an error, also of a library that only tells it in its text; None if there is none."""
    told = re.search(r"\(os error (\d+)\)|: [A-Z][\w ]+ \((\d+)\)$|\[Errno (\d+)\]", str(error))
    return getattr(error, "errno", None) or (int(next(filter(None, told.groups()))) if told else None)


def reason(error: BaseException) -> str:
    """The cause without the file: the system's text for its errno, else the first line of its own."""
    number, text = number_of(error), str(error).strip().partition("\n")[0]
    return getattr(error, "strerror", None) or (os.strerror(number) if number else text or type(error).__name__)


def advice(error: BaseException, path: Path | str | None = None) -> str:
    """What to do about an error, empty if it has no errno; `path`: the file, where the error does not name it."""
    number, place = number_of(error), file_of(error) or path
    if number is None:
        return ""
    if number == errno.ENOSPC and place is not None and not _inodes_left(Path(place)):
        return NO_INODES
    return BY_NUMBER.get(number, f"{AGAIN}; if that does not help, take another place")


def is_of_path(error: BaseException) -> bool:
    """Whether what a user named is at fault, such as a file where a folder should be, not the disk that holds it."""
    return number_of(error) in OF_PATHS and file_of(error) is not None


def concerns_place(error: BaseException) -> bool:
    """Whether another place for the file may help."""
    return number_of(error) not in ANYWHERE


def file_of(error: BaseException) -> str | None:
    """The file that the error names; of a rename the target."""
    names = (getattr(error, name, None) for name in ("filename2", "filename"))
    return next((os.fsdecode(name) for name in names if isinstance(name, str | bytes | os.PathLike) and name), None)


def room(path: Path | str) -> str:
    """How much is free where a file is or would be, such as ` (8192 bytes free)`; empty if unknown."""
    found = _nearest(Path(path))
    inodes = "" if _inodes_left(Path(path)) else "0 inodes, "
    return f" ({inodes}{found.f_bavail * found.f_frsize} bytes free)" if found else ""


def explain(error: BaseException, path: Path | str | None = None) -> str:
    """The cause and what to do, without the file; `path`: that file, where the error does not name it."""
    place = file_of(error) or path
    full = number_of(error) in (errno.ENOSPC, errno.EDQUOT) and place is not None
    told = (f"{reason(error)}{room(place) if full and place else ''}", advice(error, path))
    return ": ".join(filter(None, told))


def line(error: BaseException, path: Path | str | None = None) -> str:
    """The whole line: the file, else the place in the code, the cause and what to do."""
    place = file_of(error) or path
    if place is None:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"a system call ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else "a system call"
    return f"{place}: {explain(error, path)}"


def _nearest(path: Path) -> os.statvfs_result | None:
    """The file system of a path, or of the nearest folder above that exists."""
    for folder in (path, *path.absolute().parents):
        try:
            return os.statvfs(folder)
        except (OSError, ValueError):
            continue
    return None


def _inodes_left(path: Path) -> bool:
    """Whether there is an entry left for another file; also if the file system does not count them."""
    found = _nearest(path)
    return found is None or not found.f_files or found.f_favail > 0 or found.f_bavail == 0
