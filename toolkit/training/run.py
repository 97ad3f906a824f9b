"""An open run: everything the training loop uses, grouped by purpose."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from toolkit.config.settings import Settings
from toolkit.data.loading.batches import Batch
from toolkit.data.loading.pipeline import DataPipeline
from toolkit.data.loading.sampler import Epoch
from toolkit.models.evaluator import Evaluator
from toolkit.runs.dashboards import Tracking
from toolkit.runs.directory import RunDirectory
from toolkit.runs.mirror.place import Place
from toolkit.runs.quarantine import Quarantine
from toolkit.runs.sample_log import SampleLog
from toolkit.runs.saver import Saver
from toolkit.strategies.base import Metric, Phase, Strategy
from toolkit.system import host
from toolkit.system.clouds import Cloud
from toolkit.system.preemption import Preemption
from toolkit.training.consensus import Consensus
from toolkit.training.generators import seed_generators
from toolkit.training.monitor import Stopwatch, Throughput
from toolkit.training.parts import Parts, selecting
from toolkit.training.step_plan import StepPlan
from toolkit.training.train_state import TrainState


@dataclass(frozen=True)
class Records:
    """What the run writes, and where it lives; `fingerprint`: of data and settings, as in a checkpoint's manifest."""

    directory: RunDirectory
    place: Place
    samples: SampleLog
    quarantine: Quarantine
    tracking: Tracking
    saver: Saver
    fingerprint: Mapping[str, Any]


@dataclass(frozen=True)
class Control:
    """What can stop the run early."""

    consensus: Consensus
    preemption: Preemption
    cloud: Cloud


@dataclass(frozen=True)
class Clocks:
    """Timers: `throughput` of the open epoch, `training` steps only, `wall` everything."""

    throughput: Throughput
    training: Stopwatch
    wall: Stopwatch


@dataclass(frozen=True)
class FinishedRun:
    """A run with nothing left to do: its directory, and the contents of its summary.json."""

    path: Path
    summary: dict[str, Any]
    trained: bool = False  # by this call
    finished: Literal[True] = True


@dataclass(frozen=True)
class Run:
    """Everything that the training loop uses."""

    settings: Settings
    parts: Parts
    accelerator: Accelerator
    plan: StepPlan
    data: DataPipeline
    state: TrainState
    evaluator: Evaluator
    records: Records
    control: Control
    clocks: Clocks
    finished: Literal[False] = False

    @property
    def strategy(self) -> Strategy:
        return self.parts.strategy

    @property
    def select_by(self) -> Metric:
        """The metric that selects the best model."""
        return selecting(self.settings, self.parts.task)

    def epochs(self) -> Iterator[Epoch]:
        """The epochs that are not closed yet; the number of rollbacks sets their image order."""
        progress = self.state.progress
        epochs = (epoch for epoch in self.plan.epochs() if epoch.number >= progress.epoch)
        return (epoch._replace(rollbacks=progress.rollbacks) for epoch in epochs if not progress.stopped_early)

    def begin(self, epoch: Epoch) -> None:
        """Prepare the training state for an epoch's phase; also on a resume within it."""
        self.state.begin(epoch.phase, self.plan.accumulation(epoch.phase))
        if self.state.progress.step == epoch.start and not epoch.first:
            self.state.inherit_norms(epoch.phase.sizes, self.plan.sizes_before(epoch.phase))
        done = self.state.progress.step - epoch.start
        steps = (self.strategy.step(epoch.phase, epoch.first + i) for i in range(done, epoch.steps))
        for sizes in dict.fromkeys(step.sizes for step in steps):
            self.state.compile(sizes, self.plan.micro_batches[epoch.phase.index])

    def inherit_norms(self, phase: Phase) -> None:
        """Keep the normalization of scales that no phase has trained yet as that of the nearest trained one.

        They are evaluated, and may be selected by, before their phase begins.
        """
        trained = self.plan.sizes_before(phase).union(phase.sizes)
        self.state.inherit_norms(self.strategy.norm().scales, trained)

    def batches(self, epoch: Epoch) -> Iterator[Batch]:
        """This rank's remaining batches of an epoch; unreadable images go to the quarantine.

        Before each, the global generators start from its place in the run: what draws from them in a step, such as
        dropout, is a pure function of (seed, step, rank), and a checkpoint need not hold their states.
        """
        rank = self.accelerator.process_index
        share = self.plan.share(rank, epoch.phase)
        taken, accumulation = 0, self.plan.accumulation(epoch.phase)

        def waiting() -> None:
            """Stop between two steps on request, as storage may hang; several ranks can only stop after a step."""
            if self.accelerator.num_processes == 1 and taken % accumulation == 0:
                self.control.consensus.raise_if_stopping()

        batches = self.data.batches(epoch, self.state.progress.step, share, waiting)
        for batch in self.clocks.throughput.waits(batches):
            self.records.quarantine.add(batch.bad)
            seed_generators(self.settings.seed, batch.number, taken % accumulation, rank)
            taken += 1
            yield batch

    def learning_rate(self, phase: Phase, step: int) -> float:
        """The learning rate of optimizer step `step` of the run, taken at its middle: the first and last are not 0."""
        schedule = self.parts.schedule
        share = schedule.factor(self.plan.schedule_progress(step, schedule.warmup))
        return self.settings.learning_rate * share * phase.lr_scale * self.state.progress.plateau_factor

    def cost(self) -> dict[str, float]:
        """The cost of all machines up to the last lap; empty without `--hourly-cost`."""
        hourly, processes = self.settings.hourly_cost, self.accelerator.num_processes
        if hourly is None:
            return {}
        machines = max(1, processes // host.local_processes())
        return {"cost": self.state.progress.wall_seconds / 3600 * machines * hourly}

    def metrics(self, phase: Phase, rate: float) -> dict[str, float]:
        """Means over the steps of the open epoch so far, and its throughput; every rank must call it."""
        means = self.state.running_means.means(self.accelerator)  # waits for the device, so that the times are right
        return {
            **means,
            "lr": rate,
            "regularization": phase.regularization,
            "skipped_steps": self.state.progress.skipped_steps,
            **self.state.metrics(),
            **self.clocks.throughput.metrics(self.accelerator),
        }
