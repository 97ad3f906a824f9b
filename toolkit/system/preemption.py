"""Graceful shutdown on a signal, on the launcher's death, or on a cloud preemption notice. Imports no torch.

A request only sets a flag, which the loop reads between steps. A signal ends the run at once before training begins,
when there is nothing to save, and after everything is saved. A second signal to this process ends it at any time; but
not SIGHUP, because people also close the terminal after Ctrl-C.
"""

import contextlib
import ctypes
import itertools
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
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
HANGUP = getattr(signal, "SIGHUP", None)  # the terminal was closed
# Sent on the launcher's death. Not SIGTERM: after Ctrl-C, which also reaches the launcher, it would count as a second.
ORPHANED = getattr(signal, "SIGUSR2", None)
SAME_EVENT_S = 1.0  # launchers forward signals that the terminal already sent to all processes
PR_SET_PDEATHSIG = 1  # from Linux's prctl.h
LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun")
LAUNCHER_MODULES = ("accelerate.", "torch.distributed.")  # as in `python -m torch.distributed.run`


class _StoppedEarly(BaseException):
    """Raised by a signal, anywhere in the main thread; not an Exception, so that the code there does not catch it."""


class Preemption:
    """Collects stop requests to this process; `reason`: the source of the first one, empty if there was none.

    As a context manager in the main thread it installs signal handlers. On exit it restores the former ones; after a
    saved stop only that of Ctrl-C. It raises PreemptedError on exit if a signal came before training began.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._signaled = self._training = self._trained = self._saved = False
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}
        self._over = threading.Event()
        self._pipe, self._pipe_before = -1, -1

    def __enter__(self) -> "Preemption":
        if sets_handlers():
            try:
                self._listen()
            except _StoppedEarly as error:  # a signal came while handlers were installed
                self.__exit__(type(error), error, None)
        return self

    def _listen(self) -> None:
        self._count_signals()
        for number in (*SIGNALS, *([ORPHANED] if ORPHANED else [])):
            if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup: it is to outlive its terminal
                self._before[number] = signal.signal(number, self._on_signal)
        _tell_of_parents_death()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        for number, handler in self._before.items():
            # Launchers may send more signals to a run that has saved; they must not change its exit code.
            if not self._saved or number == signal.SIGINT:
                signal.signal(number, handler)
        if self._pipe != -1:
            signal.set_wakeup_fd(self._pipe_before)
            os.close(self._pipe)
        if isinstance(error, _StoppedEarly):
            raise PreemptedError(str(error)) from None

    def watch(self, provider: str) -> None:
        """Start polling the provider's metadata service for a notice, in the background; one process per machine."""
        if provider in clouds.NOTICES and os.environ.get("LOCAL_RANK", "0") == "0":
            threading.Thread(target=self._poll, args=(provider,), daemon=True, name="cloud notice").start()

    def _poll(self, provider: str) -> None:
        while not self.reason and not self._over.is_set():
            if clouds.is_preempted(provider):
                self.ask(f"a preemption notice of {provider}")
            self._over.wait(clouds.NOTICES[provider].every_s)

    def training_begins(self) -> None:
        """Mark that there is something to save: from now on a signal only sets the flag."""
        self._training = True

    def training_ends(self) -> None:
        """Mark that training is complete: from now on finishing the run takes no longer than stopping it."""
        self._trained = True

    def saved(self) -> None:
        """Mark that everything is on disk: from now on a signal ends the process at once, with exit code 75."""
        self._saved = True

    def ask(self, reason: str) -> None:
        """Request a stop; a second request keeps the reason of the first."""
        self.reason = self.reason or reason

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked loader process: its parent decides
            return
        if self._saved:
            os._exit(EXIT_CODE)
        # A repetition of the same event (`_leave_at_second` ends the process at a second signal), or the run is over.
        if self._signaled or self._over.is_set():
            return
        self._signaled = number != ORPHANED
        name = signal.Signals(number).name if self._signaled else "the end of the launcher"
        shown, again = ("Ctrl-C", "press") if number == signal.SIGINT else (name, "send it")
        self.ask(name)
        if not self._training:
            raise _StoppedEarly(f"stopped by {shown} before training began; run the same command again")
        then = "all is trained, the run ends" if self._trained else "saving a checkpoint ..."
        hint = f" ({again} again to quit {'at once' if self._trained else 'without saving'})" if self._signaled else ""
        if os.environ.get("LOCAL_RANK", "0") != "0":  # one line is enough for a machine
            return
        with contextlib.suppress(OSError):  # stderr is closed: Ctrl-C ends a `tee` behind the run first
            os.write(2, f"{shown}: {then}{hint}\n".encode())

    def _count_signals(self) -> None:
        """Make the interpreter write each signal's number into a pipe, which works wherever the main thread waits."""
        _keep_forked_processes_out()
        reading, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._pipe_before = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        threading.Thread(target=self._leave_at_second, args=(reading,), daemon=True, name="signals").start()

    def _leave_at_second(self, reading: int) -> None:
        """End the process at the second signal.

        Runs in a thread: handlers do not run while the main thread waits for other ranks, which may never answer.
        """
        first = math.inf
        with open(reading, "rb", buffering=0) as pipe:
            while byte := pipe.read(1):  # empty once the other end is closed
                now, number = time.monotonic(), byte[0]
                if number in SIGNALS and number != HANGUP and now - first > SAME_EVENT_S:
                    os._exit(EXIT_CODE if self._saved else 128 + number)
                if number in SIGNALS:
                    first = min(first, now)


def sets_handlers() -> bool:
    """Whether this thread may set handlers of signals: Python allows it to the main thread only."""
    return threading.current_thread() is threading.main_thread()


@cache
def _keep_forked_processes_out() -> None:
    """Keep signals to forked loader processes out of this process's pipe; cached, as the hook cannot be removed."""
    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def _tell_of_parents_death() -> None:
    """Make the kernel signal this process when its launcher dies without forwarding a signal.

    Only under a launcher: a run started by a shell must outlive the shell.
    """
    if sys.platform == "linux" and ORPHANED and is_launched():
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ORPHANED)


def is_launched() -> bool:
    """Whether a launcher started this process, by the parent's command.

    Not by the environment: children inherit the launchers' variables, and users set them.
    """
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")[:6]
    except OSError:
        return False
    names = [Path(word).name for word in words]
    return (
        any(name in LAUNCHERS for name in names)
        or any(word.startswith(LAUNCHER_MODULES) for word in words)
        or ("toolkit", "launch") in itertools.pairwise(names)
    )
