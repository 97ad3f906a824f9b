"""What a model starts from: tensors of other training, under the names and in the shapes of the model.

The one owner of which tensors are loaded, and of whether the head is kept.
"""

import inspect
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.data.sources.listing import composed
from toolkit.models.multiview import MultiView, ScaleNorm, state_tensors
from toolkit.strategies.base import NormPolicy
from toolkit.system.errors import InputError, printable

SHOWN = 3  # names in a line
# What timm's modules call the function that converts names and shapes of the original code.
CONVERTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
OF_SCALE = re.compile(r"(.*)\.norms\.(\d+)\.(\w+)")  # a tensor of `ScaleNorm`
STATISTICS = ("running_mean", "running_var")
# A normalization between pooling and head, which a model that was not trained as a classifier lacks.
BEFORE_HEAD = ("fc_norm.",)

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class StoredWeights:
    """Tensors as a file or a hub holds them; `flag`: the setting that names them.

    `classes`: names in the order of the head's rows, None: unknown. `arch`: that they are of; empty: unknown.
    """

    flag: str
    tensors: Tensors
    classes: tuple[str, ...] | None = None
    arch: str = ""


@dataclass(frozen=True)
class InitialWeights:
    """Weights that fit a model: by scale of its normalization, the plain network's; `lines`: for the plan of a run."""

    by_scale: Mapping[int, Tensors]
    lines: tuple[str, ...]

    @torch.no_grad()
    def copy_to(self, model: MultiView) -> None:
        """Set every tensor of `model` that was found; the others keep their values."""
        scaled = {path for path, module in model.named_modules() if isinstance(module, ScaleNorm)}
        shared = next(iter(self.by_scale.values()))
        for name, tensor in state_tensors(model).items():
            match = OF_SCALE.fullmatch(name)
            if match and match[1] in scaled:
                name, found = f"{match[1]}.{match[3]}", self.by_scale[int(match[2])]
            else:
                found = shared
            source = found.get(name.removeprefix("model."))
            if source is not None:
                tensor.copy_(source)


def fit(
    weights: StoredWeights, network: nn.Module, name: str, classes: Sequence[str], policy: NormPolicy
) -> InitialWeights:
    """Weights for the plain `network`, which is not changed, trained for `classes`; `name`: of the model.

    Raises InputError if they are those of another model.
    """
    own = network.state_dict()
    tensors = _without_prefix(weights.tensors, own)
    scales = policy.scales if policy.mode != "off" else policy.scales[-1:]
    head = head_names(network, len(classes))
    by_scale, told, unused = {}, "", []
    for scale in scales:
        found = _converted(_at_scale(tensors, own, scale), network, own, head)
        _check_model(weights, found, network, name, head)
        unused = [key for key, tensor in found.items() if key not in own and tensor.is_floating_point()]
        found, told = _with_head(weights, found, own, head, classes)
        _check_finite(weights, found)
        by_scale[scale] = found
    loaded = by_scale[scales[-1]]
    missing = [key for key in own if key not in loaded]
    lacking = f", not {_some(missing)}" if missing else ""
    ignored = f"; not used: {_some(unused)}" if unused else ""
    line = f"weights   {weights.flag}: {len(own) - len(missing)} of {len(own)} tensors loaded{lacking}; {told}{ignored}"
    return InitialWeights(by_scale, (line, *_order_note(classes, told)))


def head_names(network: nn.Module, classes: int) -> list[str]:
    """Names of the tensors of the classifier: as timm names it, else the last layer with an output per class."""
    config = getattr(network, "pretrained_cfg", None)
    named = config.get("classifier") if isinstance(config, Mapping) else None
    known = [named] if isinstance(named, str) else [*(named or ())]
    modules = dict(network.named_modules())
    outputs = {name: getattr(of, "out_features", getattr(of, "out_channels", None)) for name, of in modules.items()}
    last = [name for name, count in outputs.items() if count == classes]
    prefixes = tuple(f"{part}." for part in known if part in modules) or tuple(f"{part}." for part in last[-1:])
    return [name for name in network.state_dict() if name.startswith(prefixes)]


def _without_prefix(tensors: Mapping[str, Any], own: Tensors) -> dict[str, Tensor]:
    """Tensors without the prefix of a wrapper, such as `module.` or `model.`: the one that leaves most known names."""
    counted: Counter[str] = Counter()
    for name in tensors:
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        counted.update(name[:start] for start in starts if name[start:] in own)
    prefix = counted.most_common(1)[0][0] if counted else ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _at_scale(tensors: Tensors, own: Tensors, size: int) -> dict[str, Tensor]:
    """The plain network's tensors: of normalization per scale, those that are nearest to `size` px."""
    plain: dict[str, Tensor] = {}
    copies: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        match = OF_SCALE.fullmatch(name)
        if match is None or name in own:
            plain[name] = tensor
        else:
            copies.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = tensor
    return plain | {name: of[NormPolicy("full", (*of,)).scale_for(size)] for name, of in copies.items()}


