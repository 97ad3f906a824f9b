"""Single-scale training: one size in all steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from toolkit.strategies.base import BoundTask, Budget, EvalSpec, Loss, NormPolicy, Phase, Step, Strategy, at_size
from toolkit.strategies.scales import check_ascending, check_fields, eval_specs, one_phase, one_size_loss


@dataclass(frozen=True)
class SingleScale(Strategy):
    """Train at `img_size` px; evaluate there and at `eval_scales`."""

    name: ClassVar[str] = "single"

    img_size: int
    eval_scales: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_ascending("--img-size", (self.img_size,))
        check_ascending("--eval-scales", self.eval_scales)

    def __str__(self) -> str:
        return f"single scale at {self.img_size} px"

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        return one_phase((self.img_size,), budget)

    def step(self, phase: Phase, i: int) -> Step:
        return Step(phase.sizes, phase.batch_size)

    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: BoundTask, phase: Phase, step: Step) -> Loss:
        return one_size_loss(logits, targets, task, step)

    def eval_specs(self) -> tuple[EvalSpec, ...]:
        return eval_specs((self.img_size,), self.eval_scales)

    def selection(self) -> EvalSpec:
        return at_size(self.img_size)

    def norm(self) -> NormPolicy:
        return NormPolicy("off", (self.img_size,))
