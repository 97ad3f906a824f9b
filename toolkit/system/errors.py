"""Expected errors of a run; everything else is a bug and keeps its traceback."""

import errno
import sys


class InputError(ValueError):
    """The user's flags, configuration or data are wrong: one clear line, exit code 2."""


class BadSampleError(InputError):
    """One image cannot be read; `name`: its name in the data set."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: cannot be read as an image: {self.reason}"


class NonFiniteError(RuntimeError):
    """A loss or gradient became NaN or infinite: one line naming step and samples, exit code 1."""


class LoaderError(RuntimeError):
    """A loader worker hung or died, or its storage failed: one line naming the cause, exit code 1."""


class SaveError(RuntimeError):
    """A checkpoint could not be written, raised on all ranks: one line naming the file and its size, exit code 1."""


class DiskError(RuntimeError):
    """Another file could not be written, raised on one rank: one line naming it, exit code 1."""


class PreemptedError(RuntimeError):
    """A signal or a cloud's notice stopped the run, with its steps saved: exit code 75, the same command continues.

    `exit_reason`: the text for summary.json; the message may become more detailed.
    """

    def __init__(self, exit_reason: str) -> None:
        super().__init__(exit_reason)
        self.exit_reason = exit_reason


class ResumeError(RuntimeError):
    """A killed run did not resume, or its result differs from that of an uninterrupted run: exit code 1."""


class ExportError(RuntimeError):
    """A model cannot be exported, or its predictions differ from the run's: one line with both, exit code 1."""


class PeerError(RuntimeError):
    """Another rank of the run is gone: one line that points to its message, exit code 1."""


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
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # faults of a disk, not of our code
NO_WAY = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)  # faults of a user's path


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """`text`, such as any file name, on one line and in valid UTF-8: other characters are escaped as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def expected(error: Exception) -> Exception | None:
    """Convert an error to one of those above: itself, or by its errno or torch's message; None for a bug.

    Imports no torch. Torch reports a killed loader process from a signal handler, so that error can come from anywhere
    in the main thread.
    """
    if isinstance(error, EXPECTED):
        return error
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return DiskError(f"{error.filename or 'a file'}: {error.strerror}; the last checkpoint is intact")
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