def _converted(tensors: dict[str, Tensor], network: nn.Module, own: Tensors, head: Sequence[str]) -> dict[str, Tensor]:
    """Tensors under the names of timm's model, position tables resized to its image size, where timm can do that."""
    if all(name in tensors and tensors[name].shape == own[name].shape for name in own if name not in head):
        return tensors
    module = sys.modules.get(type(network).__module__)
    convert = next((getattr(module, name) for name in CONVERTERS if hasattr(module, name)), None)
    ordered = {
        name: tensors[name] for name in own if name in tensors
    } | tensors  # a file may sort them, and some filters go by order
    try:
        if convert is None:
            return tensors
        both = len(inspect.signature(convert).parameters) > 1
        return dict(convert(ordered, network) if both else convert(ordered))
    except Exception:  # on weights of another model it raises any type of exception
        return tensors


def _check_model(weights: StoredWeights, found: Tensors, network: nn.Module, name: str, head: Sequence[str]) -> None:
    """Raise InputError unless the weights are those of the model but for its head, with the first differences."""
    own = network.state_dict()
    learned = {key for key, _ in network.named_parameters(remove_duplicate=False)}
    learned |= {key for key in own if key.endswith(STATISTICS)}
    parts = {key.partition(".")[0] for key in learned} - {key.partition(".")[0] for key in head}
    new = (*head, *(key for key in own if key.startswith(BEFORE_HEAD)))
    differences = [
        f"{key} is {_shape(found[key])} there, {_shape(own[key])} in the model"
        for key in own
        if key in found and key not in head and found[key].shape != own[key].shape
    ]
    differences += [
        f"{key} is {str(found[key].dtype).removeprefix('torch.')} there"
        for key in own
        if key in found and own[key].is_floating_point() and not found[key].is_floating_point()
    ]
    differences += [f"{key} is missing" for key in own if key not in found and key in learned and key not in new]
    differences += [
        f"{key} is not in the model"
        for key, tensor in found.items()
        if key not in own and key.partition(".")[0] in parts and tensor.is_floating_point()
    ]
    if differences or not found.keys() & own.keys():
        of = f"of {weights.arch} " if weights.arch not in ("", name) else ""
        hint = f" (--arch {weights.arch})" if of else ""
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        told = f"{'; '.join(differences[:SHOWN]) or 'no name of a tensor is known'}{more}"
        raise InputError(printable(f"{weights.flag}: the weights {of}do not fit {name}{hint}: {told}"))


def _check_finite(weights: StoredWeights, found: Tensors) -> None:
    """Raise InputError if a value is NaN, infinite or not there, as in weights of a training that diverged."""
    broken = [
        name
        for name, tensor in found.items()
        if tensor.is_floating_point() and (tensor.is_meta or not tensor.isfinite().all())
    ]
    if broken:
        raise InputError(printable(f"{weights.flag}: NaN or infinite values in {_some(broken)}; take other weights"))


def _with_head(
    weights: StoredWeights, found: dict[str, Tensor], own: Tensors, head: Sequence[str], classes: Sequence[str]
) -> tuple[dict[str, Tensor], str]:
    """The tensors with the head's rows in the order of `classes`, or without the head; and what was done, as text."""
    body = {name: tensor for name, tensor in found.items() if name in own and name not in head}
    if not head:
        return body, "the model has no known head"
    if any(name not in found for name in head):
        return body, f"new head: they have no {head[0].rpartition('.')[0] or head[0]}"
    rows = max(found[name].shape[0] for name in head if found[name].ndim)
    known = [*map(composed, weights.classes)] if weights.classes and len(weights.classes) == rows else None
    classes = [*map(composed, classes)]
    if known is None and rows != len(classes):
        return body, f"new head: theirs has {rows} classes, the data {len(classes)}"
    if known is not None and sorted(known) != sorted(classes):
        return body, f"new head: theirs is of other classes ({_some(known)})"
    order = [known.index(name) for name in classes] if known else [*range(rows)]
    kept = {name: _rows(found[name], rows, order) for name in head}
    if any(kept[name].shape != own[name].shape for name in head):
        return body, "new head: theirs has another shape"
    if known is None:
        return body | kept, f"head kept: {UNCHECKED}"
    moved = "" if order == [*range(rows)] else ", its rows put into their order"
    return body | kept, f"head kept, of the same {rows} classes{moved}"


def names_in_order(value: Any) -> tuple[str, ...]:
    """Class names in the order of labels, from a list, from {label: name} or from {name: label}."""
    if not isinstance(value, Mapping):
        return tuple(map(str, value))
    by_label = {str(name): label for label, name in value.items()}
    if all(isinstance(label, int) for label in value.values()):
        by_label = {str(name): label for name, label in value.items()}
    return tuple(sorted(by_label, key=lambda name: int(by_label[name])))


UNCHECKED = "class order cannot be checked"


def _rows(tensor: Tensor, rows: int, order: Sequence[int]) -> Tensor:
    return tensor[[*order]] if tensor.ndim and tensor.shape[0] == rows else tensor


def _order_note(classes: Sequence[str], told: str) -> list[str]:
    """A warning where a head of unknown order is kept and names that are numbers have another order elsewhere."""
    numbers = all(name.isdecimal() for name in classes)
    if not told.endswith(UNCHECKED) or not numbers or [*classes] == sorted(classes, key=int):
        return []
    return [
        f"note      the classes are numbers, in the order of text here ({_some(classes)}), in that of numbers in timm "
        f"({_some(sorted(classes, key=int))}): if the head was trained with the latter, rename the folders 00, 01, 02"
    ]


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
