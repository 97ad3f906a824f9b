"""Running means, where the time goes, memory and the watch over values that are not finite."""

import copy
import mmap
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.conftest import TINY, recipe
from toolkit import Settings, SingleScale
from toolkit.data.loading.batches import Batch, TrainBatchBuilder
from toolkit.runs.directory import RunDirectory
from toolkit.strategies.base import Phase, Step
from toolkit.training import device, loop
from toolkit.training.loop import train_step
from toolkit.training.monitor import (
    NEVER,
    NonFiniteMonitor,
    RunningMeans,
    Throughput,
    peak_memory_gb,
    reset_peak_memory,
)
from toolkit.training.parts import make_parts
from toolkit.training.run_plan import make_run_plan
from toolkit.training.train_state import build_train_state

CPU = torch.device("cpu")


def test_a_mean_counts_only_the_steps_that_had_the_part_when_parts_come_and_go(accelerator: Accelerator):
    running_means = RunningMeans(CPU)
    running_means.add({"loss": torch.tensor(1.0), "loss/16px": torch.tensor(4.0)})
    running_means.add({"loss": torch.tensor(2.0)})
    running_means.add({"loss": torch.tensor(6.0, dtype=torch.bfloat16)})
    assert running_means.means(accelerator) == {"loss": 3.0, "loss/16px": 4.0}
    assert RunningMeans(CPU).means(accelerator) == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_the_first_bad_step_is_remembered_when_later_ones_are_bad_too(accelerator: Accelerator, bad: float):
    watch = NonFiniteMonitor(CPU, gradients=True)
    for step, loss in enumerate([1.0, 2.0, bad, 3.0, bad]):
        watch.see_loss(step, torch.tensor(loss))
    assert int(watch.first_bad) == 2


def test_no_step_is_bad_when_all_are_finite(accelerator: Accelerator):
    watch = NonFiniteMonitor(CPU, gradients=True)
    watch.see_loss(0, torch.tensor(1e38))
    watch.see_gradient(0, torch.tensor(0.0))
    assert int(watch.first_bad) == NEVER


def test_gradients_count_when_no_scaler_provokes_infinite_ones(accelerator: Accelerator):
    watch, scaled = NonFiniteMonitor(CPU, gradients=True), NonFiniteMonitor(CPU, gradients=False)
    for one in (watch, scaled):
        one.see_gradient(3, torch.tensor(float("inf")))
    assert (int(watch.first_bad), int(scaled.first_bad)) == (3, NEVER)


def test_the_step_in_which_the_gradient_scale_fell_below_one_is_bad_when_it_goes_on_falling(accelerator: Accelerator):
    watch = NonFiniteMonitor(CPU, gradients=False)
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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux forgets")
def test_a_peak_is_forgotten_when_the_memory_was_given_back():
    reset_peak_memory(CPU)
    with mmap.mmap(-1, 2**29) as block:  # 0.5 GB, which close gives back
        block.write(b"x" * 2**29)
        before = peak_memory_gb(CPU)
    assert peak_memory_gb(CPU) == pytest.approx(before, abs=0.01)  # control: it stays until it is reset
    reset_peak_memory(CPU)
    assert peak_memory_gb(CPU) < before - 0.4


