"""Training throughput, step time and memory at each scale and precision, loader speed, and the bottleneck.

Steps are timed on batches in memory, with a device sync after each. The loader is timed alone, on the run's images.
"""

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from toolkit.config.choices import Precision
from toolkit.config.settings import Settings
from toolkit.data.loading.batches import Batch
from toolkit.data.loading.pipeline import DataPipeline, open_pipeline
from toolkit.data.loading.sampler import BatchSpec, Epoch, RankShare, Sampler
from toolkit.strategies import SingleScale
from toolkit.strategies.base import Phase, Step, Strategy
from toolkit.system import console, host
from toolkit.system.errors import InputError, naming_memory
from toolkit.system.result import Result
from toolkit.training import device
from toolkit.training.monitor import peak_memory_gb, reset_peak_memory
from toolkit.training.parts import make_parts
from toolkit.training.roofline import TRAINING, Case, Ceiling, Knobs, Traffic, ceiling, training_gflop, verdict
from toolkit.training.run_plan import RunPlan, make_run_plan, undefined_gradient
from toolkit.training.step import train_step
from toolkit.training.train_state import TrainState, build_train_state

log = logging.getLogger(__name__)

WARM_UP_STEPS, TIMED_STEPS = 3, 10
LOADER_S, LOADER_BATCHES = 2.0, 100  # the loader is timed until it reaches either limit,
LEAST_BATCHES = 5  # but for at least this many batches


@dataclass(frozen=True, repr=False)
class BenchmarkReport(Result):
    """Machine and run (`conditions`), the measured cases, and one line per case that names the bottleneck."""

    conditions: dict[str, Any]
    cases: list[Case]
    verdicts: list[str]

    @property
    def text(self) -> str:
        return "\n".join(table(self))

    def to_json(self) -> dict[str, Any]:
        return {
            **self.conditions,
            "cases": [
                {**asdict(case), "share_of_peak": case.share_of_peak, "bound": case.bound, "verdict": line}
                for case, line in zip(self.cases, self.verdicts, strict=True)
            ],
        }


def benchmark(
    settings: Settings,
    strategy: Strategy,
    *,
    precisions: Sequence[Precision] = (),
    batch_sizes: Sequence[int] = (),
    steps: int = TIMED_STEPS,
) -> BenchmarkReport:
    """Measure each scale alone, then the strategy's own steps; logs tables, keeps no trained weights.

    `precisions`: a subset of `device.precisions()`, empty: all. `batch_sizes`: empty: the one of the settings. Raises
    InputError for the same reasons as a run, and if no case can be measured.
    """
    strange = {*precisions} - {*device.precisions()}
    if strange:
        raise InputError(f"--precisions {min(strange)}: this device computes in {', '.join(device.precisions())}")
    cases: list[Case] = []
    ceilings: dict[str, Ceiling] = {}
    loader: dict[tuple[int, ...], float] = {}
    for precision in precisions or device.precisions():
        accelerator = device.start(settings, precision)
        console.start(accelerator.is_main_process)
        try:
            where = {"device": device.name(accelerator), "processes": accelerator.num_processes}
            ceilings[precision] = ceiling(accelerator.device, precision)
            for batch_size in batch_sizes or (settings.batch_size,):
                sized = settings.model_copy(update={"batch_size": batch_size})
                run_plan = make_run_plan(accelerator, *make_parts(sized, strategy), only_timed=True)
                state, _ = build_train_state(accelerator, run_plan, only_some_scales=True)
                loader = loader or _loader_rates(state, run_plan)
                for sizes in _all_sizes(run_plan):
                    if reason := undefined_gradient(accelerator, run_plan.model, sizes):
                        log.info("left out  %s, whose gradient torch leaves undefined", reason)
                        continue
                    with naming_memory(f"in a step of {batch_size} images at {'+'.join(map(str, sizes))} px"):
                        measured = _measure(state, run_plan, sizes, steps, ceilings[precision])
                    cases.append(replace(measured, precision=precision, loader_images_per_s=loader[sizes]))
                del state
        finally:
            device.stop()
    if not cases:
        raise InputError("nothing is left to measure: take larger sizes or another of --precisions")
    cases.sort(key=lambda case: (len(case.sizes), case.sizes, case.batch_size))
    size_flag = "--img-size" if isinstance(strategy, SingleScale) else "--scales"
    knobs = Knobs(run_plan.threads, host.loader_threads(), run_plan.cache.kind, settings.compile, size_flag)
    conditions = {
        "arch": settings.model_name,
        **where,
        "torch": torch.__version__,
        "data": run_plan.splits.source,
        "steps": steps,
        **asdict(knobs),
        "ceilings": {precision: asdict(reached) for precision, reached in ceilings.items()},
    }
    report = BenchmarkReport(conditions, cases, [verdict(case, cases, knobs) for case in cases])
    for line in table(report):
        log.info(line)
    return report


