"""Being asked to stop: by a signal, by the launcher's death, or by the cloud's notice. Free of torch.

A request only sets a flag, which the loop reads between steps. Before training begins there is nothing to save, and a
signal ends the run at once; once everything is saved, too.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from toolkit import clouds
from toolkit.errors import PreemptedError

EXIT_CODE = 75  # EX_TEMPFAIL: run the same command again
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
# Of the launcher's death. Not SIGTERM: after Ctrl-C, which reaches the launcher too, it would count as a second signal.
ORPHANED = getattr(signal, "SIGUSR2", None)
SAME_EVENT_S = 1.0  # launchers pass on what the terminal has already sent to everyone
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # set by torchrun and `accelerate launch`


class Preemption:
    """Whether this process was asked to stop; `reason` says by what, and is empty while nobody did.

    As a context manager it listens, in the main thread; what listened before is put back, unless the run was stopped.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._since = 0.0
        self._training = self._saved = False
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            for number in (*SIGNALS, *([ORPHANED] if ORPHANED else [])):
                self._before[number] = signal.signal(number, self._on_signal)
            _tell_of_parents_death()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self._saved:  # else a further signal, as launchers send them, finds a run that has saved: see below
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def watch(self, provider: str) -> None:
        """Ask the provider's metadata service for its notice from now on, in the background; once per machine."""
        if provider in clouds.NOTICES and os.environ.get("LOCAL_RANK", "0") == "0":
            threading.Thread(target=self._poll, args=(provider,), daemon=True, name="cloud notice").start()

    def _poll(self, provider: str) -> None:
        while not self.reason:
            if clouds.is_preempted(provider):
                self.ask(f"a preemption notice of {provider}")
            time.sleep(clouds.NOTICES[provider].every_s)

    def training_begins(self) -> None:
        """From here on there is something to save: a signal only sets the flag."""
        self._training = True

    def saved(self) -> None:
        """Everything is on the disk: from here on a signal may end the process at once, with the exit code it has."""
        self._saved = True

    def ask(self, reason: str) -> None:
        """Ask for a stop; where all is agreed on already, nothing changes."""
        if not self.reason:
            self._since, self.reason = time.monotonic(), reason

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked loader process: its parent decides
            return
        if self._saved:
            os._exit(EXIT_CODE)
        name = "the end of the launcher" if number == ORPHANED else signal.Signals(number).name
        if self.reason:
            if number != ORPHANED and time.monotonic() - self._since > SAME_EVENT_S:
                os._exit(128 + number)
            return
        self.ask(name)
        if not self._training:
            raise PreemptedError(f"stopped by {name} before training began; run the same command again")
        os.write(2, f"{name}: saving a checkpoint, then exit code {EXIT_CODE}; once more: leaving at once\n".encode())


def _tell_of_parents_death() -> None:
    """Have the kernel signal this process when the launcher that started it dies without passing on why.

    Only under a launcher: a run that a shell started must outlive it.
    """
    if sys.platform == "linux" and ORPHANED and any(name in os.environ for name in LAUNCHERS):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ORPHANED)
