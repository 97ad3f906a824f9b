"""Simultaneous training: all scales in each step, which may also learn from each other's predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from toolkit.config.choices import ConsistencyForm, ConsistencyTeacher, NormMode
from toolkit.strategies.base import BoundTask, Budget, EvalSpec, Loss, NormPolicy, Phase, Step, Strategy, at_size
from toolkit.strategies.consistency import Teaching, consistency, taught_loss
from toolkit.strategies.scales import check_ascending, check_fields, check_several, eval_specs, join, one_phase
from toolkit.system.errors import InputError

ONLY_SHARE = ("consistency_ramp", "consistency_gate", "consistency_teacher", "consistency_temperature")


@dataclass(frozen=True)
class Simultaneous(Strategy):
    """Minimize the mean loss over scales; with `consistency_share` a part of it comes from the predictions of others.

    `consistency_...`: see `Teaching`. `consistency_weight`: the older form, mean loss of the labels + weight x mean
    consistency loss over pairs of scales; the smallest scale then weighs most.
    """

    name: ClassVar[str] = "simultaneous"

    scales: tuple[int, ...]
    consistency_weight: float = 0.0
    consistency: ConsistencyForm = "kl"
    norm_per_scale: NormMode = "full"
    eval_scales: tuple[int, ...] | None = None
    consistency_share: float = 0.0
    consistency_ramp: bool = True
    consistency_gate: bool = False
    consistency_teacher: ConsistencyTeacher = "larger"
    consistency_temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_several("--scales", self.scales)
        check_ascending("--eval-scales", self.eval_scales)
        if self.consistency_weight < 0:
            raise InputError(f"--consistency-weight {self.consistency_weight}: 0 or more")
        if self.consistency_weight and self.consistency_share:
            raise InputError("--consistency-weight and --consistency-share are two forms of one loss: drop one of them")
        changed = [name for name in ONLY_SHARE if getattr(self, name) != getattr(type(self), name)]
        if changed and not self.consistency_share:
            raise InputError(f"--{changed[0].replace('_', '-')} would be ignored without --consistency-share: give it")
        self.teaching  # noqa: B018  # checks its fields

    @property
    def teaching(self) -> Teaching:
        return Teaching(
            self.consistency,
            self.consistency_share,
            self.consistency_ramp,
            self.consistency_gate,
            self.consistency_teacher,
            self.consistency_temperature,
        )

    @property
    def smaller_teach(self) -> bool:
        return self.consistency_share > 0 and self.consistency_teacher == "mean"

    def __str__(self) -> str:
        form = f", {self.consistency} consistency x {self.consistency_weight:g}" if self.consistency_weight else ""
        form = f", {self.teaching}" if self.consistency_share else form
        return f"simultaneous {join(self.scales)} px{form}"

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        return one_phase(self.scales, budget)

    def step(self, phase: Phase, i: int) -> Step:
        return Step(phase.sizes, phase.batch_size, (i + 0.5) / phase.steps)

    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: BoundTask, phase: Phase, step: Step) -> Loss:
        loss = taught_loss(logits, targets, task, self.teaching, step)
        if self.consistency_weight == 0:
            return loss
        disagreement = consistency(logits, self.consistency, targets, task)
        total = loss.total + self.consistency_weight * disagreement
        return Loss(total, {**loss.parts, "consistency": disagreement})

    def eval_specs(self) -> tuple[EvalSpec, ...]:
        return eval_specs(self.scales, self.eval_scales)

    def selection(self) -> EvalSpec:
        return at_size(self.scales[-1])

    def norm(self) -> NormPolicy:
        return NormPolicy(self.norm_per_scale, self.scales)