class Clock:
    """What `time.perf_counter` says, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_times_are_those_of_the_clock_when_every_wait_and_step_is_known(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
):
    """Two micro-batches a step; 21 steps of 1 to 21 s, each with 0.25 s of waiting, and 0.5 s for other things.

    Both sizes in 10 of the steps, one in 11: 10 x 1.25 + 11 x 1 = 23.5 times 8 images, 2 x 3 times as many operations.
    """
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)

    def loading() -> Iterator[int]:
        for number in range(42):
            clock.now += 0.125
            yield number

    throughput = Throughput(CPU, {16: 0.25, 32: 1.0}, peak_tflops=0.05)
    for number in throughput.waits(loading()):
        clock.now += ((number // 2 + 1) - 0.25) / 2
        if number % 2:
            throughput.step(8, (16, 32) if number < 20 else (32,))
            clock.now += 0.5  # a log line or a checkpoint: no part of the step
    metrics = throughput.metrics(accelerator)
    seconds = 21 * 22 / 2 + 21 * 0.5
    assert metrics["step_p50_ms"] == pytest.approx(11_000)
    assert metrics["step_p95_ms"] == pytest.approx(20_000)  # 1 of 21 steps is longer
    assert metrics["data_wait_share"] == pytest.approx(21 * 0.25 / seconds)
    assert metrics["images_per_s"] == metrics["images_per_s_per_device"] == pytest.approx(21 * 8 / seconds)
    assert metrics["tflops"] == pytest.approx(6 * 8 * 23.5 / 1000 / seconds)
    assert metrics["share_of_peak"] == pytest.approx(metrics["tflops"] / 0.05)


def test_no_pace_is_told_when_no_step_was_taken(accelerator: Accelerator):
    """As in the rest of an epoch that was trained, but not evaluated, before a resume."""
    throughput = Throughput(CPU, {}, peak_tflops=1.0)
    assert list(throughput.waits(iter(()))) == []
    assert throughput.metrics(accelerator).keys() == {"peak_memory_gb"}


@pytest.mark.parametrize(
    ("slowed", "name", "most_waits"),
    [(TrainBatchBuilder, "close", True), (loop, "train_step", False)],
    ids=["loading", "training"],
)
def test_the_share_that_a_run_waits_for_batches_tells_slow_loading_from_slow_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slowed: Any, name: str, most_waits: bool
):
    work = getattr(slowed, name)

    def slow(*words: Any) -> Any:
        time.sleep(0.6)
        return work(*words)

    monkeypatch.setattr(slowed, name, slow)
    words = (*TINY, "--img-size", "32", "--epochs", "1", "--num-workers", "0")
    assert recipe("single_scale")((*words, "--output-dir", str(tmp_path / "run"))) == 0
    (row,) = (row.columns() for row in RunDirectory(tmp_path / "run").metrics())
    seconds = int(row["images_seen"]) / float(row["images_per_s"])
    assert 0.5 * float(row["train_seconds"]) < seconds < 1.01 * float(row["train_seconds"])
    assert (float(row["data_wait_share"]) > 0.5) == most_waits


@pytest.mark.parametrize("clipped", [False, True])
def test_gradient_norm_and_clipped_share_are_torchs_when_two_micro_batches_make_a_step(clipped: bool):
    settings = Settings(
        synthetic_count=60, synthetic_size=32, batch_size=24, device_batch_size=12, log_with="none", hflip=False
    )
    strategy, step = SingleScale(32), Step((32,), 24)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 12, 3, 32, 32), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 10, (4, 12), generator=generator)
    accelerator = device.start(settings)
    try:
        train_state, _ = build_train_state(accelerator, make_run_plan(accelerator, *make_parts(settings, strategy)))
        model = copy.deepcopy(train_state.weights.model).train()
        norms = []
        for first in (0, 2):
            model.zero_grad()
            for k in (first, first + 1):
                normalized = (pixels[k] / 255 - train_state.mean[:, None, None]) / train_state.std[:, None, None]
                (nn.functional.cross_entropy(model(normalized)[0], targets[k]) / 2).backward()
            norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        assert norms[0] != pytest.approx(norms[1], rel=0.01)

        if clipped:  # one of the two
            train_state = replace(train_state, gradient_clip=sum(norms) / 2)
        train_state.model.train()
        for k in range(4):
            batch = Batch(pixels[k], targets[k], np.arange(12), step, k // 2)
            train_step(train_state, batch, Phase(0, 1, 2, (32,), 24), learning_rate=0.0)
        means = train_state.running_means.means(accelerator)
        assert means["gradient_norm"] == pytest.approx(sum(norms) / 2, rel=1e-3)
        assert means["clipped_share"] == (0.5 if clipped else 0.0)
    finally:
        device.stop()
