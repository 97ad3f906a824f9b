"""From settings and a strategy to everything that the loop works with; nothing is written until all of it fits."""

import copy
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from toolkit import checkpoint, device, images, machine, plan
from toolkit.checkpoint import Progress
from toolkit.contract import Criterion, Strategy
from toolkit.data import synthetic
from toolkit.data.feed import Feed, check_readable, open_feed, resolve_cache
from toolkit.data.feed import describe as describe_cache
from toolkit.data.index import Splits
from toolkit.data.loader import Batch
from toolkit.data.mixing import mix
from toolkit.data.sampler import Epoch
from toolkit.data.splits import absolute, open_splits
from toolkit.errors import InputError
from toolkit.evaluation import Evaluator
from toolkit.machine import Cloud
from toolkit.models import ModelPlan, MultiView, copy_state, create, plan_model
from toolkit.monitor import FiniteWatch
from toolkit.optim import create_optimizer
from toolkit.plan import Plan, make_plan
from toolkit.rundir import FINISHED, Quarantine, RunDirectory, SampleLog, claim, config_of
from toolkit.settings import SYNTHETIC, Settings
from toolkit.tracking import Tracking, check_installed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A run that was checked against data, processes and model, before anything is built or written.

    `settings` have all choices made that were left to the toolkit.
    """

    settings: Settings
    splits: Splits
    plan: Plan
    model_plan: ModelPlan
    threads: int


def prepare(accelerator: Accelerator, settings: Settings, strategy: Strategy) -> Prepared:
    """Check everything that can be known in advance; raises InputError."""
    check_installed(settings)
    if settings.sync_bn and accelerator.num_processes > 1 and accelerator.device.type != "cuda":
        raise InputError("--sync-bn needs GPUs: on this device BatchNorm keeps local statistics; drop the flag")
    settings = _resolve(settings, strategy, accelerator)
    splits = open_splits(settings, strategy.selection().sizes[-1])
    run_plan = make_plan(settings, strategy, len(splits.train), accelerator.num_processes)
    if settings.on_bad_sample == "fail":
        check_readable(splits)
    settings = settings.model_copy(update={"cache": resolve_cache(settings, splits, run_plan.phases)})
    evaluated = {size for spec in strategy.panel() for size in spec.sizes}
    sizes = sorted(evaluated.union(*(phase.sizes for phase in run_plan.phases)))
    threads = machine.loader_threads() if settings.num_workers is None else settings.num_workers
    model_plan = plan_model(settings, len(splits.classes), sizes, run_plan.micro_batch)
    _check_norm(settings, strategy, model_plan)
    return Prepared(settings, splits, run_plan, model_plan, threads)


def _check_norm(settings: Settings, strategy: Strategy, model_plan: ModelPlan) -> None:
    """Raises InputError where a choice about normalisation, other than the strategy's default, would be ignored."""
    chosen = strategy.to_dict().get("norm_per_scale")
    usual = {field.name: field.default for field in fields(strategy)}.get("norm_per_scale")  # type: ignore[arg-type]
    if chosen != usual and not model_plan.batch_norms:
        raise InputError(f"--norm-per-scale {chosen} would be ignored: {settings.arch} has no BatchNorm; drop the flag")


def describe(prepared: Prepared, strategy: Strategy) -> list[str]:
    """The plan of a run as lines for a person; the machine's lines are `device.describe`."""
    settings, splits, model_plan = prepared.settings, prepared.splits, prepared.model_plan
    counts = [
        f"{name} {len(split)}"
        for name, split in (("train", splits.train), ("val", splits.val), ("test", splits.test))
        if split is not None
    ]
    costs = [f"{size} px {gmacs:.3f}" for size, gmacs in model_plan.gmacs.items()]
    patience, norms = settings.patience, model_plan.batch_norms
    norm = f"{norms} BatchNorm layers, per scale: {strategy.norm().mode}" if norms else "no BatchNorm"
    clip = f"gradient norm clipped at {settings.gradient_clip:g}" if settings.gradient_clip else "no gradient clipping"
    return [
        f"data      {splits.source}: {', '.join(counts)} images, {len(splits.classes)} classes; "
        f"{prepared.threads} decoding worker(s) per process; {describe_cache(settings, splits, prepared.plan.phases)}",
        f"augment   smallest crop {settings.crop_scale:g} of the area, mirror {'on' if settings.hflip else 'off'}, "
        f"RandAugment {settings.rand_augment:g}, colour jitter {settings.color_jitter:g}, erasing "
        f"{settings.random_erasing:g}, MixUp {settings.mixup:g}, CutMix {settings.cutmix:g}",
        f"model     {settings.arch}, {model_plan.parameters / 1e6:.2f} M parameters, {norm}; "
        f"10^9 multiply-adds per image: {', '.join(costs)}",
        f"optimizer {settings.optimizer}, learning rate {settings.learning_rate:g} ({settings.scheduler}, "
        f"{settings.warmup_epochs:g} warm-up epochs), weight decay {settings.weight_decay:g}, {clip}",
        f"regular   label smoothing {settings.label_smoothing:g}, drop path {settings.drop_path:g}, dropout "
        f"{settings.dropout_rate:g}, early stopping {f'after {patience} epochs' if patience else 'off'}, seed "
        f"{settings.seed}",
        *plan.describe(prepared.plan, strategy, len(splits.train)),
    ]


