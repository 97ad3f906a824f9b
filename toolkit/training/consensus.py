"""Flags that all ranks must agree on (stop, save, non-finite loss), reduced about once a second."""

import signal
import time
from typing import NamedTuple

import torch
from accelerate import Accelerator

from toolkit.system.errors import PreemptedError
from toolkit.system.preemption import Preemption
from toolkit.training.monitor import NEVER, NonFiniteMonitor

ASK_EVERY_S = 1.0  # keeps the delay until all ranks agree well below 5 s
MOST_CALLS = 100
NO_SIGNAL = 255  # stands for other causes of a stop, such as a notice of a cloud


class Decision(NamedTuple):
    """A decision that all ranks share.

    `first_bad`: first optimizer step with a non-finite loss or gradient; None if there was none or it was not checked.
    """

    stop: bool = False
    save: bool = False
    first_bad: int | None = None


class Consensus:
    """Reduces the flags of all ranks, which must call `poll` equally often.

    Most calls only count; about one per second communicates.
    """

    def __init__(
        self, accelerator: Accelerator, non_finite: NonFiniteMonitor, preemption: Preemption, save_every_minutes: float
    ) -> None:
        self._accelerator, self._non_finite, self._preemption = accelerator, non_finite, preemption
        self._save_every_s = 60 * save_every_minutes
        self._alone = accelerator.num_processes == 1
        self._saved_at = time.monotonic()
        self.begin()

    def begin(self) -> None:
        """Restart the estimate of the call rate, which changes here; the next `poll` communicates."""
        self._calls, self._next, self._asked_at = 0, 1, time.monotonic()
        self._microseconds = 0  # between two calls; 0: not measured yet

    def saved(self) -> None:
        self._saved_at = time.monotonic()

    def poll(self, force: bool = False) -> Decision:
        """Return the decision of all ranks. `force`: also check for non-finite values, which waits for the device."""
        stop = bool(self._preemption.reason)
        save = time.monotonic() - self._saved_at > self._save_every_s and self._accelerator.is_main_process
        force |= self._non_finite.reads_are_free
        if self._alone:
            force |= stop or save  # never save a state that was not checked
            return Decision(stop, save, _step(int(self._non_finite.first_bad)) if force else None)
        self._calls += 1
        if not force and self._calls < self._next:
            return Decision()
        cause = _cause(self._preemption.reason)
        own = torch.tensor([cause, save, self._microseconds, 0], device=self._accelerator.device)
        own[3] = -self._non_finite.first_bad
        stops, saves, slowest, bad = self._accelerator.gather(own[None]).amax(0).tolist()
        # Measured between two gathers, which wait for the device: other calls return while it is still computing.
        now = time.monotonic()
        self._microseconds = max(1, round(1e6 * (now - self._asked_at) / self._calls))
        self._calls, self._asked_at = 0, now
        self._next = max(1, min(MOST_CALLS, int(1e6 * ASK_EVERY_S / slowest))) if slowest else 1
        if stops:
            of = f"{signal.Signals(stops).name} to " if stops != NO_SIGNAL else ""
            self._preemption.ask(f"{of}another process of this run")
        return Decision(bool(stops), bool(saves), _step(-bad))

    def raise_if_stopping(self) -> None:
        """Raise PreemptedError on every rank if any rank received a stop request."""
        if self.poll().stop:
            raise self.stopped()

    def stopped(self) -> PreemptedError:
        return PreemptedError(f"preempted by {self._preemption.reason}")


def _cause(reason: str) -> int:
    """The number of the signal that a process is stopped by; 0 if it is not stopped."""
    named = signal.Signals.__members__.get(reason, NO_SIGNAL)
    return int(named) if reason else 0


def _step(first_bad: int) -> int | None:
    return None if first_bad == NEVER else first_bad
