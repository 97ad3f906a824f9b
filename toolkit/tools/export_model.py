"""Extract one scale of a run's model, under timm's parameter names, for export."""

import copy
from typing import Any

from timm.data import resolve_model_data_config
from torch import nn

from toolkit.models.multiview import MultiView, ScaleNorm
from toolkit.system.errors import InputError
from toolkit.tools.loaded_run import LoadedRun
from toolkit.tools.timm_model import TimmModel

# Constructor arguments that only training needs, or that name the source of pretrained weights.
DROPPED = ("drop_rate", "drop_path_rate", "pretrained_cfg", "pretrained_cfg_overlay")


def describe(loaded: LoadedRun, scale: int | None) -> TimmModel:
    """The timm model to export; raises InputError if the run has no such size."""
    size = scale or loaded.strategy.selection().sizes[-1]
    known = sorted({*loaded.sizes, *loaded.strategy.norm().scales})
    if size not in known:
        raise InputError(f"--scale {size}: this run's sizes are {', '.join(map(str, known))} px: choose one of them")
    network: Any = loaded.model.model
    data = resolve_model_data_config(network)
    arguments = {name: value for name, value in loaded.arguments.items() if name not in DROPPED}
    return TimmModel(
        arch=loaded.settings.arch,
        arguments=arguments,
        size=size,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        classes=loaded.classes,
        known=dict(network.pretrained_cfg),
    )


def one_scale(model: MultiView, size: int) -> nn.Module:
    """A copy of the network with only the normalization used at `size` px, so that parameters have timm's names."""
    network, scale = copy.deepcopy(model.model), str(model.policy.scale_for(size))
    for name, module in [*network.named_modules()]:
        if isinstance(module, ScaleNorm):
            network.set_submodule(name, module.norms[scale])
    return network
