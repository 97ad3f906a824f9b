"""Expected errors of a run; everything else is a bug and keeps its traceback."""

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Iterable, Iterator

from toolkit.system import storage

FEWER = (
    "use fewer images per forward pass (--device-batch-size in training, --batch-size in evaluate and predict), "
    "smaller sizes or a smaller model"
)


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


class StoreError(RuntimeError):
    """An object store did not do what was asked: one line with the reason, exit code 1."""


class UploadError(RuntimeError):
    """A run is complete on this machine, but not in the object store where it lives: one line, exit code 1."""


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


class OutOfMemoryError(RuntimeError):
    """Memory of the host or the device ran out: one line with what needed it and the flag to change, exit code 1."""

    def __init__(self, what: str, advice: str = FEWER) -> None:
        super().__init__(f"out of memory {what}; {advice}")
        self.what, self.advice = what, advice


WORKER_DIED = "a loader process died, killed or out of memory"
EXPECTED = (
    InputError,
    NonFiniteError,
    LoaderError,
    SaveError,
    StoreError,
    UploadError,
    DiskError,
    PreemptedError,
    ResumeError,
    ExportError,
    PeerError,
    OutOfMemoryError,
)
# In messages of torch for CPUs and GPUs, of C++, of CUDA's libraries, of a worker of torch's loader, and of Python.
NO_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED", "MemoryError")
NO_MEMORY_OF_ONEDNN = (
    "could not create a primitive",
    "could not create a memory object",
    "could not execute a primitive",
)
# How torch and Python begin to tell what the system refused them, where that is no OSError -> what to do.
REFUSED = {
    "unable to allocate shared memory": storage.SHARED_MEMORY,
    "unable to mmap": storage.SHARED_MEMORY,
    "unable to open shared memory": storage.OPEN_FILES,
    "Too many open files": storage.OPEN_FILES,
    "received 0 items of ancdata": storage.OPEN_FILES,
    "can't start new thread": storage.THREADS,
}


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """`text`, such as any file name, on one line and in valid UTF-8: other characters are escaped as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def missing_memory(error: Exception) -> str:
    """What could not be allocated, if an error says that memory ran out; else empty."""
    if isinstance(error, EXPECTED):  # such as one that says that a process may have been out of memory
        return ""
    text = first_line(error)
    if isinstance(error, MemoryError):
        return f"of the host: {text}"
    signs = text in NO_MEMORY_OF_ONEDNN or any(sign in text for sign in NO_MEMORY)
    if not isinstance(error, RuntimeError) or not signs:
        return ""
    tried = re.search(r"tried to allocate ([\d.]+) (\w+)", text, re.IGNORECASE)
    if not tried:
        return f"({text})"
    size = f"{int(tried[1]) / 1e9:.2g} GB" if tried[2] == "bytes" else f"{tried[1]} {tried[2]}"
    return f"of the {'host' if 'CPU' in text else 'device'} (another {size} could not be allocated)"


@contextlib.contextmanager
def naming_memory(what: str) -> Iterator[None]:
    """Raise OutOfMemoryError with `what` needed the memory, if it runs out within."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemoryError) or not (missing := missing_memory(error)):
            raise
        raise OutOfMemoryError(f"{missing} {what}") from None


def expected(error: Exception) -> Exception | None:
    """Convert an error to one of those above: itself, or by its errno or torch's message; None for a bug.

    Imports no torch. Torch reports a killed loader process from a signal handler, so that error can come from anywhere
    in the main thread.
    """
    if isinstance(error, EXPECTED):
        return error
    if missing := missing_memory(error):
        return OutOfMemoryError(missing)
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding() != "utf-8":
        text = error.object.encode("ascii", "backslashreplace").decode()
        return InputError(f"{text}: no file name in the encoding {error.encoding} of this locale: set PYTHONUTF8=1")
    if isinstance(error, OSError):
        return _of_the_system(error)
    if not isinstance(error, RuntimeError):
        return None
    text = first_line(error)
    if refused := next((told for start, told in REFUSED.items() if text.startswith(start)), None):
        return LoaderError(f"{text}: {refused}")
    if text.startswith("DataLoader worker"):
        return LoaderError(f"{WORKER_DIED}: {text.strip()}")
    if "Duplicate GPU detected" in str(error):  # NCCL's, after other lines
        return InputError(
            "the launcher started more processes on a machine than it has GPUs: give --nproc-per-node (torchrun) or "
            "--num_processes (accelerate launch) at most their number"
        )
    torch = sys.modules.get("torch")
    from_backend = torch is not None and isinstance(error, torch.distributed.DistError)
    if from_backend or "gloo" in text or "Connection closed by peer" in text:
        return PeerError(f"another process of this run stopped first, its message says why (here: {text})")
    return None


def _of_the_system(error: OSError) -> Exception | None:
    """An OSError is the system's, and becomes one line: by its errno, or of a library such as PIL by its own text.

    A misused stream and an error without any text are bugs; a torch worker's error brings its traceback as text.
    """
    misused = isinstance(error, io.UnsupportedOperation) or str(error).startswith("Caught ")
    if error.errno is None and (misused or not str(error).strip()):
        return None
    return (InputError if storage.is_of_path(error) else DiskError)(storage.line(error))


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at the known name closest to a mistyped one; empty if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
