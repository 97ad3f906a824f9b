"""Which parameters are trained, and the learning rate of each layer: --freeze, --layer-decay and related flags."""

from collections import Counter
from collections.abc import Sequence

from torch import nn

from toolkit.config.settings import Settings
from toolkit.models.layers import (
    NO_HEAD,
    all_names,
    batch_norms,
    classifier_names,
    depths,
    names_from,
    trainable_names,
)
from toolkit.models.multiview import MultiView
from toolkit.strategies.base import Phase
from toolkit.system.errors import InputError


def freezing(settings: Settings) -> list[str]:
    """The flags that freeze something."""
    flags = {
        "--freeze": settings.freeze,
        f"--unfreeze-from {settings.unfreeze_from}": settings.unfreeze_from is not None,
        "--freeze-bn": settings.freeze_bn,
    }
    return [flag for flag, given in flags.items() if given]


def freeze(settings: Settings, model: MultiView) -> None:
    """Turn off the gradients of the parameters that the settings freeze; raises InputError if they do not fit."""
    learning = _learning(settings, model)
    for name, parameter in model.named_parameters():
        if name not in learning:
            parameter.requires_grad_(False)


def fixed_norms(settings: Settings, model: MultiView) -> tuple[nn.Module, ...]:
    """The normalization that must stay in evaluation mode."""
    return tuple(batch_norms(model)) if settings.freeze_bn else ()


def learnable_names(model: MultiView) -> frozenset[str]:
    """Parameters that any phase may train: neither the settings nor a model of the user's own froze them."""
    return frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def lr_scales(settings: Settings, model: MultiView) -> dict[str, float]:
    """Parameter -> its factor on the learning rate; empty if all have the same. Raises InputError if none is known.

    A layer has `layer_decay` to the power of its distance from the last one (BEiT, arXiv:2106.08254).
    """
    decay, backbone = settings.layer_decay, settings.backbone_lr_scale
    if decay is None and backbone is None:
        return {}
    scales = dict.fromkeys(all_names(model), 1.0)
    if decay is not None:
        layers = depths(model)
        if not layers:
            raise InputError(
                f"--layer-decay {decay:g}: {settings.model_name} has no group_matcher, by which timm's models tell how "
                "deep a layer is; drop it, or give --backbone-lr-scale"
            )
        scales = {name: decay ** (max(layers.values()) - layer) for name, layer in layers.items()}
    if backbone is not None:
        head = _head(settings, model, f"--backbone-lr-scale {backbone:g}")
        scales = {name: scale if name in head else backbone * scale for name, scale in scales.items()}
    return scales


def check_learning(settings: Settings, model: MultiView, phases: Sequence[Phase]) -> list[str]:
    """Check before a run that each phase trains some parameters; raises InputError. Returns lines for the run's plan.

    `model`: one to look at, which is changed.
    """
    freeze(settings, model)
    flags, learnable = freezing(settings), learnable_names(model)
    for phase in phases:
        if not trainable_names(model, phase.trainable) & learnable:  # raises on a part that the model does not have
            if flags and not phase.trainable:
                raise InputError(f"{' '.join(flags)}: nothing is left to learn, because the model froze the rest")
            froze = " and ".join(["the model", *flags])
            parts = f"Phase.trainable {', '.join(phase.trainable)}: " if phase.trainable else ""
            raise InputError(f"{parts}phase {phase.index} trains nothing, because {froze} froze it")
    return [*_describe_frozen(settings, model, learnable), *_describe_rates(lr_scales(settings, model))]


def _head(settings: Settings, model: MultiView, flag: str) -> set[str]:
    names = classifier_names(model)
    if not names:
        raise InputError(f"{flag}: the classifier of {settings.model_name} is not known; {NO_HEAD}")
    return names


def _learning(settings: Settings, model: MultiView) -> set[str]:
    """The parameters that no flag freezes."""
    names = all_names(model)
    if settings.freeze:
        names = _head(settings, model, "--freeze")
    if settings.unfreeze_from is not None:
        stage, called = settings.unfreeze_from, settings.model_name
        later = names_from(model, stage, "--unfreeze-from", called) | classifier_names(model)
        if later == names:
            raise InputError(f"--unfreeze-from {stage} would be ignored: {called} begins with it, so all learns")
        names = later
    if settings.freeze_bn:
        norms = {id(parameter) for norm in batch_norms(model) for parameter in norm.parameters()}
        if not batch_norms(model):
            raise InputError(f"--freeze-bn would be ignored: {settings.model_name} has no BatchNorm; drop the flag")
        names = names - {name for name, parameter in model.named_parameters() if id(parameter) in norms}
    return names


def _describe_frozen(settings: Settings, model: MultiView, learnable: frozenset[str]) -> list[str]:
    flags = freezing(settings)
    if not flags:
        return []
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    some, every = (sum(counts[name] for name in names) for names in (learnable, counts))
    lines = [f"learns    {some:,} of {every:,} parameters ({' '.join(flags)})"]
    if not (settings.pretrained or settings.weights or settings.model_from):
        lines.append(f"warning   {flags[0]} keeps random weights: --pretrained or --weights gives trained ones")
    return lines


def _describe_rates(scales: dict[str, float]) -> list[str]:
    if not scales:
        return []
    values = sorted(Counter(scales.values()))
    return [
        f"rates     {len(values)} factors on the learning rate, {values[0]:.3g} at the first layers to {values[-1]:g}"
    ]
