"""From a checked run to everything that the loop works with; opens its records, continued where there is something."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from toolkit import checkpoint, machine
from toolkit.checkpoint import Progress
from toolkit.contract import Strategy
from toolkit.data.feed import Feed, open_feed
from toolkit.data.index import Splits
from toolkit.data.jobs import Batch
from toolkit.data.sampler import Epoch
from toolkit.errors import InputError
from toolkit.evaluation import Evaluator
from toolkit.learner import Learner
from toolkit.machine import Cloud
from toolkit.models import MultiView, copy_state
from toolkit.plan import Plan
from toolkit.prepare import Prepared
from toolkit.rundir import FINISHED, Quarantine, RunDirectory, SampleLog, claim, config_of
from toolkit.settings import Settings
from toolkit.tracking import Tracking

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything that the loop works with."""

    settings: Settings
    strategy: Strategy
    accelerator: Accelerator
    splits: Splits
    fingerprint: str  # of the data
    plan: Plan
    feed: Feed
    learner: Learner
    evaluator: Evaluator
    directory: RunDirectory
    samples: SampleLog
    quarantine: Quarantine
    tracking: Tracking
    progress: Progress
    cloud: Cloud

    def batches(self, epoch: Epoch) -> Iterator[Batch]:
        """What this process still has to see of an epoch."""
        share = self.plan.share(self.accelerator.process_index)
        for batch in self.feed.batches(epoch, self.progress.step, share):
            self.quarantine.add(batch.bad)
            yield batch


@dataclass(frozen=True)
class Place:
    """Where a run lives, on every process; `start` is the checkpoint to go on from."""

    directory: RunDirectory
    start: Path | None
    finished: bool


def claim_place(accelerator: Accelerator, settings: Settings, recipe: str, config: dict[str, Any]) -> Place:
    """Rank 0 decides and locks, the others follow, also in refusing; raises InputError."""
    directory: RunDirectory | None = None
    decision: list[Any] = [None, None, False, "", ""]
    if accelerator.is_main_process:
        try:
            directory, start, line = claim(settings, recipe, config)
            decision = [directory.path, start, directory.exit_reason() in FINISHED, line, ""]
        except InputError as error:
            decision[-1] = str(error)
    path, start, finished, line, refusal = broadcast_object_list(decision)
    if refusal:
        raise InputError(refusal)
    if not path.is_dir():
        raise InputError(f"{path}: this machine does not see the run directory; put --output-dir on shared storage")
    if line and not finished:
        log.info("resume    %s", line)
    return Place(directory or RunDirectory(path), start, finished)


def _restore(start: Path, learner: Learner, data: str) -> Progress:
    """Put a checkpoint's state into the learner and this process's generators."""
    accelerator = learner.accelerator
    snapshot = checkpoint.load(start, accelerator.process_index)
    if snapshot.data != data:
        raise InputError(f"{start}: the images or their labels changed since it was saved: take another --output-dir")
    copy_state(snapshot.model, accelerator.unwrap_model(learner.model))
    learner.optimizer.load_state_dict(snapshot.optimizer)
    if accelerator.scaler is not None and snapshot.scaler is not None:
        accelerator.scaler.load_state_dict(snapshot.scaler)
    if snapshot.generators is not None:
        checkpoint.restore_generators(snapshot.generators)
    return snapshot.progress


def set_up(
    accelerator: Accelerator,
    strategy: Strategy,
    prepared: Prepared,
    place: Place,
    built: tuple[Learner, MultiView],
) -> Run:
    """Open a run's records, continued where there is something to continue."""
    learner, evaluated = built
    settings = prepared.settings
    feed = open_feed(settings, strategy, prepared.splits, prepared.plan.phases, prepared.threads)  # may write tiers
    torch.manual_seed(settings.seed + accelerator.process_index)  # dropout differs between ranks
    fingerprint = prepared.splits.fingerprint()
    progress = _restore(place.start, learner, fingerprint) if place.start else Progress()
    directory, config, main = place.directory, config_of(settings, strategy), accelerator.is_main_process
    if main:
        directory.create(config, prepared.splits.classes)
        directory.cut_to(progress.step)
    accelerator.wait_for_everyone()
    panel = [spec.name for spec in strategy.panel()]
    cloud = machine.cloud(settings.cloud)
    quarantine = Quarantine(directory.quarantine, accelerator.process_index)
    facts = {**config, "cloud_provider": cloud.provider, "cloud_instance": cloud.instance}
    return Run(
        settings=settings,
        strategy=strategy,
        accelerator=accelerator,
        splits=prepared.splits,
        fingerprint=fingerprint,
        plan=prepared.plan,
        feed=feed,
        learner=learner,
        evaluator=Evaluator(
            accelerator,
            evaluated,
            learner.mean,
            learner.std,
            prepared.plan.micro_batch,
            prepared.threads,
            settings.loader_timeout_s,
            quarantine=quarantine if settings.on_bad_sample == "quarantine" else None,
        ),
        directory=directory,
        samples=SampleLog(directory.samples if settings.record_samples else None, accelerator.process_index),
        quarantine=quarantine,
        tracking=Tracking.start(settings, facts, directory.path, panel, main),
        progress=progress,
        cloud=cloud,
    )
