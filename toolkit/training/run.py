"""An open run: everything the training loop uses, grouped by purpose."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from accelerate import Accelerator

from toolkit.config.settings import Settings
from toolkit.data.loading.batches import Batch
from toolkit.data.loading.pipeline import DataPipeline
from toolkit.data.loading.sampler import Epoch
from toolkit.models.evaluator import Evaluator
from toolkit.runs.dashboards import Tracking
from toolkit.runs.directory import RunDirectory
from toolkit.runs.quarantine import Quarantine
from toolkit.runs.sample_log import SampleLog
from toolkit.runs.saver import Saver
from toolkit.strategies.base import Metric, Phase, Strategy
from toolkit.system import host
from toolkit.system.clouds import Cloud
from toolkit.system.preemption import Preemption
from toolkit.training.consensus import Consensus
from toolkit.training.monitor import Stopwatch, Throughput
from toolkit.training.parts import Parts
from toolkit.training.step_plan import StepPlan
from toolkit.training.train_state import TrainState


@dataclass(frozen=True)
class Records:
    """What the run writes; `fingerprint`: of data and settings, as in a checkpoint's manifest."""

    directory: RunDirectory
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
    """A run with nothing left to do, and the contents of its summary.json."""

    summary: dict[str, Any]
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
        return self.parts.task.metric(self.settings.select_by or self.parts.task.metrics[0].name)

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

    def batches(self, epoch: Epoch) -> Iterator[Batch]:
        """This rank's remaining batches of an epoch; unreadable images go to the quarantine."""
        share = self.plan.share(self.accelerator.process_index, epoch.phase)
        batches = self.data.batches(epoch, self.state.progress.step, share)
        for batch in self.clocks.throughput.waits(batches):
            self.records.quarantine.add(batch.bad)
            yield batch

    def learning_rate(self, phase: Phase, step: int) -> float:
        """The learning rate of optimizer step `step` of the run, taken at its middle: the first and last are not 0."""
        share = self.parts.schedule.factor(self.plan.progress(step))
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
