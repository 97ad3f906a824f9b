"""The parameters of a network by part (classifier, stage, depth, normalization), for freezing and learning rates.

Names are those in `MultiView`: each copy of a normalization belongs to the layer that has the copies.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import RmsNorm
from timm.models._manipulate import group_with_matcher
from torch import nn

from toolkit.models.multiview import BATCH_NORMS, MultiView, ScaleNorm
from toolkit.system.errors import InputError, nearest

HEAD, LAST_NORM = "head", "last_norm"  # parts of `Phase.trainable`
CLASSIFIERS = ("head", "classifier", "fc", "heads")  # children that are one, as timm and torchvision name them
OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm, RmsNorm)
NO_HEAD = "the head is what get_classifier() returns, else a layer called head, classifier or fc"


def all_names(model: MultiView) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def _below(model: MultiView, prefixes: Sequence[str]) -> set[str]:
    """Parameters whose names in the network begin with one of `prefixes`, in whole parts."""
    return {name for name in all_names(model) if any(f"{name}.".startswith(f"model.{part}.") for part in prefixes)}


def classifier_names(model: MultiView) -> set[str]:
    """Parameters of the classifier: what `get_classifier` returns, else one of CLASSIFIERS; empty if it has neither."""
    network: Any = model.model
    found = getattr(network, "get_classifier", lambda: None)()
    heads = [*(found if isinstance(found, tuple | list) else [found])]
    prefixes = [name for name, module in network.named_modules() if name and any(module is head for head in heads)]
    names = _below(model, prefixes)
    return names or next(filter(None, (_below(model, [name]) for name in CLASSIFIERS)), set())


def trainable_names(model: MultiView, parts: Sequence[str]) -> set[str]:
    """Names of the parameters that learn: those of `parts`, as in `Phase.trainable`; all without parts.

    Raises InputError if the model has no such part.
    """
    if not parts:
        return all_names(model)
    chosen: set[str] = set()
    for part in parts:
        prefix = last_norm(model.model) if part == LAST_NORM else part
        if not prefix:
            continue  # a network without normalization
        found = classifier_names(model) if part == HEAD else _below(model, [prefix])
        if not found:
            first = ", ".join(sorted({name.split(".")[1] for name in all_names(model)}))
            told = f"it has {first}" + (f"; {NO_HEAD}" if part == HEAD else "")
            raise InputError(f"Phase.trainable {part!r}: no parameter of the model begins with that; {told}")
        chosen |= found
    return chosen


def last_norm(model: nn.Module) -> str:
    """Name of the last normalization with parameters, in the order of the modules; empty if there is none.

    That of a ResNet's shortcut stands behind that of the block's main path, and does not count.
    """
    norms = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (ScaleNorm, *BATCH_NORMS, *OTHER_NORMS)) and any(True for _ in module.parameters())
    ]
    own = [
        name for name in norms if not {"norms", "downsample", "shortcut"} & {*name.split(".")}
    ]  # norms: of ScaleNorm
    return own[-1] if own else ""


def batch_norms(model: MultiView) -> list[nn.Module]:
    """Every BatchNorm, with the copies of each scale."""
    return [module for module in model.modules() if isinstance(module, BATCH_NORMS)]


def stages(network: nn.Module) -> list[str]:
    """Names at which a network can be cut, in its order: timm's features, children, and members of their lists."""
    names = {name for name, _ in network.named_children()}
    for name, child in network.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            names |= {f"{name}.{member}" for member, _ in child.named_children()}
    features = getattr(network, "feature_info", None)
    features = features if isinstance(features, list | tuple) else ()
    names |= {str(info["module"]) for info in features if isinstance(info, Mapping) and "module" in info}
    return [name for name, _ in network.named_modules() if name in names]


def names_from(model: MultiView, stage: str, flag: str, called: str) -> set[str]:
    """Parameters from `stage` to the end, in the order of the modules; those of the network itself come first.

    Raises InputError, which names `flag` and the model as `called`, for a stage that it does not have.
    """
    known = stages(model.model)
    if stage not in known:
        close = nearest(stage, known) or f"; it has {', '.join(name for name in known if '.' not in name)}"
        raise InputError(f"{flag} {stage}: {called} has no such stage{close}")
    order = [name for name, _ in model.model.named_modules()]
    later = {*order[order.index(stage) :]}
    return {name for name in all_names(model) if name.removeprefix("model.").rpartition(".")[0] in later}


def plain_names(model: MultiView) -> dict[str, str]:
    """Parameter -> its name in the network without copies of normalization."""
    names = {name: name for name in (name for name, _ in model.named_parameters())}
    for path, module in model.named_modules():
        if isinstance(module, ScaleNorm):
            copies = (name for name, _ in module.named_parameters())  # such as norms.64.weight
            names |= {f"{path}.{name}": f"{path}.{name.split('.', 2)[2]}" for name in copies}
    return {name: plain.removeprefix("model.") for name, plain in names.items()}


def depths(model: MultiView) -> dict[str, int]:
    """Parameter -> the number of its layer, 0 at the input, as timm groups them; empty without a `group_matcher`."""
    network: Any = model.model
    matcher = getattr(network, "group_matcher", None)
    if matcher is None:
        return {}
    plain = plain_names(model)
    unique = ((name, None) for name in dict.fromkeys(plain.values()))
    layers = group_with_matcher(unique, matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {name: layers.get(own, last) for name, own in plain.items()}
