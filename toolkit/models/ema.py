"""The weights to evaluate, select and export: those of the training model, or their moving average."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from toolkit.config.settings import Settings
from toolkit.models.multiview import copy_tensors, state_tensors


class Weights:
    """The current weights of the training model, without averaging."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model  # unwrapped
        self.updates = 0  # optimizer steps that changed the weights

    def follow(self) -> None:
        """Call it after each optimizer step that changed the weights."""
        self.updates += 1

    @torch.no_grad()
    def copy(self, source: str, target: str) -> None:
        """Overwrite the tensor called `target` with the one called `source`."""
        tensors = state_tensors(self.model)
        tensors[target].copy_(tensors[source])

    def state(self) -> dict[str, Tensor]:
        """The tensors to evaluate, by name."""
        return state_tensors(self.model)

    def average(self) -> dict[str, Tensor]:
        """The average that a checkpoint holds in addition to the model; empty without averaging."""
        return {}

    def restore(self, average: Mapping[str, Tensor], updates: int) -> None:
        """Continue from a checkpoint; the model must be restored already."""
        self.updates = updates

    def states(self) -> dict[str, dict[str, Tensor]]:
        """All states to evaluate, by name; the best may be exported. The first is that of `state`."""
        return {"raw": self.state()}


class Ema(Weights):
    """An exponential moving average of parameters and buffers: average += (1 - decay) (weights - average).

    Like timm's ModelEmaV3, it starts from the weights after the first update. `warmup`: as with its `use_warmup=True`
    and default power, the decay of update n is at most 1 - n^(-2/3): the average reaches back over the last n^(2/3)
    updates, and so forgets the initial weights in a short run too. Unlike there, a parameter that several normalization
    layers share is updated once, not once for each of its names.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        super().__init__(model)
        self._decay, self._warmup = decay, warmup
        self._average = {name: tensor.detach().clone() for name, tensor in state_tensors(model).items()}

    @torch.no_grad()
    def follow(self) -> None:
        super().follow()
        current = state_tensors(self.model)
        moving = [name for name, tensor in current.items() if tensor.is_floating_point()]
        least = self.updates ** (-2 / 3) if self._warmup or self.updates == 1 else 0.0
        rate = max(1 - self._decay, least)
        torch._foreach_lerp_([self._average[name] for name in moving], [current[name] for name in moving], rate)
        for name in current.keys() - {*moving}:
            self._average[name].copy_(current[name])

    @torch.no_grad()
    def copy(self, source: str, target: str) -> None:
        super().copy(source, target)
        self._average[target].copy_(self._average[source])

    def state(self) -> dict[str, Tensor]:
        return self._average

    def average(self) -> dict[str, Tensor]:
        return self._average

    def restore(self, average: Mapping[str, Tensor], updates: int) -> None:
        super().restore(average, updates)
        copy_tensors(average, self._average)

    def states(self) -> dict[str, dict[str, Tensor]]:
        return {"averaged": self._average, "raw": state_tensors(self.model)}


def make_weights(model: nn.Module, settings: Settings) -> Weights:
    """What of the training model, unwrapped, is evaluated and exported."""
    if settings.ema_decay is None:
        return Weights(model)
    return Ema(model, settings.ema_decay, settings.ema_warmup)


def slow_decay(decay: float, steps: int) -> str:
    """A warning, if an average with this decay reaches back further than a tenth of a run of `steps`; else empty."""
    reach = 1 / (1 - decay)
    if 10 * reach <= steps * (1 + 1e-9):  # 1 - 0.8 is not quite 0.2
        return ""
    fits = largest_decay(steps)
    hint = f"{fits:.6g} or less fits" if fits else "drop it"
    return f"--ema-decay {decay:g} averages over about {reach:.0f} steps, too slow for a run of {steps}: {hint}"


def largest_decay(steps: int) -> float:
    """The largest decay whose average reaches back a tenth of a run of `steps`, to two digits; 0: there is none."""
    if steps <= 10:
        return 0.0
    share = 10 / steps
    digits = 1 - math.floor(math.log10(share))
    return 1 - math.ceil(round(share * 10**digits, 6)) / 10**digits
