"""Running means and the watch over values that are not finite."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from toolkit import Settings, device
from toolkit.monitor import NEVER, FiniteWatch, Meter, peak_memory_gb

CPU = torch.device("cpu")


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    accelerator = device.start(Settings(log_with="none"))
    yield accelerator
    device.stop()


def test_a_mean_counts_only_the_steps_that_had_the_part_when_parts_come_and_go(accelerator: Accelerator):
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "loss/16px": torch.tensor(4.0)})
    meter.add({"loss": torch.tensor(2.0)})
    meter.add({"loss": torch.tensor(6.0, dtype=torch.bfloat16)})
    assert meter.means(accelerator) == {"loss": 3.0, "loss/16px": 4.0}
    assert Meter().means(accelerator) == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_the_first_bad_step_is_remembered_when_later_ones_are_bad_too(accelerator: Accelerator, bad: float):
    watch = FiniteWatch(CPU, gradients=True)
    for step, loss in enumerate([1.0, 2.0, bad, 3.0, bad]):
        watch.see_loss(step, torch.tensor(loss))
    assert int(watch.first_bad) == 2


def test_no_step_is_bad_when_all_are_finite(accelerator: Accelerator):
    watch = FiniteWatch(CPU, gradients=True)
    watch.see_loss(0, torch.tensor(1e38))
    watch.see_gradient(0, torch.tensor(0.0))
    assert int(watch.first_bad) == NEVER


def test_gradients_count_when_no_scaler_provokes_infinite_ones(accelerator: Accelerator):
    watch, scaled = FiniteWatch(CPU, gradients=True), FiniteWatch(CPU, gradients=False)
    for one in (watch, scaled):
        one.see_gradient(3, torch.tensor(float("inf")))
    assert (int(watch.first_bad), int(scaled.first_bad)) == (3, NEVER)


def test_the_step_in_which_the_gradient_scale_fell_below_one_is_bad_when_it_goes_on_falling(accelerator: Accelerator):
    watch = FiniteWatch(CPU, gradients=False)
    watch.see_scale(1, 2.0**16)
    watch.see_scale(2, 1.0)
    assert int(watch.first_bad) == NEVER
    watch.see_scale(3, 0.5)
    watch.see_scale(4, 0.25)
    assert int(watch.first_bad) == 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells")
def test_memory_is_what_the_kernel_says_when_there_is_no_accelerator():
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    assert peak_memory_gb(CPU) == pytest.approx(int(peak[1]) / 2**20, rel=0.02)
