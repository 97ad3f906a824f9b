"""Measures what a run's time consists of: steps, loading, evaluation and start, on this machine."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator

from toolkit.data.loading.pipeline import DataPipeline, open_pipeline
from toolkit.data.loading.reader import ImageReader
from toolkit.models.evaluator import Evaluator
from toolkit.models.multiview import MultiView
from toolkit.strategies import SingleScale
from toolkit.strategies.base import Phase, Strategy, at_size
from toolkit.system.errors import naming_memory
from toolkit.tools.benchmark import LOADER_BATCHES, delivered, endless, step_seconds
from toolkit.training import device
from toolkit.training.monitor import peak_memory_gb, reset_peak_memory
from toolkit.training.run_plan import RunPlan
from toolkit.training.train_state import TrainState, build_train_state

STEPS_S, FEWEST_STEPS, MOST_STEPS = 2.0, 3, 50  # steps are timed for so long, within these numbers
LOADER_S = 0.5  # each time the loader is timed alone
EVAL_BATCHES = 4  # per process
MOST_CASES = 8  # measured for one strategy; between them times are interpolated
COUNTED_STEPS = 9973  # of a phase; prime, so that steps in turn are counted alike

Sizes = tuple[int, ...]
StepKind = tuple[Sizes, int, tuple[str, ...]]  # sizes, batch size, trainable parts


@dataclass(frozen=True)
class StepTime:
    """An optimizer step of `batch_size` images at `sizes` px, seconds: fed by the loader, and loading alone.

    `cold_s`: loading images that are not in memory yet; `load_s`: where the run keeps them in memory, from there.
    `compile_s`: with `--compile`, once a run.
    """

    sizes: Sizes
    batch_size: int
    step_s: float
    load_s: float
    cold_s: float
    memory_gb: float
    compile_s: float = 0.0
    trainable: tuple[str, ...] = ()  # as in `Phase`

    @property
    def kind(self) -> "StepKind":
        return self.sizes, self.batch_size, self.trainable

    @property
    def pixels(self) -> int:
        return self.batch_size * sum(size * size for size in self.sizes)


@dataclass(frozen=True)
class EvalTime:
    """Seconds to evaluate one image at all of `sizes` px, over all processes; `cold_s`: from its file."""

    sizes: Sizes
    image_s: float
    cold_s: float

    @property
    def pixels(self) -> int:
        return sum(size * size for size in self.sizes)


@dataclass(frozen=True)
class Times:
    """What was measured. `start_s`: imports, data, model; `shares_cores`: the loader runs on the cores that train."""

    steps: tuple[StepTime, ...]
    evals: tuple[EvalTime, ...]
    start_s: float
    shares_cores: bool

    def step(self, sizes: Sizes, batch_size: int, trainable: tuple[str, ...] = ()) -> StepTime:
        """The measured step, or one interpolated between those with fewer and with more pixels."""
        wanted = StepTime(sizes, batch_size, 0.0, 0.0, 0.0, 0.0, trainable=trainable)
        same = (time for time in self.steps if time.kind == wanted.kind)
        return next(same, None) or _between(wanted, self.steps)

    def evaluation(self, sizes: Sizes) -> EvalTime:
        """The same for an evaluation."""
        same = (time for time in self.evals if time.sizes == sizes)
        return next(same, None) or _between(EvalTime(sizes, 0.0, 0.0), self.evals)


T = TypeVar("T", StepTime, EvalTime)


def _between(wanted: T, measured: Sequence[T]) -> T:
    """`wanted` with all seconds and GB interpolated by pixels; beyond the most pixels in proportion to them."""
    ordered = sorted(measured, key=lambda time: time.pixels)
    pixels = [time.pixels for time in ordered]
    beyond = max(1.0, wanted.pixels / pixels[-1])
    names = [field.name for field in fields(wanted) if field.name.endswith(("_s", "_gb"))]
    found: dict[str, Any] = {}
    for name in names:
        found[name] = beyond * float(np.interp(wanted.pixels, pixels, [getattr(time, name) for time in ordered]))
    return replace(wanted, **found)


def step_counts(strategy: Strategy, phase: Phase) -> Counter[Sizes]:
    """How many steps of a phase have which sizes; those of a very long phase are counted from a part of them."""
    if phase.steps <= COUNTED_STEPS:
        return Counter(strategy.step(phase, i).sizes for i in range(phase.steps))
    some = Counter(strategy.step(phase, k * phase.steps // COUNTED_STEPS).sizes for k in range(COUNTED_STEPS))
    return Counter({sizes: round(count * phase.steps / COUNTED_STEPS) for sizes, count in some.items()})


def eval_sizes(strategy: Strategy) -> Sizes:
    """The sizes of all evaluations of a strategy, px."""
    return tuple(sorted({size for spec in strategy.eval_specs() for size in spec.sizes}))


def measure(accelerator: Accelerator, run_plans: Sequence[RunPlan], planned_s: float = 0.0) -> Times:
    """Time every step and evaluation that the runs consist of, each once; every rank must call it.

    `planned_s`: how long it took to make one of the plans. All ranks get the times of the slowest.
    """
    steps: dict[StepKind, StepTime] = {}
    evals: dict[Sizes, EvalTime] = {}
    built_s = []
    for run_plan in run_plans:
        strategy = run_plan.parts.strategy
        cases = {kind: phase for kind, phase in _cases(run_plan).items() if kind not in steps}
        unseen = [sizes for sizes in {strategy.selection().sizes, eval_sizes(strategy)} if sizes not in evals]
        if not cases and not unseen:
            continue
        started = time.perf_counter()
        state, evaluated = build_train_state(accelerator, run_plan)
        built_s.append(time.perf_counter() - started)
        transform = run_plan.parts.transform
        pipeline = open_pipeline(
            run_plan.resolved, strategy, run_plan.splits, run_plan.cache, run_plan.threads, transform
        )
        for kind, phase in cases.items():
            with naming_memory(f"in a step of {phase.batch_size} images at {'+'.join(map(str, phase.sizes))} px"):
                steps[kind] = _step_time(state, run_plan, pipeline, phase, len(steps))
        for sizes in sorted(unseen):
            evals[sizes] = _eval_time(state, run_plan, evaluated, sizes)
        del state
    start_s = _slowest(accelerator, [_import_seconds(accelerator) + planned_s + min(built_s)])[0]
    return Times(tuple(steps.values()), tuple(evals.values()), start_s, accelerator.device.type == "cpu")


def _cases(run_plan: RunPlan) -> dict[StepKind, Phase]:
    """A phase with only these sizes for every kind of step in the run; of many, some from the fewest to most pixels."""
    found: dict[StepKind, Phase] = {}
    for phase in run_plan.steps.phases:
        for sizes in step_counts(run_plan.parts.strategy, phase):
            found.setdefault((sizes, phase.batch_size, phase.trainable), replace(phase, sizes=sizes))
    ordered = sorted(found, key=lambda kind: kind[1] * sum(size * size for size in kind[0]))
    kept = np.linspace(0, len(ordered) - 1, min(len(ordered), MOST_CASES)).round().astype(int)
    return {ordered[i]: found[ordered[i]] for i in kept}


def _step_time(state: TrainState, run_plan: RunPlan, pipeline: DataPipeline, phase: Phase, number: int) -> StepTime:
    """Time one case; `number`: that of the epoch whose images are loaded, another one for each case."""
    accelerator, plan = state.accelerator, run_plan.steps
    share = plan.share(accelerator.process_index, phase)
    epoch = next(epoch for epoch in plan.epochs() if epoch.phase.index == phase.index)
    epoch = epoch._replace(number=number, phase=phase)
    fixed = replace(pipeline.sampler, strategy=SingleScale(phase.sizes[-1]))  # steps of all of the phase's sizes
    alone = replace(pipeline, sampler=fixed)
    cold, batches = delivered(alone, epoch, share, LOADER_BATCHES, LOADER_S)
    warm = delivered(alone, epoch, share, batches, LOADER_S)[0] if run_plan.cache.kind == "ram" else cold
    state.begin(phase, share.accumulation)
    started = time.perf_counter()
    state.compile(phase.sizes, plan.micro_batches[phase.index])
    compile_s = time.perf_counter() - started
    device.give_back_memory()
    reset_peak_memory(accelerator.device)
    stream = endless(alone, epoch, share)
    first = _slowest(accelerator, step_seconds(state, stream, phase, 1, warm_up=1))[0]
    count = int(np.clip(STEPS_S / first, FEWEST_STEPS, MOST_STEPS))
    step_s = float(np.mean(step_seconds(state, stream, phase, count, warm_up=0)))
    images = phase.batch_size / plan.processes
    own = [step_s, images / warm, images / cold, peak_memory_gb(accelerator.device), compile_s]
    step, warm, cold, memory, compiling = _slowest(accelerator, own)
    return StepTime(phase.sizes, phase.batch_size, step, warm, cold, memory, compiling, phase.trainable)


class _Uncounted:
    """A list of unreadable images that forgets them."""

    def add(self, bad: Sequence[tuple[str, str]]) -> None:
        pass


def _eval_time(state: TrainState, run_plan: RunPlan, model: MultiView, sizes: Sizes) -> EvalTime:
    """Time an evaluation of a part of the validation images."""
    accelerator, val, batch = state.accelerator, run_plan.splits.val, run_plan.steps.micro_batch
    settings, splits = run_plan.settings, run_plan.splits
    quarantine = _Uncounted() if settings.on_bad_sample == "quarantine" else None
    evaluator = Evaluator(
        accelerator,
        model,
        run_plan.parts.task,
        splits.classes,
        state.mean,
        state.std,
        batch,
        run_plan.threads,
        settings.loader_timeout_s,
        quarantine=quarantine,
    )
    count, specs = min(len(val), EVAL_BATCHES * batch * accelerator.num_processes), [at_size(size) for size in sizes]
    reader = ImageReader(val.take(np.linspace(0, len(val) - 1, count).astype(int)), run_plan.cache.kind == "ram")
    evaluator.score(ImageReader(val.take(np.arange(min(batch, len(val))))), specs)  # the first forward passes are slow
    times = []
    for _ in range(2):
        started = time.perf_counter()
        evaluator.score(reader, specs)
        times.append((time.perf_counter() - started) / count)
    cold_s, image_s = _slowest(accelerator, times)
    return EvalTime(sizes, image_s, cold_s)


def _slowest(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """The largest of each value over all ranks, the same on all of them."""
    return accelerator.gather(torch.tensor([[*values]], device=accelerator.device)).amax(0).tolist()


def _import_seconds(accelerator: Accelerator) -> float:
    """How long a new process takes to import the toolkit; 0 on all ranks but the first."""
    if not accelerator.is_main_process:
        return 0.0
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import toolkit.training.loop"], check=True)
    return time.perf_counter() - started
