"""Throughput, step time and memory of training at each scale, on batches in memory: no files, no waiting."""

import logging
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from toolkit import console, device
from toolkit.contract import Phase, Step, Strategy
from toolkit.data.jobs import Batch
from toolkit.learner import Learner, build_learner
from toolkit.loop import learn
from toolkit.monitor import peak_memory_gb, reset_peak_memory
from toolkit.prepare import prepare
from toolkit.settings import Settings
from toolkit.strategies import SingleScale

log = logging.getLogger(__name__)

WARM_UP_STEPS, TIMED_STEPS = 3, 10


@dataclass(frozen=True)
class Measurement:
    """Training at `sizes` px: images per second over all processes, median step, most memory so far."""

    sizes: tuple[int, ...]
    images_per_s: float
    step_ms: float
    peak_memory_gb: float


def benchmark(settings: Settings, strategy: Strategy) -> list[Measurement]:
    """Measure each scale alone, then the strategy's own steps; prints a table, trains nothing that is kept."""
    accelerator = device.start(settings)
    console.start(accelerator.is_main_process)
    try:
        prepared = prepare(accelerator, settings, strategy)
        learner, _ = build_learner(accelerator, strategy, prepared, only_some_scales=True)
        own = {tuple(phase.sizes) for phase in prepared.plan.phases}
        cases = sorted({*own, *((size,) for sizes in own for size in sizes)}, key=lambda sizes: (len(sizes), sizes))
        results = [
            _measure(learner, sizes, prepared.plan.micro_batch, prepared.plan.budget.batch_size) for sizes in cases
        ]
    finally:
        device.stop()
    log.info(
        "benchmark %s, %d images per step, median of %d steps",
        settings.arch,
        prepared.plan.budget.batch_size,
        TIMED_STEPS,
    )
    log.info("  %14s  %10s  %8s  %14s", "px", "images/s", "ms/step", "peak memory GB")
    for result in results:
        log.info(
            "  %14s  %10.1f  %8.1f  %14.2f",
            "+".join(map(str, result.sizes)),
            result.images_per_s,
            result.step_ms,
            result.peak_memory_gb,
        )
    return results


def _measure(learner: Learner, sizes: tuple[int, ...], micro_batch: int, batch_size: int) -> Measurement:
    accelerator = learner.accelerator
    if len(sizes) == 1:
        learner = replace(learner, strategy=SingleScale(sizes[0]))
    phase, step = Phase(0, 1, 1, sizes, batch_size), Step(sizes, batch_size)
    generator = torch.Generator().manual_seed(0)
    shape = (micro_batch, sizes[-1], sizes[-1], 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    batch = Batch(images, torch.zeros(micro_batch, dtype=torch.int64), np.arange(micro_batch), step, 0)
    learner.model.train()
    reset_peak_memory(accelerator.device)
    times = []
    for _ in range(WARM_UP_STEPS + TIMED_STEPS):
        started = time.perf_counter()
        for _ in range(accelerator.gradient_accumulation_steps):
            learn(learner, batch, phase, learning_rate=0.0)
        int(learner.watch.first_bad)  # waits for the device
        times.append(time.perf_counter() - started)
    median = statistics.median(times[WARM_UP_STEPS:])
    return Measurement(sizes, batch_size / median, 1000 * median, peak_memory_gb(accelerator.device))
