"""Check settings, data, processes and model of a run in advance, without writing to its directory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from toolkit.config.data_roots import BUILT_IN
from toolkit.config.settings import Settings
from toolkit.data.loading.balance import describe_balance
from toolkit.data.loading.cache import CacheChoice, choose_cache
from toolkit.data.loading.pipeline import check_readable, loads_in_processes, make_augmenter
from toolkit.data.loading.python_data import open_data
from toolkit.data.loading.shared_memory import fit_workers
from toolkit.data.loading.trial import try_transform
from toolkit.data.sources import synthetic
from toolkit.data.sources.detect import own_source
from toolkit.data.sources.index import Splits
from toolkit.data.sources.python_data import data_modules
from toolkit.data.sources.splits import absolute
from toolkit.models.collectives import gather_objects
from toolkit.models.cost_matrix import read_costs
from toolkit.models.gathered import check_memory
from toolkit.models.inspection import ModelPlan
from toolkit.models.learning import check_learning, freezing
from toolkit.models.multiview import MultiView
from toolkit.runs import dashboards, weight_files
from toolkit.strategies import innermost
from toolkit.strategies.base import BoundTask, Metric, Strategy
from toolkit.system import host
from toolkit.system.errors import InputError
from toolkit.training.costs import costs_of
from toolkit.training.main_work import on_main
from toolkit.training.parts import Parts, selecting
from toolkit.training.step_plan import StepPlan, make_step_plan, step_sizes
from toolkit.training.tasks import check_weighing


@dataclass(frozen=True)
class RunPlan:
    """A run checked against data, processes and model, before anything is built or written.

    `parts`: what a user may replace. `settings`: as requested, with values that depend on launcher and data filled in,
    except `--cache`; `cache`: that setting resolved. `threads`: decoding threads per process. `learns`: lines for the
    plan on trainable parameters and their rates, where not all are alike; `sampled`: on how often images come. `costs`:
    C x C of --cost-matrix; None without it, and where its file is gone, as it may be for a run that is resumed.
    """

    parts: Parts
    settings: Settings
    cache: CacheChoice
    splits: Splits
    steps: StepPlan
    model: ModelPlan
    threads: int
    learns: tuple[str, ...] = ()
    sampled: tuple[str, ...] = ()
    costs: np.ndarray | None = None

    @property
    def measured_too(self) -> tuple[Metric, ...]:
        """The metric that selects, if it is not one of every evaluation."""
        selects = selecting(self.settings, self.parts.task)
        return () if selects in self.parts.task.metrics else (selects,)

    def bound_tasks(self, device: torch.device) -> dict[float, BoundTask]:
        """The task's computations by the regularization of a phase; 1 is always among them.

        With the weights of classes that the training images have.
        """
        task, splits = self.parts.task, self.splits
        counts = task.class_counts(splits.train.labels, len(splits.classes))
        shares = {1.0, *(phase.regularization for phase in self.steps.phases)}
        return {share: task.regularized(share).bind(counts, device) for share in shares}

    @property
    def resolved(self) -> Settings:
        """The settings with `cache` resolved too."""
        return self.settings.model_copy(update={"cache": self.cache.kind})

    def own_code(self) -> dict[str, str]:
        """SHA-256 of the source files of all parts that are the user's own, by module."""
        modules = {*self.model.modules}
        if self.parts.data is None and (source := own_source(self.settings.data_root)):
            given = {name: index.items.data for name, index in self.splits.all().items() if index.items}
            modules |= {source.module} | data_modules(given)
        return self.parts.own_code(modules)


def make_run_plan(accelerator: Accelerator, settings: Settings, parts: Parts, only_timed: bool = False) -> RunPlan:
    """Check everything that can be known in advance; raises InputError.

    `only_timed`: steps are only timed, so undefined gradients are allowed.
    """
    strategy = parts.strategy
    dashboards.check(settings.log_with)
    if settings.sync_bn and accelerator.num_processes > 1 and accelerator.device.type not in ("cuda", "xpu"):
        raise InputError("--sync-bn needs CUDA or XPU: elsewhere BatchNorm keeps local statistics; drop the flag")
    settings = _resolve(settings, strategy, accelerator)
    splits = parts.splits or open_data(settings, strategy.selection().sizes[-1], parts.data)
    for index in splits.all().values():
        parts.task.check_labels(index.labels, len(splits.classes))
    counts = parts.task.class_counts(splits.train.labels, len(splits.classes))
    parts.task.check_counts(counts, splits.classes)
    check_weighing(settings, parts.task, counts, len(splits.classes))
    settings, costs = _with_costs(settings, parts, splits, accelerator)
    steps = make_step_plan(settings, strategy, len(splits.train), accelerator.num_processes)
    if settings.on_bad_sample == "fail":
        check_readable(splits)
    cache = choose_cache(settings, splits, steps.phases, _free_gb())
    evaluated = {size for spec in strategy.eval_specs() for size in spec.sizes}
    trained = sorted({size for phase in steps.phases for size in phase.sizes})
    sizes = sorted(evaluated.union(trained))
    threads = host.loader_threads() if settings.num_workers is None else settings.num_workers
    threads = _with_room(settings, parts, splits, steps, threads)
    _check_own_code(settings, parts, splits, steps, threads)
    source, policy = parts.model, strategy.norm()
    model_plan = source.plan(
        settings, len(splits.classes), sizes, policy, micro_batch=min(steps.micro_batches), trained=trained
    )
    _check_norm(settings, strategy, model_plan)
    _check_regularization(settings, strategy, model_plan)
    if not only_timed and (reason := undefined_gradient(accelerator, model_plan, trained)):
        raise InputError(f"{reason}, whose gradient torch leaves undefined: train at larger sizes, or with --no-amp")
    learns = _learns(settings, parts, steps, model_plan)
    sampled = tuple(describe_balance(settings, splits))
    _check_alike(splits)
    return RunPlan(parts, settings, cache, splits, steps, model_plan, threads, learns, sampled, costs)


