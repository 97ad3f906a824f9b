"""Progressive training in stages of equal compute."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from toolkit.config.choices import BatchGrowth, NormMode
from toolkit.strategies.base import BoundTask, Budget, EvalSpec, Loss, NormPolicy, Phase, Step, Strategy, at_size
from toolkit.strategies.scales import (
    check_ascending,
    check_fields,
    check_growth,
    check_several,
    eval_specs,
    join,
    norm_in_turn,
    one_size_loss,
    one_size_phase,
    regularization_at,
    share_out,
)
from toolkit.system.errors import InputError


@dataclass(frozen=True)
class ProgressiveCompute(Strategy):
    """Train at each of `scales` in turn, each with the same share of the multiply-adds instead of the epochs.

    So most epochs are at the smallest scale, and the schedule of the learning rate follows the compute that is spent.
    `stage_compute`: relative compute of the stages; None: equal. The cost of an image is taken to grow with its area.
    `grow_batch` and `regularization_from` as in `Progressive`. Source: EfficientTrain++ (arXiv:2405.08768), with sizes
    instead of frequencies.
    """

    name: ClassVar[str] = "progressive-compute"

    scales: tuple[int, ...]
    stage_compute: tuple[float, ...] | None = None
    grow_batch: BatchGrowth = "off"
    norm_per_scale: NormMode = "off"
    eval_scales: tuple[int, ...] | None = None
    regularization_from: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, own=("stage_compute",))
        check_several("--scales", self.scales)
        check_ascending("--eval-scales", self.eval_scales)
        check_growth(self.grow_batch, self.regularization_from)
        stages = self.stage_compute
        if stages is not None and (len(stages) != len(self.scales) or min(stages) <= 0):
            numbers = f"{len(self.scales)} numbers above 0 in brackets, one a scale"
            raise InputError(f"--strategy-kwargs stage_compute={stages}: {numbers}, such as [1,2,2]")

    def __str__(self) -> str:
        shares = "equal compute" if self.stage_compute is None else f"compute {join(self.stage_compute)}"
        return f"progressive {' -> '.join(map(str, self.scales))} px, stages of {shares}"

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        largest, stages = self.scales[-1], len(self.scales)
        if budget.epochs < stages:
            raise InputError(f"--epochs {budget.epochs} for {stages} scales: every scale needs an epoch")
        compute = self.stage_compute or (1,) * stages
        weights = [share / size**2 for share, size in zip(compute, self.scales, strict=True)]
        return tuple(
            replace(
                one_size_phase(index, epochs, size, budget, largest, growth=self.grow_batch),
                lr_weight=(size / largest) ** 2,
                regularization=regularization_at(size, self.scales, self.regularization_from),
            )
            for index, (size, epochs) in enumerate(zip(self.scales, share_out(budget.epochs, weights), strict=True))
        )

    def step(self, phase: Phase, i: int) -> Step:
        return Step(phase.sizes, phase.batch_size)

    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: BoundTask, phase: Phase, step: Step) -> Loss:
        return one_size_loss(logits, targets, task, step)

    def eval_specs(self) -> tuple[EvalSpec, ...]:
        return eval_specs(self.scales, self.eval_scales)

    def selection(self) -> EvalSpec:
        return at_size(self.scales[-1])

    def norm(self) -> NormPolicy:
        return norm_in_turn(self.norm_per_scale, self.scales)