@dataclass(frozen=True)
class Learner:
    """What learns: all that one training step needs."""

    accelerator: Accelerator
    strategy: Strategy
    model: nn.Module
    optimizer: Any  # AcceleratedOptimizer
    criterion: Criterion
    gradient_clip: float
    classes: int
    mean: Tensor
    std: Tensor
    watch: FiniteWatch

    def receive(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch on the device: uint8 N x 3 x S x S, and N labels, or N x C targets where it is mixed."""
        device = self.accelerator.device
        images, targets = batch.images.to(device, non_blocking=True), batch.targets.to(device, non_blocking=True)
        if batch.mixing is None:
            return images, targets
        return mix(images, targets, batch.mixing.to(device, non_blocking=True), self.classes)

    def views(self, pixels: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """uint8 N x 3 x S x S to one normalised view per size."""
        return images.views(pixels, sizes, self.mean, self.std)


def build_learner(
    accelerator: Accelerator, strategy: Strategy, prepared: Prepared, only_some_scales: bool = False
) -> tuple[Learner, MultiView]:
    """The learner, and a copy of the model for evaluation.

    `only_some_scales`: steps may leave out scales that the strategy itself would not.
    """
    settings, policy, phases = prepared.settings, strategy.norm(), prepared.plan.phases
    # DistributedDataParallel must know if a step can leave private parameters of a scale without a gradient.
    only_some_scales |= any(set(phase.sizes) != set(policy.scales) for phase in phases)
    device.fit_to(accelerator, prepared.plan.accumulation, policy.mode == "full" and only_some_scales)
    model = create(settings, prepared.model_plan, policy)
    evaluated = copy.deepcopy(model).to(accelerator.device)
    data_config = resolve_model_data_config(model.model)
    optimizer = create_optimizer(settings, model)
    if settings.compile:
        model.compile()
    with warnings.catch_warnings():  # torch 2.14 renames the option; older releases and Accelerate know this name only
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        model, optimizer = accelerator.prepare(model, optimizer)
    learner = Learner(
        accelerator=accelerator,
        strategy=strategy,
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing),
        gradient_clip=settings.gradient_clip or float("inf"),
        classes=len(prepared.splits.classes),
        mean=torch.tensor(data_config["mean"], device=accelerator.device),
        std=torch.tensor(data_config["std"], device=accelerator.device),
        watch=FiniteWatch(accelerator.device, gradients=accelerator.scaler is None),
    )
    return learner, evaluated


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


def _resolve(settings: Settings, strategy: Strategy, accelerator: Accelerator) -> Settings:
    """Settings with the launcher's precision and the data's whereabouts filled in, so that they repeat elsewhere."""
    amp = accelerator.mixed_precision != "no" if settings.amp is None else settings.amp
    if settings.data_root != SYNTHETIC:
        return settings.model_copy(update={"amp": amp, "data_root": absolute(settings.data_root)})
    size = settings.synthetic_size or strategy.selection().sizes[-1]
    count = settings.synthetic_count or synthetic.COUNT
    return settings.model_copy(update={"amp": amp, "synthetic_size": size, "synthetic_count": count})


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
        feed=open_feed(settings, strategy, prepared.splits, prepared.plan.phases, prepared.threads),
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