def keep_choices(run_plan: RunPlan, config: Mapping[str, Any], costs: Path) -> RunPlan:
    """The plan of a resumed run with the cache it started with, unless `--cache` names one, and what it loaded.

    `config`: the run's; empty for a new one; `costs`: its copy of the cost matrix. Raises InputError, on all ranks, if
    the cache does not fit into memory.
    """
    settings = run_plan.settings
    if config and settings.weights and settings.weights_sha256 is None:  # the file is gone, or cannot be read here
        settings = settings.model_copy(update={"weights_sha256": config["weights_sha256"]})
        run_plan = replace(run_plan, settings=settings)
    if config and settings.cost_matrix and run_plan.costs is None:
        settings = settings.model_copy(update={"cost_matrix_sha256": config["cost_matrix_sha256"]})
        run_plan = replace(run_plan, settings=settings, costs=read_costs(costs, run_plan.splits.classes))
    if config.get("cache") is None or settings.cache != "auto":
        return run_plan
    settings = settings.model_copy(update={"cache": config["cache"]})
    return replace(run_plan, cache=choose_cache(settings, run_plan.splits, run_plan.steps.phases, _free_gb()))


def _with_costs(
    settings: Settings, parts: Parts, splits: Splits, accelerator: Accelerator
) -> tuple[Settings, np.ndarray | None]:
    """The settings with the digest of --cost-matrix, and its costs; raises InputError if validation cannot select."""
    digest, costs = costs_of(settings, splits.classes, accelerator)
    task, metric = parts.task, selecting(settings, parts.task)
    task.check_selection(metric, splits.val.labels, splits.classes)
    if metric.scores:
        check_memory(f"--select-by {metric.name}", len(splits.val), len(splits.classes), accelerator)
    return settings.model_copy(update={"cost_matrix_sha256": digest}), costs


def _with_room(settings: Settings, parts: Parts, splits: Splits, steps: StepPlan, threads: int) -> int:
    """`threads`, or where they are processes as many as /dev/shm has room for; raises InputError if it is too small."""
    if not threads or not loads_in_processes(make_augmenter(settings, parts.transform), splits.train):
        return threads
    shapes: list[tuple[int, tuple[int, ...]]] = [
        (batch, (max(phase.sizes),)) for batch, phase in zip(steps.micro_batches, steps.phases, strict=True)
    ]
    if splits.train.items is not None:  # processes load these for an evaluation, too
        shapes.append((steps.micro_batch, tuple({size for spec in parts.strategy.eval_specs() for size in spec.sizes})))
    return fit_workers(threads, max(batch * sum(3 * size**2 for size in sizes) for batch, sizes in shapes))


def _check_own_code(settings: Settings, parts: Parts, splits: Splits, steps: StepPlan, threads: int) -> None:
    """Raise InputError if data sets or a transform of the user's own have no worker, or the transform does not work."""
    if not threads and (parts.transform or splits.train.items is not None):
        what = "a transform is called" if parts.transform else "data sets passed from Python are read"
        raise InputError(f"--num-workers 0: {what} in worker processes: give 1 or more")
    if parts.transform:
        largest = {sizes[-1] for phase in steps.phases for sizes in step_sizes(parts.strategy, phase)}
        try_transform(parts.transform, splits.train, sorted(largest), settings.loader_timeout_s)


def _free_gb() -> float:
    """Free memory per process, GB: the minimum over all ranks, so that all make the same choice."""
    return min(gather_objects(host.free_memory_gb() / host.local_processes()))


