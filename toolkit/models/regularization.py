"""Dropout and stochastic depth of a model's layers, scaled by the regularization of a phase."""

from dataclasses import dataclass

from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

MOST = 0.99  # layers divide what they keep by 1 - rate

# Kind of layer, and the attribute from which it reads its rate in every forward pass.
RATES: tuple[tuple[type[nn.Module], str], ...] = (
    (_DropoutNd, "p"),
    (StochasticDepth, "p"),
    (PatchDropout, "prob"),
    (PatchDropoutWithIndices, "prob"),
    (nn.MultiheadAttention, "dropout"),
    (nn.Module, "drop_prob"),  # timm's DropPath and DropBlock, and layers written like them
    (nn.Module, "drop_rate"),  # timm's models that call F.dropout themselves, such as ResNet
)


@dataclass(frozen=True)
class DropRates:
    """The layers of a model that drop something at random: the layer, the attribute, its rate as built."""

    built: tuple[tuple[nn.Module, str, float], ...]

    @classmethod
    def of(cls, model: nn.Module) -> "DropRates":
        """Those of a model whose rates are not scaled yet."""
        found = [
            (layer, name, rate)
            for layer in model.modules()
            for kind, name in RATES
            if isinstance(layer, kind) and isinstance(rate := vars(layer).get(name), float) and 0 < rate <= 1
        ]
        return cls(tuple(found))

    def now(self) -> tuple[float, ...]:
        return tuple(getattr(layer, name) for layer, name, _ in self.built)

    def scale(self, share: float) -> None:
        """Set every rate to `share` of its value as built, at most MOST; exactly as built if `share` is 1."""
        for layer, name, rate in self.built:
            setattr(layer, name, min(share * rate, max(rate, MOST)))
