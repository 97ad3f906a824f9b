"""A forward pass over views of several sizes, with normalization per scale; parameters and buffers by name."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from toolkit.strategies.base import NormPolicy

# timm's BatchNormAct2d is a BatchNorm2d; RepViT, LeViT and others have a BatchNorm1d before their classifiers
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class ScaleNorm(nn.Module):
    """BatchNorm with a copy per scale; MultiView sets `active` before each view."""

    def __init__(self, norm: nn.Module, policy: NormPolicy) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({str(scale): copy.deepcopy(norm) for scale in policy.scales})
        if policy.mode == "statistics":
            for own in self.norms.values():
                own.weight, own.bias = norm.weight, norm.bias
        self.active = str(policy.scales[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.active](x)


class MultiView(nn.Module):
    """A model and its normalization policy: one forward pass over the views of a batch.

    `forward(*views)`, each N x 3 x S x S, returns one N x C tensor of logits per view.
    """

    def __init__(self, model: nn.Module, policy: NormPolicy) -> None:
        super().__init__()
        self.model, self.policy = model, policy
        if policy.mode != "off":
            replace_norms(model, partial(ScaleNorm, policy=policy))
        self.scale_norms = [module for module in model.modules() if isinstance(module, ScaleNorm)]

    def forward(self, *views: Tensor) -> list[Tensor]:
        logits = []
        for view in views:
            scale = str(self.policy.scale_for(view.shape[-1]))
            for norm in self.scale_norms:
                norm.active = scale  # written before it is read, so a compiled graph holds it as a constant, unguarded
            logits.append(self.model(view))
        return logits

    def of_other_scales(self, size: int) -> set[nn.Parameter]:
        """Parameters of normalization that views of `size` do not use."""
        scale, owned = str(self.policy.scale_for(size)), [norm.norms for norm in self.scale_norms]
        used = {parameter for norms in owned for parameter in norms[scale].parameters()}
        return {parameter for norms in owned for parameter in norms.parameters()} - used

    def norm_from(self, size: int) -> int | None:
        """The scale whose normalization is used for `size`; None if it has its own or all sizes share one."""
        own = not self.scale_norms or size in self.policy.scales
        return None if own else self.policy.scale_for(size)

    def own_norms(self, sizes: Sequence[int]) -> list[nn.Module]:
        """Give `sizes` normalization of their own, copied from what each used so far; returns the copies."""
        scales = tuple(sorted({*self.policy.scales, *sizes}))
        if self.scale_norms:
            for norm in self.scale_norms:
                lent = {str(size): norm.norms[str(self.policy.scale_for(size))] for size in sizes}
                norm.norms.update({size: copy.deepcopy(own) for size, own in lent.items()})
            self.policy = NormPolicy(self.policy.mode, scales)
        else:
            self.policy = NormPolicy("full", scales)
            replace_norms(self.model, partial(ScaleNorm, policy=self.policy))
            self.scale_norms = [module for module in self.model.modules() if isinstance(module, ScaleNorm)]
        return [norm.norms[str(size)] for norm in self.scale_norms for size in sizes]


def replace_norms(model: nn.Module, replacement: Callable[[nn.Module], nn.Module]) -> None:
    """Replace each BatchNorm, once: a layer or block that has several places in the model stays one."""
    replaced: dict[nn.Module, nn.Module] = {}
    for parent in [*model.modules()]:
        for name, child in [*parent._modules.items()]:
            if isinstance(child, BATCH_NORMS):
                if child not in replaced:
                    replaced[child] = replacement(child)
                setattr(parent, name, replaced[child])


def inherited_names(model: MultiView, sizes: Sequence[int], before: Collection[int]) -> dict[str, str]:
    """Tensor of a scale that `sizes` train first -> the same tensor of the nearest scale that `before` trained."""
    policy = model.policy
    known = sorted({policy.scale_for(size) for size in before})
    fresh = sorted({policy.scale_for(size) for size in sizes} - {*known})
    if not known or not model.scale_norms:
        return {}
    names = {}
    for scale in fresh:
        source = NormPolicy(policy.mode, tuple(known)).scale_for(scale)
        for path, module in model.named_modules():
            if isinstance(module, ScaleNorm):
                for name in state_tensors(module.norms[str(scale)]):
                    names[f"{path}.norms.{scale}.{name}"] = f"{path}.norms.{source}.{name}"
    there = state_tensors(model)  # in which shared affine parameters have one name
    return {target: source for target, source in names.items() if target in there and source in there}


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name; unlike in `state_dict`, shared ones appear once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def copy_state(source: Mapping[str, Tensor], target: nn.Module) -> None:
    """Set every parameter and buffer of `target`; raises RuntimeError unless names and shapes match exactly."""
    copy_tensors(source, state_tensors(target))


@torch.no_grad()
def copy_tensors(source: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Set `tensors` by name; raises RuntimeError unless names and shapes match exactly."""
    if source.keys() != tensors.keys():
        raise RuntimeError(f"state does not fit the model: {sorted(source.keys() ^ tensors.keys())[:4]} ...")
    for name, tensor in tensors.items():
        if tensor.shape != source[name].shape:
            raise RuntimeError(f"{name}: shape {tuple(source[name].shape)} does not fit {tuple(tensor.shape)}")
        tensor.copy_(source[name])
