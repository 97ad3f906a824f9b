"""A short last phase at a larger size, for any strategy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from toolkit.strategies.base import BoundTask, Budget, EvalSpec, Loss, NormPolicy, Phase, Step, Strategy, at_size
from toolkit.strategies.scales import check_fields, one_size_loss
from toolkit.system.errors import InputError

FINISH_LR_SCALE = 0.1  # of the peak learning rate
LEARNS = ("head", "last_norm")


@dataclass(frozen=True)
class Finish(Strategy):
    """Train by `strategy`, then only the classifier and the last normalization, at `finish_size` px.

    The last `finish_epochs` are the finish; its learning rate falls from a tenth of the peak by the same schedule. The
    best model is chosen at that size. In config.yaml it is the strategy with two fields more, so that every strategy
    can have it. Source: FixRes (arXiv:1906.06423); unlike there, all normalization takes on the new size's statistics.
    """

    name: ClassVar[str] = "finish"

    strategy: Strategy
    finish_size: int
    finish_epochs: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.strategy, Finish):
            raise InputError("Finish of a Finish: a run has one finish")
        largest = self.strategy.selection().sizes[-1]
        if self.finish_size <= largest:
            raise InputError(
                f"--finish-size {self.finish_size}: larger than the {largest} px of the training before it"
            )
        if self.finish_epochs < 1:
            raise InputError(f"--finish-epochs {self.finish_epochs}: 1 or more")

    @property
    def smaller_teach(self) -> bool:
        return self.strategy.smaller_teach

    def __str__(self) -> str:
        return f"{self.strategy}, then {self.finish_epochs} epoch(s) of the classifier at {self.finish_size} px"

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        left = budget.epochs - self.finish_epochs
        if left < 1:
            most = budget.epochs - 1
            raise InputError(f"--finish-epochs {self.finish_epochs}: at most {most} of --epochs {budget.epochs}")
        try:
            before = self.strategy.phases(replace(budget, epochs=left))
        except InputError as error:
            raise InputError(f"{error}; {self.finish_epochs} of --epochs {budget.epochs} are the finish") from None
        largest = max(size for phase in before for size in phase.sizes)
        if self.finish_size <= largest:
            raise InputError(
                f"--finish-size {self.finish_size}: larger than the {largest} px of the training before it"
            )
        steps = self.finish_epochs * budget.steps_per_epoch
        return (
            *before,
            Phase(
                len(before),
                self.finish_epochs,
                steps,
                (self.finish_size,),
                budget.batch_size,
                lr_scale=FINISH_LR_SCALE,
                lr_restart=True,
                trainable=LEARNS,
            ),
        )

    def _finishes(self, phase: Phase) -> bool:
        return phase.lr_restart and phase.trainable == LEARNS

    def step(self, phase: Phase, i: int) -> Step:
        return Step(phase.sizes, phase.batch_size) if self._finishes(phase) else self.strategy.step(phase, i)

    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: BoundTask, phase: Phase, step: Step) -> Loss:
        if not self._finishes(phase):
            return self.strategy.loss(logits, targets, task, phase, step)
        return one_size_loss(logits, targets, task, step)

    def eval_specs(self) -> tuple[EvalSpec, ...]:
        before, own = self.strategy.eval_specs(), at_size(self.finish_size)
        return tuple(sorted({*before, own}, key=lambda spec: spec.sizes))

    def selection(self) -> EvalSpec:
        return at_size(self.finish_size)

    def norm(self) -> NormPolicy:
        policy, size = self.strategy.norm(), (self.finish_size,)
        return NormPolicy(policy.mode, size if policy.mode == "off" else (*policy.scales, *size))

    def to_dict(self) -> dict[str, Any]:
        return {**self.strategy.to_dict(), "finish_size": self.finish_size, "finish_epochs": self.finish_epochs}
