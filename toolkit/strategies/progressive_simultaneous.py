"""One small scale at a time, then all scales in each step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from toolkit.config.choices import NormMode
from toolkit.strategies.base import BoundTask, Budget, EvalSpec, Loss, NormPolicy, Phase, Step, Strategy, at_size
from toolkit.strategies.consistency import Teaching, taught_loss
from toolkit.strategies.scales import (
    check_ascending,
    check_fields,
    check_several,
    eval_specs,
    join,
    one_size_phase,
    share_out,
)
from toolkit.system.errors import InputError

TOGETHER = 1 / 3  # share of the epochs with all scales in each step


@dataclass(frozen=True)
class ProgressiveSimultaneous(Strategy):
    """Train at each of the smaller `scales` in turn, then at all of them in each step.

    `together_epochs`: epochs of the second part; None: a third of them. The learning rate stays at its peak until then.
    Each scale owns its normalization, which starts as that of the nearest scale trained before.
    """

    name: ClassVar[str] = "progressive-simultaneous"

    scales: tuple[int, ...]
    together_epochs: int | None = None
    consistency_share: float = 0.0
    norm_per_scale: NormMode = "full"
    eval_scales: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self, own=("together_epochs",))
        check_several("--scales", self.scales)
        check_ascending("--eval-scales", self.eval_scales)
        self.teaching  # noqa: B018  # checks its fields

    def __str__(self) -> str:
        taught = f", {self.teaching}" if self.consistency_share else ""
        return f"progressive {' -> '.join(map(str, self.scales[:-1]))} -> {join(self.scales)} px together{taught}"

    @property
    def teaching(self) -> Teaching:
        return Teaching(share=self.consistency_share)

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        small = self.scales[:-1]
        if budget.epochs <= len(small):
            least = len(small) + 1
            raise InputError(
                f"--epochs {budget.epochs}: {len(small)} small scales and all together need {least} epochs"
            )
        usual = max(1, min(round(TOGETHER * budget.epochs), budget.epochs - len(small)))
        together = usual if self.together_epochs is None else self.together_epochs
        if not isinstance(together, int) or not 0 < together <= budget.epochs - len(small):
            raise InputError(
                f"--strategy-kwargs together_epochs={together}: 1 to {budget.epochs - len(small)} of --epochs "
                f"{budget.epochs}, because each of {len(small)} small scales needs one"
            )
        alone = share_out(budget.epochs - together, [1] * len(small))
        first = [
            replace(one_size_phase(index, epochs, size, budget, self.scales[-1]), lr_weight=0)
            for index, (size, epochs) in enumerate(zip(small, alone, strict=True))
        ]
        steps = together * budget.steps_per_epoch
        return (*first, Phase(len(small), together, steps, self.scales, budget.batch_size))

    def step(self, phase: Phase, i: int) -> Step:
        return Step(phase.sizes, phase.batch_size, (i + 0.5) / phase.steps)

    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: BoundTask, phase: Phase, step: Step) -> Loss:
        return taught_loss(logits, targets, task, self.teaching, step)

    def eval_specs(self) -> tuple[EvalSpec, ...]:
        return eval_specs(self.scales, self.eval_scales)

    def selection(self) -> EvalSpec:
        return at_size(self.scales[-1])

    def norm(self) -> NormPolicy:
        return NormPolicy(self.norm_per_scale, self.scales)
