"""What all processes of a run decide together, now and then: to stop, to save, that a value is not finite."""

import time
from typing import NamedTuple

import torch
from accelerate import Accelerator

from toolkit.system.errors import PreemptedError
from toolkit.system.preemption import Preemption
from toolkit.training.monitor import NEVER, NonFiniteMonitor

ASK_EVERY_S = 1.0  # so that all have agreed well within 5 s
MOST_CALLS = 100


class Decision(NamedTuple):
    """`first_bad`: the first optimizer step whose loss or gradient was not finite, as far as was looked."""

    stop: bool = False
    save: bool = False
    first_bad: int | None = None


class Consensus:
    """Every process asks equally often; most calls cost nothing, about one in a second a message to all others."""

    def __init__(
        self, accelerator: Accelerator, non_finite: NonFiniteMonitor, preemption: Preemption, save_every_minutes: float
    ) -> None:
        self._accelerator, self._non_finite, self._preemption = accelerator, non_finite, preemption
        self._save_every_s = 60 * save_every_minutes
        self._alone = accelerator.num_processes == 1
        self._saved_at = time.monotonic()
        self.begin()

    def begin(self) -> None:
        """Calls now come at another rate than before: the next one asks."""
        self._calls, self._next, self._asked_at = 0, 1, time.monotonic()
        self._microseconds = 0  # from one call to the next, as far as it is known

    def saved(self) -> None:
        self._saved_at = time.monotonic()

    def poll(self, force: bool = False) -> Decision:
        """What was decided. `force`: to look for values that are not finite, which waits for the device."""
        stop = bool(self._preemption.reason)
        save = time.monotonic() - self._saved_at > self._save_every_s and self._accelerator.is_main_process
        force |= self._non_finite.reads_are_free
        if self._alone:
            force |= stop or save  # nothing is saved that was not looked at
            return Decision(stop, save, _step(int(self._non_finite.first_bad)) if force else None)
        self._calls += 1
        if not force and self._calls < self._next:
            return Decision()
        own = torch.tensor([stop, save, self._microseconds, 0], device=self._accelerator.device)
        own[3] = -self._non_finite.first_bad
        stops, saves, slowest, bad = self._accelerator.gather(own[None]).amax(0).tolist()
        # From answer to answer, each of which waits for the device: calls alone return while it is still at work.
        now = time.monotonic()
        self._microseconds = max(1, round(1e6 * (now - self._asked_at) / self._calls))
        self._calls, self._asked_at = 0, now
        self._next = max(1, min(MOST_CALLS, int(1e6 * ASK_EVERY_S / slowest))) if slowest else 1
        if stops:
            self._preemption.ask("another process of this run")
        return Decision(bool(stops), bool(saves), _step(-bad))

    def raise_if_stopping(self) -> None:
        """Raises PreemptedError on every process where one was asked to stop."""
        if self.poll().stop:
            raise self.stopped()

    def stopped(self) -> PreemptedError:
        return PreemptedError(f"preempted by {self._preemption.reason}")


def _step(first_bad: int) -> int | None:
    return None if first_bad == NEVER else first_bad
