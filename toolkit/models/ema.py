"""The weights to evaluate, select and export: those of the training model, or their moving average."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

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

    def raw(self) -> dict[str, dict[str, Tensor]]:
        """Further states to evaluate at the end of a run, by name."""
        return {}


class Ema(Weights):
    """An exponential moving average of parameters and buffers: average += (1 - decay) (weights - average).

    Like timm's ModelEmaV3 without warm-up, it starts from the weights after the first update. Unlike it, a parameter
    that several normalization layers share is updated once, not once for each of its names.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self._decay = decay
        self._average = {name: tensor.detach().clone() for name, tensor in state_tensors(model).items()}

    @torch.no_grad()
    def follow(self) -> None:
        super().follow()
        current = state_tensors(self.model)
        moving = [name for name, tensor in current.items() if tensor.is_floating_point()]
        rate = 1.0 if self.updates == 1 else 1 - self._decay
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

    def raw(self) -> dict[str, dict[str, Tensor]]:
        return {"raw": state_tensors(self.model)}
