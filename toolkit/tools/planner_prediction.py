"""Predicts the time, memory and cost of a run from measured times, and solves its epochs for a budget."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from toolkit.models.evaluator import LATENCY_S
from toolkit.runs.report import REFRESH_S
from toolkit.strategies.base import Budget, Phase, Strategy
from toolkit.system.errors import InputError
from toolkit.tools.planner_times import Sizes, StepKind, Times, eval_sizes, step_counts

PAGE_S = 0.5  # to write report.html once
MOST_EPOCHS = 100_000
# Strategies with stages take no longer for some larger numbers of epochs, because these are divided otherwise. So the
# numbers after the one found by bisection are tried too: enough for 4 stages.
LOOK_AHEAD = 16


@dataclass(frozen=True)
class Job:
    """What all runs that are compared have in common.

    `images`: per epoch, in whole batches; `val`, `test`: images of these splits; `raw`: whether weights without
    averaging are evaluated too. `reader`: which images are kept in memory for steps up to a size, px: an
    epoch that is the first to use them decodes them; None: nothing is kept. `hourly_cost`: of all machines together.
    """

    images: int
    batch_size: int
    val: int
    test: int = 0
    raw: bool = False
    reader: Callable[[int], Hashable] | None = None
    hourly_cost: float | None = None

    def budget(self, epochs: int) -> Budget:
        return Budget(epochs, self.images, self.batch_size)


@dataclass(frozen=True)
class PhaseTime:
    """Predicted seconds of the training steps of a phase."""

    sizes: Sizes
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Prediction:
    """The predicted seconds of a run, from the start of its process to its end; peak memory and cost."""

    phases: tuple[PhaseTime, ...]
    eval_s: float  # evaluations, and the report
    start_s: float
    memory_gb: float
    cost: float | None

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    @property
    def training_s(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def seconds(self) -> float:
        return self.training_s + self.eval_s + self.start_s


def predict(strategy: Strategy, epochs: int, job: Job, times: Times) -> Prediction:
    """The prediction for one run; raises InputError if the strategy has no phases for so many epochs."""
    phases = strategy.phases(job.budget(epochs))
    readers: set[Hashable] = set()
    compiled: set[StepKind] = set()
    predicted, memory = [], []
    for phase in phases:
        first = job.reader is not None and job.reader(phase.sizes[-1]) not in readers
        if job.reader is not None:
            readers.add(job.reader(phase.sizes[-1]))
        counts = step_counts(strategy, phase)
        seconds = sum(count * _step_seconds(times, sizes, phase, first) for sizes, count in counts.items())
        unseen = {(sizes, phase.batch_size, phase.trainable) for sizes in counts} - compiled
        seconds += sum(times.step(*kind).compile_s for kind in unseen)
        compiled |= unseen
        predicted.append(PhaseTime(phase.sizes, phase.epochs, seconds))
        memory += [times.step(sizes, phase.batch_size, phase.trainable).memory_gb for sizes in counts]
    training_s = sum(phase.seconds for phase in predicted)
    pages_s = PAGE_S * (1 + min(epochs, training_s / REFRESH_S))
    eval_s = _eval_seconds(strategy, phases, job, times) + LATENCY_S * len(strategy.eval_specs()) + pages_s
    cost = None if job.hourly_cost is None else (training_s + eval_s + times.start_s) / 3600 * job.hourly_cost
    return Prediction(tuple(predicted), eval_s, times.start_s, max(memory), cost)


def _step_seconds(times: Times, sizes: Sizes, phase: Phase, first: bool) -> float:
    """Mean seconds of a step at `sizes`; `first`: the phase's first epoch decodes images that later ones find decoded.

    Loading runs beside training, so the slower of both counts; on a CPU both take the same cores, so decoding adds up.
    """
    time = times.step(sizes, phase.batch_size, phase.trainable)
    warm_s = max(time.step_s, time.load_s)
    beside_s = time.cold_s - time.load_s if times.shares_cores else 0.0
    cold_s = max(time.step_s + beside_s, time.cold_s)
    return warm_s + max(0.0, cold_s - warm_s) / phase.epochs * first


def _eval_seconds(strategy: Strategy, phases: tuple[Phase, ...], job: Job, times: Times) -> float:
    """An evaluation for selection per epoch, of all sizes at the end of each phase, and at the end on test too."""
    selects, every = times.evaluation(strategy.selection().sizes), times.evaluation(eval_sizes(strategy))
    epochs = sum(phase.epochs for phase in phases)
    of_epochs = (epochs - len(phases)) * selects.image_s + len(phases) * every.image_s
    first = every.cold_s - every.image_s  # the images are decoded once
    return job.val * ((1 + job.raw) * (of_epochs + every.image_s) + first) + job.test * every.cold_s


def fewest_epochs(strategy: Strategy, job: Job) -> int:
    """The smallest number of epochs for which the strategy has phases, such as one for each stage."""
    for epochs in range(1, MOST_EPOCHS):
        try:
            strategy.phases(job.budget(epochs))
        except InputError:
            continue
        return epochs
    raise InputError(f"{type(strategy).__name__}.phases: has none for any number of epochs")


def most_epochs(seconds_of: Callable[[int], float], budget_s: float, fewest: int = 1) -> int:
    """The largest number of epochs whose run fits into `budget_s`, at least `fewest`; 0 if that does not fit."""
    if seconds_of(fewest) > budget_s:
        return 0
    fits, above = fewest, fewest + 1
    while above < MOST_EPOCHS and seconds_of(above) <= budget_s:
        fits, above = above, 2 * above
    while above - fits > 1:
        middle = (fits + above) // 2
        fits, above = (middle, above) if seconds_of(middle) <= budget_s else (fits, middle)
    return max(epochs for epochs in (fits, *range(above, above + LOOK_AHEAD)) if seconds_of(epochs) <= budget_s)