def table(report: BenchmarkReport) -> list[str]:
    """The report as lines of text."""
    conditions, cases = report.conditions, report.cases
    resident = " of the whole process" if conditions["device"].startswith("cpu") else ""
    limits = ", ".join(f"{name} {c['tflops']:.3g}" for name, c in conditions["ceilings"].items())
    lines = [
        f"benchmark {conditions['arch']} on {conditions['processes']} x {conditions['device']}, "
        f"{conditions['steps']} steps a case; "
        f"memory is the peak{resident}",
        f"peak      10^12 operations/s of a large matrix product here: {limits}",
        f"loader    {conditions['data']}, {conditions['workers']} worker(s), cache {conditions['cache']}, timed alone",
        f"{'px':>14} {'precision':>9} {'batch':>6} {'images/s':>9} {'p50 ms':>8} {'p95 ms':>8} {'peak memory GB':>14} "
        f"{'GFLOP/step':>10} {'of peak':>7} {'loader images/s':>15}",
    ]
    names = ["+".join(map(str, case.sizes)) for case in cases]
    for name, case in zip(names, cases, strict=True):
        lines.append(
            f"{name:>14} {case.precision:>9} {case.batch_size:6} {case.images_per_s:9.1f} {case.step_p50_ms:8.1f} "
            f"{case.step_p95_ms:8.1f} {case.peak_memory_gb:14.2f} {case.gflop:10.1f} {case.share_of_peak:7.0%} "
            f"{case.loader_images_per_s:15.0f}"
        )
    for name, case, line in zip(names, cases, report.verdicts, strict=True):
        lines.append(f"verdict   {name} px, {case.precision}, {case.batch_size} images per step: {line}")
    return lines


def _all_sizes(run_plan: RunPlan) -> list[tuple[int, ...]]:
    """The sizes of each phase, and each size alone; fewest sizes first."""
    own = {tuple(phase.sizes) for phase in run_plan.steps.phases}
    return sorted({*own, *((size,) for sizes in own for size in sizes)}, key=lambda sizes: (len(sizes), sizes))


