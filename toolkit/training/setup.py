"""From a checked run to everything that the loop works with; opens its records, continued where there is something."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from toolkit.config.settings import Settings
from toolkit.data.loading.batches import Batch
from toolkit.data.loading.pipeline import DataPipeline, open_pipeline
from toolkit.data.loading.sampler import Epoch
from toolkit.models.create import MultiView
from toolkit.models.evaluator import Evaluator
from toolkit.runs.dashboards import Tracking
from toolkit.runs.directory import FINISHED, RunDirectory, acquire_run, config_of
from toolkit.runs.quarantine import Quarantine
from toolkit.runs.sample_log import SampleLog
from toolkit.runs.saver import Saver
from toolkit.runs.state import Progress, seed_generators
from toolkit.strategies.base import Phase, Strategy
from toolkit.system import clouds, host
from toolkit.system.clouds import Cloud
from toolkit.system.errors import InputError
from toolkit.system.preemption import Preemption
from toolkit.training.consensus import Consensus
from toolkit.training.monitor import RunningMeans, Stopwatch, Throughput
from toolkit.training.resume import fingerprint_of, restore, restore_best
from toolkit.training.roofline import product_tflops
from toolkit.training.run_plan import RunPlan
from toolkit.training.step_plan import StepPlan
from toolkit.training.train_state import TrainState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything that the loop works with."""

    settings: Settings
    strategy: Strategy
    accelerator: Accelerator
    plan: StepPlan
    pipeline: DataPipeline
    train_state: TrainState
    evaluator: Evaluator
    directory: RunDirectory
    samples: SampleLog
    quarantine: Quarantine
    tracking: Tracking
    progress: Progress
    fingerprint: Mapping[str, Any]  # what the state belongs to, as in a checkpoint's manifest
    saver: Saver
    consensus: Consensus
    preemption: Preemption
    running_means: RunningMeans  # of the open epoch
    throughput: Throughput
    training: Stopwatch
    wall: Stopwatch
    cloud: Cloud

    def epochs(self) -> Iterator[Epoch]:
        """Those that are not closed yet, in the order that holds now."""
        epochs = (epoch for epoch in self.plan.epochs() if epoch.number >= self.progress.epoch)
        return (
            epoch._replace(rollbacks=self.progress.rollbacks) for epoch in epochs if not self.progress.stopped_early
        )

    def batches(self, epoch: Epoch) -> Iterator[Batch]:
        """What this process still has to see of an epoch."""
        share = self.plan.share(self.accelerator.process_index)
        for batch in self.throughput.waits(self.pipeline.batches(epoch, self.progress.step, share)):
            self.quarantine.add(batch.bad)
            yield batch

    def cost(self) -> dict[str, float]:
        """What the run has cost up to its last lap, where a price is known: of all its machines."""
        hourly, processes = self.settings.hourly_cost, self.accelerator.num_processes
        if hourly is None:
            return {}
        machines = max(1, processes // host.local_processes())
        return {"cost": self.progress.wall_seconds / 3600 * machines * hourly}

    def metrics(self, phase: Phase, rate: float) -> dict[str, float]:
        """How the open epoch goes: means over its steps so far, and its pace. Every process must ask."""
        means = self.running_means.means(self.accelerator)  # waits for the device, so that the clocks are right
        return {
            **means,
            "lr": rate,
            "regularization": phase.regularization,
            "skipped_steps": self.progress.skipped_steps,
            **self.train_state.metrics(),
            **self.throughput.metrics(self.accelerator),
        }


@dataclass(frozen=True)
class Place:
    """Where a run lives, on every process; `start` is the checkpoint to go on from, `cache` what it began with."""

    directory: RunDirectory
    start: Path | None
    finished: bool
    cache: str | None


def open_run_directory(
    accelerator: Accelerator, settings: Settings, recipe: str, fingerprint: Mapping[str, Any]
) -> Place:
    """Rank 0 decides and locks, the others follow, also in refusing; raises InputError.

    `fingerprint`: what the run would be of, as in a manifest.
    """
    directory: RunDirectory | None = None
    decision: list[Any] = [None, None, False, None, "", ""]
    if accelerator.is_main_process:
        try:
            directory, start, line = acquire_run(settings, recipe, fingerprint)
            directory.metrics()  # refused here, before anything is changed, where they are damaged
            finished, cache = directory.exit_reason() in FINISHED, directory.config().get("cache")
            decision = [directory.path, start, finished, cache, line, ""]
        except InputError as error:
            decision[-1] = str(error)
    path, start, finished, cache, line, refusal = broadcast_object_list(decision)
    if refusal:
        raise InputError(refusal)
    if not path.is_dir():
        raise InputError(f"{path}: this machine does not see the run directory; put --output-dir on shared storage")
    if line and not finished:
        log.info("resume    %s", line)
    return Place(directory or RunDirectory(path), start, finished, cache)


def _open_records(
    directory: RunDirectory, config: Mapping[str, Any], classes: Sequence[str], progress: Progress
) -> None:
    """On rank 0: files of a new run, or those of an earlier start cut to where it goes on."""
    directory.create(config, classes)
    restore_best(directory, progress)
    directory.truncate_to(progress)


def set_up(
    accelerator: Accelerator,
    strategy: Strategy,
    run_plan: RunPlan,
    place: Place,
    built: tuple[TrainState, MultiView],
    preemption: Preemption,
) -> Run:
    """Open a run's records, continued where there is something to continue."""
    train_state, evaluated = built
    settings, splits = run_plan.settings, run_plan.splits
    pipeline = open_pipeline(settings, strategy, splits, run_plan.plan.phases, run_plan.threads)  # may write tiers
    seed_generators(settings.seed, 0, accelerator.process_index)  # dropout differs between ranks
    directory, config, main = place.directory, config_of(settings, strategy), accelerator.is_main_process
    fingerprint = fingerprint_of(accelerator, config, splits, run_plan.plan)
    running_means, progress = train_state.running_means, Progress()
    if place.start:
        restore(place.start, train_state, running_means, fingerprint, progress)
    if main:
        _open_records(directory, config, splits.classes, progress)
    accelerator.wait_for_everyone()
    peak_tflops = product_tflops(accelerator.device, accelerator.mixed_precision)
    cloud = clouds.cloud(settings.cloud)
    preemption.watch(cloud.provider)
    quarantine = Quarantine(directory.quarantine, accelerator.process_index)
    consensus = Consensus(accelerator, train_state.non_finite, preemption, settings.save_every_minutes)
    shown = {**config, "cloud_provider": cloud.provider, "cloud_instance": cloud.instance}
    return Run(
        settings=settings,
        strategy=strategy,
        accelerator=accelerator,
        plan=run_plan.plan,
        pipeline=pipeline,
        train_state=train_state,
        evaluator=Evaluator(
            accelerator,
            evaluated,
            train_state.mean,
            train_state.std,
            run_plan.plan.micro_batch,
            run_plan.threads,
            settings.loader_timeout_s,
            quarantine=quarantine if settings.on_bad_sample == "quarantine" else None,
            between=consensus.raise_if_stopping,
        ),
        directory=directory,
        samples=SampleLog(directory.samples if settings.record_samples else None, accelerator.process_index),
        quarantine=quarantine,
        tracking=Tracking.start(settings, shown, directory, strategy, progress, accelerator),
        progress=progress,
        fingerprint=fingerprint,
        saver=Saver(accelerator, directory.store, directory.best, progress.at() if place.start else None),
        consensus=consensus,
        preemption=preemption,
        running_means=running_means,
        throughput=Throughput(accelerator.device, run_plan.model_plan.gmacs, peak_tflops),
        training=Stopwatch(),
        wall=Stopwatch(),
        cloud=cloud,
    )
