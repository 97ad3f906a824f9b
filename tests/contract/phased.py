"""A strategy from outside the package that uses all that the contract on phases allows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from toolkit import Strategy
from toolkit.strategies.base import BoundTask, Budget, EvalSpec, Loss, NormPolicy, Phase, Step, at_size


@dataclass(frozen=True)
class Phased(Strategy):
    """The head alone at the small size, in half batches; then all, at both; an epoch at the end without patience."""

    name: ClassVar[str] = "phased"

    small: int
    large: int

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        steps, half = budget.steps_per_epoch, budget.batch_size // 2
        middle = budget.epochs - 2
        return (
            Phase(0, 1, 2 * steps, (self.small,), half, trainable=("head",), counts_for_patience=False),
            Phase(1, middle, middle * steps, (self.small, self.large), budget.batch_size),
            Phase(2, 1, steps, (self.large,), budget.batch_size, lr_scale=0.5, counts_for_patience=False),
        )

    def step(self, phase: Phase, i: int) -> Step:
        return Step(phase.sizes, phase.batch_size, phase.progress(i))

    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: BoundTask, phase: Phase, step: Step) -> Loss:
        losses = [task.loss(scale_logits, targets) for scale_logits in logits]
        weight = (1 - step.progress) * (len(losses) - 1)  # of the small size, while there are two
        total = (losses[-1] + weight * losses[0]) / (1 + weight)
        return Loss(total, {f"loss/{size}px": loss for size, loss in zip(step.sizes, losses, strict=True)})

    def eval_specs(self) -> tuple[EvalSpec, ...]:
        return (at_size(self.small), at_size(self.large))

    def selection(self) -> EvalSpec:
        return at_size(self.large)

    def norm(self) -> NormPolicy:
        return NormPolicy("full", (self.small, self.large))
