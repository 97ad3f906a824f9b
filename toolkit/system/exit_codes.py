"""Exit codes of a recipe, and the one-line message of an expected error."""

import os
import sys
from collections.abc import Callable
from typing import Any

from toolkit.system import console, environment, host, places, preemption
from toolkit.system.errors import DiskError, InputError, PreemptedError, SaveError, expected, printable

DONE, FAILED = 0, 1
EXIT_CODES = {InputError: 2, PreemptedError: preemption.EXIT_CODE}
INTERRUPTED = 130  # as in shells: 128 + SIGINT


def exit_code_of(error: Exception) -> int:
    """2 for the user's input, 75 if preempted, 1 for anything else; 0 is success."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), FAILED)


def is_first_here() -> bool:
    """Whether this is the only process of the run on this machine, or the first of them."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def report_once(cause: Exception) -> None:
    """Print why the run ended, once: one line that names the rank other than 0, then the error's notes.

    Notes are output lines of another program. Of the processes of a machine, one prints what all have in common: a stop
    that was asked for, and mistakes that are found before torch is imported.
    """
    stopped = isinstance(cause, PreemptedError)
    common = stopped or (isinstance(cause, InputError) and "torch" not in sys.modules)
    if getattr(cause, "reported", False) or (common and not is_first_here()):
        return
    cause.reported = True  # type: ignore[attr-defined]
    rank = os.environ.get("RANK", "0")
    text = "\n".join([printable(str(cause)), *getattr(cause, "__notes__", [])])
    if stopped:  # no error
        head = "" if rank == "0" else f"rank {rank}: "
    else:
        head = "error: " if rank == "0" else f"error on rank {rank}: "
    console.say(f"{head}{text}", sys.stderr, plain=isinstance(cause, SaveError | DiskError))  # of a disk


def exit_code(work: Callable[[], Any]) -> int:
    """Run a recipe and return its exit code; 130 after Ctrl-C. An unexpected error keeps its traceback."""
    try:
        environment.provide_streams()
        environment.tidy_variables()
        environment.quiet_torch()
        host.leave_idle_cores()
        places.provide_home()
        work()
    except Exception as error:
        cause = expected(error)
        if cause is None:
            raise
        report_once(cause)
        return exit_code_of(cause)
    except KeyboardInterrupt:  # Ctrl-C; training handles it itself, as a request to save
        if is_first_here():
            console.say("stopped by Ctrl-C", sys.stderr)
        return INTERRUPTED
    return DONE
