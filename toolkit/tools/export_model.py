"""Extract one scale of a run's model, under the names of its parameters outside the toolkit, for export."""

import copy
import dataclasses

from torch import nn

from toolkit.models.multiview import MultiView, ScaleNorm
from toolkit.models.portable import PortableModel
from toolkit.system.errors import InputError
from toolkit.tools.loaded_run import LoadedRun


def describe(loaded: LoadedRun, scale: int | None) -> PortableModel:
    """The model to export; raises InputError if the run has no such size."""
    size = chosen_size(loaded, scale, "--scale")
    model = loaded.source.portable(loaded.model.model, loaded.plan, size, loaded.classes)
    return dataclasses.replace(model, fit=loaded.settings.fit)


def chosen_size(loaded: LoadedRun, size: int | None, name: str) -> int:
    """The size of a run, px, None: that which selected its best model; raises InputError if the run has no such size.

    `name`: what errors call the argument.
    """
    chosen = loaded.strategy.selection().sizes[-1] if size is None else size
    known = sorted({*loaded.sizes, *loaded.strategy.norm().scales})
    if chosen not in known:
        raise InputError(f"{name} {chosen}: this run's sizes are {', '.join(map(str, known))} px: choose one of them")
    return chosen


def one_scale(model: MultiView, size: int) -> nn.Module:
    """A copy of the network with only the normalization used at `size` px, so that parameters have their own names."""
    network, scale = copy.deepcopy(model.model), str(model.policy.scale_for(size))
    for name, module in [*network.named_modules(remove_duplicate=False)]:
        if isinstance(module, ScaleNorm):
            network.set_submodule(name, module.norms[scale])
    return network
