"""How often the processes of a run ask each other, told on a device that works behind its host's back."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from toolkit.system.preemption import Preemption
from toolkit.training import consensus
from toolkit.training.consensus import Consensus
from toolkit.training.monitor import NonFiniteMonitor

ENQUEUE_S, AHEAD = 0.005, 4  # what the host needs for a step, and how many it may be ahead of the device


class Device:
    """Stands for two processes and their device, by a clock of its own: only a gather waits for the work to end."""

    num_processes, is_main_process, device = 2, True, torch.device("cpu")

    def __init__(self, step_s: float) -> None:
        self.now = self.idle_at = 0.0
        self.step_s, self.asked = step_s, [0.0]

    def step(self) -> None:
        self.now += ENQUEUE_S
        self.idle_at = max(self.idle_at, self.now) + self.step_s
        self.now = max(self.now, self.idle_at - AHEAD * self.step_s)

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        self.now = max(self.now, self.idle_at)
        self.asked.append(self.now)
        return torch.cat([own, own])


@pytest.mark.parametrize("step_s", [0.001, 0.02, 0.3, 2.0])
def test_processes_ask_within_seconds_when_the_device_lags_behind_the_host(monkeypatch, step_s: float):
    device = Device(step_s)
    monkeypatch.setattr(consensus, "time", SimpleNamespace(monotonic=lambda: device.now))
    watch = NonFiniteMonitor(torch.device("cpu"), True)
    watch.reads_are_free = False  # as on a GPU
    asking = Consensus(device, watch, Preemption(), save_every_minutes=10)
    asking.begin()
    for step in range(1, 1001):
        device.step()
        asking.poll(force=step % 50 == 0)
    longest = max(later - earlier for earlier, later in pairwise(device.asked))
    assert longest < max(1.5, step_s + 0.1)
    assert (
        len(device.asked) < 1000 * max(2 * max(step_s, ENQUEUE_S), 1 / 50) + 5
    )  # and not much more than once a second
