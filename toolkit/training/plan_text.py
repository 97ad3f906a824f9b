"""The plan of a run as lines of text: what is on, and nothing else."""

from collections.abc import Sequence
from dataclasses import fields

from toolkit.config.settings import Settings
from toolkit.data.loading.levels import few_levels
from toolkit.models.ema import slow_decay
from toolkit.strategies import innermost
from toolkit.strategies.base import Task
from toolkit.training.parts import Parts, selecting
from toolkit.training.run_plan import RunPlan
from toolkit.training.step_plan import describe_steps

FITTED = {"pad": "padded to a square", "squash": "stretched to a square"}


def describe_run(run_plan: RunPlan, of_weights: Sequence[str] = ()) -> list[str]:
    """Lines for display: the plan of a run; `device.describe_machine` returns those of the machine.

    `of_weights`: those of the weights that it starts from.
    """
    settings, splits, model_plan = run_plan.settings, run_plan.splits, run_plan.model
    strategy = run_plan.parts.strategy
    counts = [
        f"{name} {len(split)}"
        for name, split in (("train", splits.train), ("val", splits.val), ("test", splits.test))
        if split is not None
    ]
    shares = f", validation held out of train (--val-split {splits.held_out:g})" if splits.held_out else ""
    shares += "" if splits.test else ", no test images"
    costs = [f"{size} px {gmacs:.3f}" for size, gmacs in model_plan.gmacs.items()]
    norms = model_plan.batch_norms
    norm = f"{norms} BatchNorm layers, per scale: {strategy.norm().mode}" if norms else "no BatchNorm"
    return [
        f"data      {splits.source}: {', '.join(counts)} images, {len(splits.classes)} classes{shares}; "
        f"{run_plan.threads} decoding worker(s) per process; {run_plan.cache.describe(run_plan.steps.phases)}"
        + (f"; gray of more than 8 bits by {settings.range}" if settings.range != "16bit" else "")
        + (f"; whole images, {FITTED[settings.fit]}" if settings.fit != "crop" else ""),
        *([f"warning   {dark}"] if (dark := few_levels(splits.train)) else []),
        *run_plan.sampled,
        f"augment   {_augmentation(settings)}",
        f"model     {run_plan.parts.model.name}, {_start(settings)}, {model_plan.parameters / 1e6:.2f} M parameters, "
        f"{norm}; 10^9 multiply-adds per image: {', '.join(costs)}",
        *run_plan.parts.model.notes(model_plan),
        *of_weights,
        f"optimizer {_optimizer(settings)}",
        *run_plan.learns,
        f"task      {_changed(run_plan.parts.task)}, best model by {_selection(run_plan)}",
        f"regular   {_regularization(settings)}",
        *_averaging(run_plan),
        *_reopening(run_plan.parts),
        *describe_steps(run_plan.steps, strategy, len(splits.train)),
    ]


def _selection(run_plan: RunPlan) -> str:
    """The metric that selects, and the file of costs."""
    metric, file = selecting(run_plan.settings, run_plan.parts.task), run_plan.settings.cost_matrix
    note = f" ({metric.direction})" if metric.direction else ""
    return f"{metric.name}{note}" + (f", costs of {file}" if file else "")


def _start(settings: Settings) -> str:
    """Where the weights come from."""
    if settings.weights:
        return f"weights of {settings.weights}"
    hosted = settings.arch.startswith(("hf-hub:", "local-dir:"))
    place = settings.arch if hosted else f"timm's weights of {settings.arch}"
    return f"pretrained ({place})" if settings.pretrained else "random weights"


def _augmentation(settings: Settings) -> str:
    """The augmentation that is on."""
    parts = {
        f"smallest crop {settings.crop_scale:g} of the area": settings.crop_scale < 1,
        "mirror": settings.hflip,
        f"RandAugment {settings.rand_augment:g}": settings.rand_augment,
        f"color jitter {settings.color_jitter:g}": settings.color_jitter,
        f"erasing {settings.random_erasing:g}": settings.random_erasing,
        f"MixUp {settings.mixup:g}": settings.mixup,
        f"CutMix {settings.cutmix:g}": settings.cutmix,
        f"transform {settings.transform}": settings.transform,
    }
    return ", ".join(words for words, on in parts.items() if on) or "none"


def _optimizer(settings: Settings) -> str:
    """The optimizer with its schedule, and what else is on."""
    kwargs = "".join(f" {name}={value}" for name, value in settings.scheduler_kwargs.items())
    warmup = f", {settings.warmup_epochs:g} warm-up epochs" if settings.warmup_epochs else ""
    words = f"{settings.optimizer}, learning rate {settings.learning_rate:g} ({settings.scheduler}{kwargs}{warmup})"
    words += f", weight decay {settings.weight_decay:g}" if settings.weight_decay else ""
    return words + (f", gradient norm clipped at {settings.gradient_clip:g}" if settings.gradient_clip else "")


def _regularization(settings: Settings) -> str:
    """What regularizes and stops the run, where it is on, and the seed."""
    parts = {
        f"label smoothing {settings.label_smoothing:g}": settings.label_smoothing,
        f"drop path {settings.drop_path:g}": settings.drop_path,
        f"dropout {settings.dropout_rate:g}": settings.dropout_rate,
        f"early stopping after {settings.patience} epochs": settings.patience,
        f"seed {settings.seed}": True,
    }
    return ", ".join(words for words, on in parts.items() if on)


def _changed(task: Task) -> str:
    """A task and its fields that differ from their defaults."""
    values = {field.name: (getattr(task, field.name), field.default) for field in fields(task)}
    told = "".join(f", {name} {value}" for name, (value, default) in values.items() if value != default)
    return type(task).__name__ + told


def _averaging(run_plan: RunPlan) -> list[str]:
    """What is averaged, and a warning if that is too slow for the run."""
    settings = run_plan.settings
    if settings.ema_decay is None:
        return []
    warmed = "with" if settings.ema_warmup else "without"
    slow = slow_decay(settings.ema_decay, run_plan.steps.steps)
    line = f"average   of the weights, decay {settings.ema_decay:g} {warmed} warm-up; the better of both is selected"
    return [line, *([f"warning   {slow}"] if slow else [])]


def _reopening(parts: Parts) -> list[str]:
    """How to open the finished run, where that needs what only Python can pass, and what nothing can open."""
    kinds = [type(part) for part in (innermost(parts.strategy), parts.task)]  # opening a run does not need its schedule
    lines = [
        f"reopen    {kind.__qualname__} is defined in the script that trains: `toolkit evaluate` and others cannot "
        "open this run from a shell; move it into a module"
        for kind in kinds
        if kind.__module__ == "__main__"
    ]
    from_python = "from Python: evaluate(RUN, data=...), export(RUN, data=...); recipes need --data-root of the images"
    return [*lines, *([] if parts.data is None else [f"reopen    {from_python}"])]
