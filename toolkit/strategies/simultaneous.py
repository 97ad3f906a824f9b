"""Simultaneous training: all scales in each step, with a consistency loss between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from toolkit.config.choices import ConsistencyForm, NormMode
from toolkit.strategies.base import BoundTask, Budget, EvalSpec, Loss, NormPolicy, Phase, Step, Strategy, at_size
from toolkit.strategies.consistency import CONSISTENCY, consistency
from toolkit.strategies.scales import check_ascending, check_several, eval_specs, join
from toolkit.system.errors import InputError


@dataclass(frozen=True)
class Simultaneous(Strategy):
    """Minimize the mean classification loss over scales + `consistency_weight` x mean consistency loss over pairs.

    Source: RS-Nets (arXiv:2007.00193); here every larger scale is a teacher of every smaller one, without an ensemble.
    """

    name: ClassVar[str] = "simultaneous"

    scales: tuple[int, ...]
    consistency_weight: float = 0.0
    consistency: ConsistencyForm = "kl"
    norm_per_scale: NormMode = "full"
    eval_scales: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_several("--scales", self.scales)
        check_ascending("--eval-scales", self.eval_scales)
        if self.consistency not in CONSISTENCY:
            raise InputError(f"--consistency {self.consistency}: one of {', '.join(CONSISTENCY)}")
        if self.consistency_weight < 0:
            raise InputError(f"--consistency-weight {self.consistency_weight}: 0 or more")

    def __str__(self) -> str:
        form = f", {self.consistency} consistency x {self.consistency_weight:g}" if self.consistency_weight else ""
        return f"simultaneous {join(self.scales)} px{form}"

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        steps = budget.epochs * budget.steps_per_epoch
        return (Phase(0, budget.epochs, steps, self.scales, budget.batch_size),)

    def step(self, phase: Phase, i: int) -> Step:
        return Step(phase.sizes, phase.batch_size)

    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: BoundTask, phase: Phase, step: Step) -> Loss:
        losses = [task.loss(scale_logits, targets) for scale_logits in logits]
        parts = {f"loss/{size}px": loss for size, loss in zip(step.sizes, losses, strict=True)}
        mean = torch.stack(losses).mean()
        if self.consistency_weight == 0:
            return Loss(mean, parts)
        disagreement = consistency(logits, self.consistency, task)
        return Loss(mean + self.consistency_weight * disagreement, {**parts, "consistency": disagreement})

    def eval_specs(self) -> tuple[EvalSpec, ...]:
        return eval_specs(self.scales, self.eval_scales)

    def selection(self) -> EvalSpec:
        return at_size(self.scales[-1])

    def norm(self) -> NormPolicy:
        return NormPolicy(self.norm_per_scale, self.scales)
