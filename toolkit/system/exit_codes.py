"""How a recipe's process ends: its exit code, and the one line that an expected error is."""

import os
import sys
from collections.abc import Callable
from typing import Any

from toolkit.system import console, preemption
from toolkit.system.errors import InputError, PreemptedError, expected, printable

DONE, FAILED = 0, 1
EXIT_CODES = {InputError: 2, PreemptedError: preemption.EXIT_CODE}
INTERRUPTED = 130  # as shells have it: 128 and SIGINT


def exit_code_of(error: Exception) -> int:
    """0 done, 2 the user's input, 75 preempted, 1 anything else."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), FAILED)


def report_once(cause: Exception) -> None:
    """Print what ended the run, in one line that names the process, and its notes, lines of another program; once."""
    if getattr(cause, "reported", False):
        return
    cause.reported = True  # type: ignore[attr-defined]
    rank = os.environ.get("RANK", "0")
    text = "\n".join([printable(str(cause)), *getattr(cause, "__notes__", [])])
    console.say(f"error{'' if rank == '0' else f' on rank {rank}'}: {text}", sys.stderr)


def exit_code(work: Callable[[], Any]) -> int:
    """Run a recipe and return its exit code; 130 after Ctrl-C. An unexpected error keeps its traceback."""
    try:
        work()
    except Exception as error:
        cause = expected(error)
        if cause is None:
            raise
        report_once(cause)
        return exit_code_of(cause)
    except KeyboardInterrupt:  # Ctrl-C, which training takes for itself, as a request to save
        console.say("error: interrupted", sys.stderr)
        return INTERRUPTED
    return DONE
