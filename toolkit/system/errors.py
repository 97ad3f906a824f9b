"""The ways a run ends badly on purpose; everything else is a bug and keeps its traceback."""

import errno
import sys


class InputError(ValueError):
    """The user's flags, configuration or data are wrong: one clear line, exit code 2."""


class BadSampleError(InputError):
    """One image cannot be used: `name` is what the data set calls it, `reason` says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: cannot be read as an image: {self.reason}"


class NonFiniteError(RuntimeError):
    """A loss or gradient became NaN or infinite: one line naming step and samples, exit code 1."""


class LoaderError(RuntimeError):
    """A loader's worker hung or died, or its storage failed: one line naming the cause, exit code 1."""


class SaveError(RuntimeError):
    """A checkpoint could not be written, as all processes know: one line naming the file and its size, exit code 1."""


class DiskError(RuntimeError):
    """Another file could not be written, as one process met: one line naming it, exit code 1."""


class PreemptedError(RuntimeError):
    """A signal or a cloud's notice stopped the run, whose steps are saved: exit code 75, the same command continues.

    `exit_reason`: what summary.json says; the message may become more detailed.
    """

    def __init__(self, exit_reason: str) -> None:
        super().__init__(exit_reason)
        self.exit_reason = exit_reason


class ResumeError(RuntimeError):
    """A killed run did not go on, or did not end like an undisturbed one: exit code 1."""


class ExportError(RuntimeError):
    """An exported model cannot be made, or does not say what the run's own says: one line with both, exit code 1."""


class PeerError(RuntimeError):
    """Another process of the run is gone: one line that points to its message, exit code 1."""


WORKER_DIED = "a loader process died, killed or out of memory"
EXPECTED = (
    InputError,
    NonFiniteError,
    LoaderError,
    SaveError,
    DiskError,
    PreemptedError,
    ResumeError,
    ExportError,
    PeerError,
)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # of a disk, not of our code
NO_WAY = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)  # of the paths that a user gave


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """On one line and valid in UTF-8, whatever a file system called it: other characters as Python escapes them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def expected(error: Exception) -> Exception | None:
    """One of the errors above: the error itself, or what torch's words mean; None for a bug. Imports no torch.

    That a loader process was killed, torch raises from a signal handler, wherever the main thread is at that moment.
    """
    if isinstance(error, EXPECTED):
        return error
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return DiskError(f"{error.filename or 'a file'}: {error.strerror}; the last checkpoint still stands")
    if isinstance(error, OSError) and error.errno in NO_WAY and error.filename:
        return InputError(f"{error.filename2 or error.filename}: {error.strerror}")
    if not isinstance(error, RuntimeError):
        return None
    text = first_line(error)
    if text.startswith("DataLoader worker"):
        return LoaderError(f"{WORKER_DIED}: {text.strip()}")
    torch = sys.modules.get("torch")
    from_backend = torch is not None and isinstance(error, torch.distributed.DistError)
    if from_backend or "gloo" in text or "Connection closed by peer" in text:
        return PeerError(f"another process of this run stopped first, its message says why (here: {text})")
    return None
