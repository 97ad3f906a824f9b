"""Training sizes that leave too little of an image: a last feature map below 2 x 2, and what enlarges it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from toolkit.config.settings import Settings
from toolkit.models.create import construct
from toolkit.models.inspection import Forward, ModelPlan, forward
from toolkit.system.errors import InputError

LEAST = 2  # rows and columns of a last feature map
LARGEST_PX = 1024  # sizes above are not tried
# Arguments of timm's constructors, the cheapest value first; few architectures take both.
CANDIDATES: Mapping[str, tuple[int, ...]] = {"output_stride": (16, 8), "patch_size": (2, 1)}


@dataclass(frozen=True)
class Remedy:
    """An argument of timm's constructor that keeps at least 2 x 2, and a forward pass with it at each size."""

    argument: str
    passes: Mapping[int, Forward]


def small_sizes(plan: ModelPlan, trained: Sequence[int]) -> list[int]:
    """The training sizes whose last feature map is below 2 x 2, px; a model of tokens has no such map."""
    return sorted(size for size in trained if min(plan.last_maps.get(size, (LEAST,))) < LEAST)


def describe(name: str, plan: ModelPlan, small: Sequence[int]) -> str:
    """The start of a line for the plan of a run."""
    sizes, found = " and ".join(map(str, small)), " x ".join(map(str, plan.last_maps[small[0]]))
    return f"note      the last feature map of {name} is {found} at {sizes} px"


def advice(settings: Settings, plan: ModelPlan, trained: Sequence[int]) -> str:
    """A line for the plan of a run of a timm model; empty unless a training size is too small for it.

    Arguments are suggested only after they were tried, and none that the user has given.
    """
    small = small_sizes(plan, trained)
    if not small:
        return ""
    smallest, largest, start = small[0], max(trained), describe(settings.arch, plan, small)
    tried = [name for name in CANDIDATES if name not in settings.model_kwargs]
    remedies = [found for name in tried if (found := _remedy(settings, plan, smallest, name))]
    if not remedies:
        least = _least_size(settings, plan, smallest)
        helps = [f"no {' or '.join(tried)} helps"] if tried else []
        helps += [f"it is {LEAST} x {LEAST} from {least} px on"] if least else []
        return f"{start}: {'; '.join(helps)}" if helps else start
    best = min(remedies, key=lambda remedy: remedy.passes[largest].gmacs)
    kept = " x ".join(map(str, best.passes[smallest].last_map or ()))
    costs = {size: best.passes[size].gmacs / plan.gmacs[size] for size in (smallest, largest)}
    others = "" if largest == smallest else f", {costs[largest]:.1f} times at {largest} px"
    return (
        f"{start}: --model-kwargs {best.argument} makes it {kept} at {smallest} px, "
        f"for {costs[smallest]:.1f} times the multiply-adds there{others}"
    )


def _remedy(settings: Settings, plan: ModelPlan, smallest: int, name: str) -> Remedy | None:
    """The first value of an argument that helps and works at every size of the run; None if none does."""
    for value in CANDIDATES[name]:
        try:
            model = construct(settings, {**plan.arguments, name: value}).eval()
        except InputError:
            continue
        if (settings.pretrained or settings.weights) and _shapes(model) != _shapes(construct(settings, plan.arguments)):
            continue  # its weights would not fit
        if not _enough(_try(model, smallest)):
            continue
        passes = {size: found for size in plan.gmacs if (found := _try(model, size))}
        if passes.keys() == plan.gmacs.keys():
            return Remedy(f"{name}={value}", passes)
    return None


def _enough(found: Forward | None) -> bool:
    return found is not None and min(found.last_map or (0,)) >= LEAST


def _try(model: nn.Module, size: int) -> Forward | None:
    try:
        return forward(model, torch.empty(1, 3, size, size, device="meta"))
    except Exception:  # timm's models raise any type of exception for sizes that do not fit
        return None


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _least_size(settings: Settings, plan: ModelPlan, smallest: int) -> int | None:
    """The smallest size with a last feature map of 2 x 2, px, found by bisection; None if there is none."""
    model = construct(settings, plan.arguments).eval()
    below, above = smallest, 2 * smallest
    while not _enough(_try(model, above)):
        below, above = above, 2 * above
        if above > LARGEST_PX:
            return None
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (below, middle) if _enough(_try(model, middle)) else (middle, above)
    return above
