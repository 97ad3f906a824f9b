"""The largest scale learns the labels; the smallest and one in between learn from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from toolkit.config.choices import NormMode
from toolkit.strategies.base import BoundTask, Budget, EvalSpec, Loss, NormPolicy, Phase, Step, Strategy, at_size
from toolkit.strategies.consistency import Teaching
from toolkit.strategies.scales import check_ascending, check_fields, drawn, eval_specs, join, one_phase
from toolkit.system.errors import InputError

LEAST_SCALES = 3


@dataclass(frozen=True)
class Sandwich(Strategy):
    """Each step trains at the smallest, the largest and one other of `scales`: each in turn, in random order.

    The largest learns the labels; in the others `consistency_share` of the loss is KL to its prediction, the rest the
    labels. Source: sandwich rule and inplace distillation (US-Nets, arXiv:1903.05134; MutualNet, arXiv:1909.12978),
    where the share is 1.
    """

    name: ClassVar[str] = "sandwich"

    scales: tuple[int, ...]
    consistency_share: float = 1.0
    norm_per_scale: NormMode = "full"
    eval_scales: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_ascending("--scales", self.scales)
        check_ascending("--eval-scales", self.eval_scales)
        if len(self.scales) < LEAST_SCALES:
            raise InputError(f"--scales {join(self.scales)}: --strategy sandwich needs {LEAST_SCALES} or more")
        self.teaching  # noqa: B018  # checks its fields

    def __str__(self) -> str:
        among = f"one of {join(self.scales[1:-1])}" if len(self.scales) > LEAST_SCALES else f"{self.scales[1]}"
        return f"sandwich of {self.scales[0]}, {among} and {self.scales[-1]} px, share {self.consistency_share:g}"

    @property
    def teaching(self) -> Teaching:
        return Teaching(share=self.consistency_share)

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        return one_phase(self.scales, budget)

    def step(self, phase: Phase, i: int) -> Step:
        return Step((self.scales[0], drawn(self.scales[1:-1], i), self.scales[-1]), phase.batch_size)

    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: BoundTask, phase: Phase, step: Step) -> Loss:
        share, teacher = self.consistency_share, logits[-1].detach()
        losses = [task.loss(scale_logits, targets) for scale_logits in logits]
        parts = {f"loss/{size}px": loss for size, loss in zip(step.sizes, losses, strict=True)}
        taught = [self.teaching.disagreement(teacher, student, targets, task) for student in logits[:-1]]
        mixed = [(1 - share) * loss + share * apart for loss, apart in zip(losses[:-1], taught, strict=True)]
        return Loss(torch.stack([*mixed, losses[-1]]).mean(), {**parts, "consistency": torch.stack(taught).mean()})

    def eval_specs(self) -> tuple[EvalSpec, ...]:
        return eval_specs(self.scales, self.eval_scales)

    def selection(self) -> EvalSpec:
        return at_size(self.scales[-1])

    def norm(self) -> NormPolicy:
        return NormPolicy(self.norm_per_scale, self.scales)
