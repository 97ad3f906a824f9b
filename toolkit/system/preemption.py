"""Being asked to stop: by a signal, by the launcher's death, or by the cloud's notice. Free of torch.

A request only sets a flag, which the loop reads between steps. Before training begins there is nothing to save, and a
signal ends the run at once; once everything is saved, too; so does the second one that this process gets, at any time.
"""

import contextlib
import ctypes
import math
import os
import signal
import sys
import threading
import time
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from toolkit.system import clouds
from toolkit.system.errors import PreemptedError

EXIT_CODE = 75  # EX_TEMPFAIL: run the same command again
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
# Of the launcher's death. Not SIGTERM: after Ctrl-C, which reaches the launcher too, it would count as a second signal.
ORPHANED = getattr(signal, "SIGUSR2", None)
SAME_EVENT_S = 1.0  # launchers pass on what the terminal has already sent to everyone
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun")
LAUNCHER_MODULES = ("accelerate.", "torch.distributed.")  # as of `python -m torch.distributed.run`


class _StoppedEarly(BaseException):
    """Raised by a signal wherever the main thread is: not an Exception, which the code there might take for its own."""


class Preemption:
    """Whether this process was asked to stop; `reason` says by what, and is empty while nobody did.

    As a context manager it listens, in the main thread; what listened before is put back, unless the run was stopped:
    then only Ctrl-C is what it was. Leaving it raises PreemptedError where a signal came before training began.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._signaled = self._training = self._trained = self._saved = False
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}
        self._over = threading.Event()
        self._pipe, self._pipe_before = -1, -1

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            try:
                self._listen()
            except _StoppedEarly as error:  # a signal came meanwhile
                self.__exit__(type(error), error, None)
        return self

    def _listen(self) -> None:
        self._count_signals()
        for number in (*SIGNALS, *([ORPHANED] if ORPHANED else [])):
            self._before[number] = signal.signal(number, self._on_signal)
        _tell_of_parents_death()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        for number, handler in self._before.items():
            # A further signal, as launchers send them to a run that has saved, leaves it the exit code it has.
            if not self._saved or number == signal.SIGINT:
                signal.signal(number, handler)
        if self._pipe != -1:
            signal.set_wakeup_fd(self._pipe_before)
            os.close(self._pipe)
        if isinstance(error, _StoppedEarly):
            raise PreemptedError(str(error)) from None

    def watch(self, provider: str) -> None:
        """Ask the provider's metadata service for its notice from now on, in the background; once per machine."""
        if provider in clouds.NOTICES and os.environ.get("LOCAL_RANK", "0") == "0":
            threading.Thread(target=self._poll, args=(provider,), daemon=True, name="cloud notice").start()

    def _poll(self, provider: str) -> None:
        while not self.reason and not self._over.is_set():
            if clouds.is_preempted(provider):
                self.ask(f"a preemption notice of {provider}")
            self._over.wait(clouds.NOTICES[provider].every_s)

    def training_begins(self) -> None:
        """From here on there is something to save: a signal only sets the flag."""
        self._training = True

    def training_ends(self) -> None:
        """From here on the run takes no longer to end than to stop."""
        self._trained = True

    def saved(self) -> None:
        """Everything is on the disk: from here on a signal may end the process at once, with the exit code it has."""
        self._saved = True

    def ask(self, reason: str) -> None:
        """Ask for a stop; where all is agreed on already, nothing changes."""
        self.reason = self.reason or reason

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked loader process: its parent decides
            return
        if self._saved:
            os._exit(EXIT_CODE)
        if self._signaled or self._over.is_set():  # a repetition, else `_leave_at_second` ends the process; or the end
            return
        self._signaled = number != ORPHANED
        name = signal.Signals(number).name if self._signaled else "the end of the launcher"
        self.ask(name)
        if not self._training:
            raise _StoppedEarly(f"stopped by {name} before training began; run the same command again")
        shown, again = ("Ctrl-C", "press") if number == signal.SIGINT else (name, "send it")
        then = "all is trained, the run ends" if self._trained else "saving a checkpoint ..."
        hint = "quit at once" if self._trained else "quit without saving"
        with contextlib.suppress(OSError):  # nobody reads it any more: Ctrl-C ends a `tee` behind the run first
            os.write(2, f"{shown}: {then} ({again} again to {hint})\n".encode())

    def _count_signals(self) -> None:
        """Have the interpreter put the number of each signal into a pipe; it does so wherever the main thread waits."""
        _keep_forked_processes_out()
        reading, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._pipe_before = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        threading.Thread(target=self._leave_at_second, args=(reading,), daemon=True, name="signals").start()

    def _leave_at_second(self, reading: int) -> None:
        """A thread, as handlers do not run while the main thread waits for other processes, that may never answer."""
        first = math.inf
        with open(reading, "rb", buffering=0) as pipe:
            while byte := pipe.read(1):  # nothing once the other end is closed
                now, number = time.monotonic(), byte[0]
                if number in SIGNALS and now - first > SAME_EVENT_S:
                    os._exit(EXIT_CODE if self._saved else 128 + number)
                if number in SIGNALS:
                    first = min(first, now)


@cache
def _keep_forked_processes_out() -> None:
    """Once, as it cannot be taken back: what is sent to a forked loader process is not to be counted here."""
    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def _tell_of_parents_death() -> None:
    """Have the kernel signal this process when the launcher that started it dies without passing on why.

    Only under a launcher: a run that a shell started must outlive it.
    """
    if sys.platform == "linux" and ORPHANED and _is_launched():
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ORPHANED)


def _is_launched() -> bool:
    """By the parent's command: what launchers export is inherited further, and set by users."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")[:6]
    except OSError:
        return False
    return any(Path(word).name in LAUNCHERS or word.startswith(LAUNCHER_MODULES) for word in words)