def _check_alike(splits: Splits) -> None:
    """Raise InputError on all ranks unless all found the same images: otherwise sample ids differ in meaning."""
    found = gather_objects(splits.digests())
    strange = next((rank for rank, other in enumerate(found) if other != found[0]), None)
    if strange is not None:
        raise InputError(
            f"--data-root: process 0 found {found[0]['train']['images']} training images, process {strange} found "
            f"{found[strange]['train']['images']}, or others of the same number: every machine needs the same files"
        )


def _learns(settings: Settings, parts: Parts, steps: StepPlan, model_plan: ModelPlan) -> tuple[str, ...]:
    """Lines on trainable parameters and their rates, where not all are alike; raises InputError if none is trained."""
    given = (settings.layer_decay, settings.backbone_lr_scale)
    partly = any(phase.trainable for phase in steps.phases)
    if not (partly or freezing(settings) or any(value is not None for value in given)):
        return ()
    if settings.freeze and (epochs := parts.strategy.to_dict().get("head_epochs")):
        raise InputError(f"--head-epochs {epochs} would be ignored: with --freeze only the classifier ever learns")
    network = MultiView(parts.model.network(settings, model_plan), parts.strategy.norm())
    return tuple(check_learning(settings, network, steps.phases))


def _check_norm(settings: Settings, strategy: Strategy, model_plan: ModelPlan) -> None:
    """Raise InputError if a `--norm-per-scale` other than the strategy's default would be ignored."""
    chosen = strategy.to_dict().get("norm_per_scale")
    usual = {field.name: field.default for field in fields(innermost(strategy))}.get("norm_per_scale")  # type: ignore[arg-type]
    if chosen != usual and not model_plan.batch_norms:
        raise InputError(
            f"--norm-per-scale {chosen} would be ignored: {settings.model_name} has no BatchNorm; drop the flag"
        )


def _check_regularization(settings: Settings, strategy: Strategy, model_plan: ModelPlan) -> None:
    """Raise InputError if a `--regularization-from` below 1 would be ignored, because nothing regularizes.

    A model or a task of the user's own counts as regularizing.
    """
    start = strategy.to_dict().get("regularization_from", 1)
    own = settings.model_from is not None or ":" in settings.task
    augmented = settings.crop_scale < 1 or settings.rand_augment or settings.color_jitter or settings.random_erasing
    mixed = settings.mixup or settings.cutmix
    if start != 1 and not (own or augmented or mixed or settings.label_smoothing or model_plan.drop_rates):
        raise InputError(
            f"--regularization-from {start:g} would be ignored, because nothing regularizes this run: drop it, or add "
            "for example --rand-augment, --mixup, --label-smoothing, --drop-path or --dropout-rate"
        )


def undefined_gradient(accelerator: Accelerator, model_plan: ModelPlan, sizes: Iterable[int]) -> str:
    """The reason why torch leaves gradients undefined at one of `sizes`, px, the smallest such; empty if at none.

    If a stride is longer than the input, oneDNN's bfloat16 backward kernels write only the kernel taps that overlap the
    input. The others keep uninitialized memory, even infinite values (torch 2.14, AVX512 and AMX; docs/log.md).
    """
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "bf16":
        return ""
    first = min({*sizes} & {*model_plan.overstrided}, default=None)
    return "" if first is None else f"{first} px in bfloat16 on a CPU: {model_plan.overstrided[first]}"


def _resolve(settings: Settings, strategy: Strategy, accelerator: Accelerator) -> Settings:
    """Fill in precision, absolute data path, and what built-in data is drawn, so that settings are reusable."""
    amp = accelerator.mixed_precision != "no" if settings.amp is None else settings.amp
    settings = settings.model_copy(update={"weights_sha256": _weights_sha256(settings, accelerator)})
    if settings.data_root not in BUILT_IN:
        return settings.model_copy(update={"amp": amp, "data_root": absolute(settings.data_root)})
    drawn = synthetic.drawing(settings.data_root)
    chosen = {
        "synthetic_size": settings.synthetic_size or strategy.selection().sizes[-1],
        "synthetic_count": settings.synthetic_count or drawn.COUNT,
        "synthetic_classes": settings.synthetic_classes and len(drawn.class_names(settings.synthetic_classes)),
    }
    return settings.model_copy(update={"amp": amp, **chosen})


def _weights_sha256(settings: Settings, accelerator: Accelerator) -> str | None:
    """SHA-256 of the file of --weights, as rank 0 sees it; None if there is none now. Raises InputError, on all ranks.

    A run that is resumed does not need the file.
    """
    given, wanted = settings.weights, settings.weights_sha256
    now = on_main(accelerator, lambda: weight_files.sha256(given)) if given else None
    if now and wanted and now != wanted.lower():
        raise InputError(f"--weights {settings.weights}: its SHA-256 is {now}, not {wanted} (--weights-sha256)")
    return now or wanted
