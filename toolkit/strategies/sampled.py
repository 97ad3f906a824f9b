"""One scale a step, drawn at random."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from toolkit.config.choices import NormMode
from toolkit.strategies.base import BoundTask, Budget, EvalSpec, Loss, NormPolicy, Phase, Step, Strategy, at_size
from toolkit.strategies.scales import (
    check_ascending,
    check_fields,
    check_several,
    drawn,
    eval_specs,
    join,
    one_phase,
    one_size_loss,
)
from toolkit.system.errors import InputError


@dataclass(frozen=True)
class Sampled(Strategy):
    """Each step trains at one of `scales`: in every round of as many steps each of them once, in random order.

    `target_share`: share of the run at its end in which all steps are at the largest scale. Sources: MixSize
    (arXiv:1908.08986), MobileViT's multi-scale sampler (arXiv:2110.02178).
    """

    name: ClassVar[str] = "sampled"

    scales: tuple[int, ...]
    target_share: float = 0.1
    norm_per_scale: NormMode = "full"
    eval_scales: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self, own=("target_share",))
        check_several("--scales", self.scales)
        check_ascending("--eval-scales", self.eval_scales)
        if not 0 <= self.target_share < 1:
            raise InputError(f"--strategy-kwargs target_share={self.target_share:g}: a share of the run, 0 to below 1")

    def __str__(self) -> str:
        return f"one of {join(self.scales)} px a step, the last {self.target_share:.0%} at {self.scales[-1]} px"

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        return one_phase(self.scales, budget)

    def step(self, phase: Phase, i: int) -> Step:
        if i >= round((1 - self.target_share) * phase.steps):
            return Step(self.scales[-1:], phase.batch_size)
        return Step((drawn(self.scales, i),), phase.batch_size)

    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: BoundTask, phase: Phase, step: Step) -> Loss:
        return one_size_loss(logits, targets, task, step)

    def eval_specs(self) -> tuple[EvalSpec, ...]:
        return eval_specs(self.scales, self.eval_scales)

    def selection(self) -> EvalSpec:
        return at_size(self.scales[-1])

    def norm(self) -> NormPolicy:
        return NormPolicy(self.norm_per_scale, self.scales)