def _measure(state: TrainState, run_plan: RunPlan, sizes: tuple[int, ...], steps: int, reached: Ceiling) -> Case:
    """Measure one case; the caller fills in its precision and loader throughput."""
    accelerator, plan = state.accelerator, run_plan.steps
    if len(sizes) == 1:
        state = replace(state, strategy=SingleScale(sizes[0]))
    batch_size, micro_batch, labels = plan.budget.batch_size, plan.micro_batch, run_plan.splits.train.labels
    device.give_back_memory()
    reset_peak_memory(accelerator.device)
    p50, p95 = np.percentile(_step_seconds(state, labels, sizes, micro_batch, batch_size, steps), (50, 95)).tolist()
    memory = peak_memory_gb(accelerator.device)
    fewer = max(2, micro_batch // 2)  # BatchNorm needs 2 images
    short = -(-steps // 2)  # a median needs fewer samples than a percentile
    halved = np.median(_step_seconds(state, labels, sizes, fewer, batch_size, short)) if fewer < micro_batch else None
    fixed = None if halved is None else p50 - micro_batch * (p50 - halved) / (micro_batch - fewer)
    gflop = batch_size * training_gflop(run_plan.model.gmacs, sizes)
    moved = TRAINING * plan.accumulation(plan.phases[0]) * _forward_bytes(state, labels, sizes, micro_batch)
    return Case(
        sizes=sizes,
        precision="",
        batch_size=batch_size,
        images_per_s=batch_size / p50,
        step_p50_ms=1000 * p50,
        step_p95_ms=1000 * p95,
        peak_memory_gb=memory,
        gflop=gflop,
        arithmetic_ms=gflop / plan.processes / reached.tflops,
        traffic_ms=moved / reached.gb_per_s / 1e6,
        fixed_share=None if fixed is None else float(np.clip(fixed / p50, 0, 1)),
        loader_images_per_s=0.0,
    )


def _batch(sizes: tuple[int, ...], labels: np.ndarray, images: int, batch_size: int) -> Batch:
    """A batch of noise with the first of the data's `labels`."""
    shape, generator = (images, sizes[-1], sizes[-1], 3), torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    given = torch.from_numpy(np.resize(labels[:images], (images, *labels.shape[1:])))  # repeated where there are fewer
    return Batch(pixels, given, np.arange(images), Step(sizes, batch_size), 0)


def _step_seconds(
    state: TrainState, labels: np.ndarray, sizes: tuple[int, ...], micro_batch: int, batch_size: int, steps: int
) -> list[float]:
    """Seconds of each timed optimizer step on noise that lies in memory."""
    batch = _batch(sizes, labels, micro_batch, batch_size)
    state.model.train()
    state.compile(sizes, micro_batch)
    return step_seconds(state, itertools.repeat(batch), Phase(0, 1, 1, sizes, batch_size), steps)


def step_seconds(
    state: TrainState, batches: Iterator[Batch], phase: Phase, steps: int, warm_up: int = WARM_UP_STEPS
) -> list[float]:
    """Seconds of each timed optimizer step, on this process's clock; the weights stay as they are."""
    state.model.train()
    times = []
    for _ in range(warm_up + steps):
        started = time.perf_counter()
        for _ in range(state.accelerator.gradient_accumulation_steps):
            train_step(state, next(batches), phase, learning_rate=0.0)
        int(state.non_finite.first_bad)  # synchronizes with the device
        times.append(time.perf_counter() - started)
    return times[warm_up:]


@torch.no_grad()
def _forward_bytes(state: TrainState, labels: np.ndarray, sizes: tuple[int, ...], micro_batch: int) -> int:
    """Bytes that the operations of one forward pass read and write, in the accelerator's precision."""
    images, _ = state.receive(_batch(sizes, labels, micro_batch, micro_batch), state.tasks[1.0])
    views = state.views(images, sizes)
    with torch.compiler.set_stance("force_eager"), state.accelerator.autocast(), Traffic() as traffic:
        state.weights.model.eval()(*views)
    return traffic.bytes


def _loader_rates(state: TrainState, run_plan: RunPlan) -> dict[tuple[int, ...], float]:
    """Images per second that the loader alone delivers at each of the sizes, over all processes.

    Each case has its own epoch, so that a large data set gives it other images. With a RAM cache the images are read
    once before timing, because in a run only the first epoch finds the cache empty.
    """
    accelerator, plan = state.accelerator, run_plan.steps
    splits, cache, transform = run_plan.splits, run_plan.cache, run_plan.parts.transform
    pipeline = open_pipeline(run_plan.resolved, state.strategy, splits, cache, run_plan.threads, transform)
    rates = {}
    for number, sizes in enumerate(_all_sizes(run_plan)):
        epoch = next(epoch for epoch in plan.epochs() if {*sizes} <= {*epoch.phase.sizes})
        alone = pipeline
        if len(sizes) == 1:
            alone = replace(pipeline, sampler=replace(pipeline.sampler, strategy=SingleScale(sizes[0])))
        share, batches = plan.share(accelerator.process_index, epoch.phase), LOADER_BATCHES
        for _ in range(2 if run_plan.cache.kind == "ram" else 1):
            rate, batches = delivered(alone, epoch._replace(number=number), share, batches, LOADER_S)
        slowest = accelerator.gather(torch.tensor([rate], device=accelerator.device)).min().item()
        rates[sizes] = slowest * plan.processes
    return rates


def delivered(pipeline: DataPipeline, epoch: Epoch, share: RankShare, most: int, longest_s: float) -> tuple[float, int]:
    """Images per second of one process over at most `most` batches, and the number of batches timed.

    Stops after `longest_s` seconds, but not before LEAST_BATCHES.
    """
    stream = endless(pipeline, epoch, share)
    images, count, seconds, started = 0, 0, 0.0, time.perf_counter()
    while count < most and (count < LEAST_BATCHES or seconds < longest_s):
        images, count = images + len(next(stream).ids), count + 1
        seconds = time.perf_counter() - started
    return images / seconds, count


def endless(pipeline: DataPipeline, epoch: Epoch, share: RankShare) -> Iterator[Batch]:
    """One process's micro-batches of an epoch, again and again.

    Without those that are delivered while workers start: one batch with threads, one per worker with processes, each
    of which loads whole batches.
    """
    repeated = replace(pipeline, sampler=_Endless(**vars(pipeline.sampler)))
    stream = repeated.batches(epoch, epoch.start, share)
    for _ in range(max(1, pipeline.workers) if pipeline.in_processes else 1):
        next(stream)
    return stream


class _Endless(Sampler):
    """Repeats an epoch without end: a small data set has few batches, and workers should start only once."""

    def batch_specs(self, epoch: Epoch, from_step: int = 0) -> Iterator[BatchSpec]:
        while True:
            yield from super().batch_specs(epoch, from_step)
