"""Create and check an optimizer of timm, by name; its groups of parameters."""

from collections.abc import Mapping
from typing import Any

import timm.optim
import torch
from torch import nn

from toolkit.config.settings import Settings
from toolkit.models.optimizer_state import split_optimizer
from toolkit.system.errors import InputError, nearest


def create_optimizer(
    settings: Settings, model: nn.Module, scales: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Create timm's optimizer, without weight decay on biases and normalization; raises InputError if it fails.

    `scales`: each parameter's factor on the learning rate, by name; the step applies `lr_scale` of a group.
    """
    known = timm.optim.list_optimizers()
    if settings.optimizer not in known:
        raise InputError(
            f"--optimizer {settings.optimizer}: unknown timm optimizer{nearest(settings.optimizer, known)}"
        )
    try:
        if scales:
            groups = _scaled_groups(model, settings.weight_decay, scales)
            return timm.optim.create_optimizer_v2(groups, opt=settings.optimizer, lr=settings.learning_rate)
        return timm.optim.create_optimizer_v2(
            model, opt=settings.optimizer, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
    except (AssertionError, ImportError, TypeError) as error:  # needs another package, or arguments without a flag
        raise InputError(f"--optimizer {settings.optimizer} cannot be used here: {error}") from None


def _scaled_groups(model: nn.Module, weight_decay: float, scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """The groups by weight decay that timm makes, each divided by the factors of its parameters, smallest first."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = []
    for group in timm.optim.param_groups_weight_decay(model, weight_decay=weight_decay):
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(scales[names[parameter]], []).append(parameter)
        groups += [{**group, "params": parts[scale], "lr_scale": scale} for scale in sorted(parts)]
    return groups


def check_optimizer(settings: Settings, device: torch.device) -> int:
    """Run one optimizer step on a tiny layer; raises InputError if it fails or its state cannot be saved.

    Returns how many numbers it keeps for each parameter, rounded.
    """
    layer = nn.Linear(2, 2, device=device)
    optimizer = create_optimizer(settings, layer)
    layer(torch.ones(1, 2, device=device)).sum().backward()
    try:
        with torch.compiler.set_stance("force_eager"):
            optimizer.step()
    except RuntimeError as error:  # needs second-order gradients
        raise InputError(f"--optimizer {settings.optimizer} cannot be used here: {error}") from None
    try:
        tensors, _ = split_optimizer(optimizer.state_dict())
    except TypeError as error:
        raise InputError(f"--optimizer {settings.optimizer} keeps a state that cannot be saved: {error}") from None
    kept = sum(tensor.numel() for tensor in tensors.values() if tensor.ndim)
    return round(kept / sum(parameter.numel() for parameter in layer.parameters()))
