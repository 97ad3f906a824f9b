"""Progressive training: one scale after another, from small to large."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
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
    norm_in_turn,
    one_size_loss,
    one_size_phase,
    regularization_at,
)
from toolkit.system.errors import InputError

RAMP_START, RAMP_DELAY, RAMP_FINISH = 0.5, 0.5, 0.2  # share of the largest size; shares of epochs (MosaicML Composer)
RAMP_MOST_SIZES = 8  # compilers and cuDNN specialize per shape
RAMP_GRID_PX = 4


@dataclass(frozen=True)
class Progressive(Strategy):
    """Train at each of `scales` in turn, or with `ramp` at sizes that grow smoothly up to the largest of them.

    `scale_epochs`: one number, the epochs of every scale except the last; or one number per scale, which sum to the
    run's epochs; None: equal parts, and the last scale also gets the remainder. `grow_batch`: see `one_size_phase`.
    `regularization_from`: share of the regularization at the smallest size; it grows linearly with the size to all of
    it at the largest; 1: no growth (EfficientNetV2, arXiv:2104.00298).
    """

    name: ClassVar[str] = "progressive"

    scales: tuple[int, ...]
    scale_epochs: tuple[int, ...] | None = None
    ramp: bool = False
    norm_per_scale: NormMode = "off"
    eval_scales: tuple[int, ...] | None = None
    grow_batch: BatchGrowth = "off"
    regularization_from: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_several("--scales", self.scales)
        check_ascending("--eval-scales", self.eval_scales)
        check_growth(self.grow_batch, self.regularization_from)
        if self.ramp and self.scale_epochs is not None:
            raise InputError("--scale-epochs would be ignored with --ramp: drop one of them")
        if self.ramp and self.norm_per_scale != "off":
            raise InputError(f"--norm-per-scale {self.norm_per_scale} needs fixed scales: it does not go with --ramp")

    def __str__(self) -> str:
        if self.ramp:
            return f"progressive ramp {self._ramp_sizes()[0]} -> {self.scales[-1]} px"
        return f"progressive {' -> '.join(map(str, self.scales))} px"

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        stretches = self._ramp(budget.epochs) if self.ramp else self._stages(budget.epochs)
        sizes = [size for size, _ in stretches]
        return tuple(
            replace(
                one_size_phase(index, epochs, size, budget, self.scales[-1], growth=self.grow_batch),
                regularization=regularization_at(size, sizes, self.regularization_from),
            )
            for index, (size, epochs) in enumerate(stretches)
        )

    def _stages(self, epochs: int) -> list[tuple[int, int]]:
        """(size, epochs) of each stage."""
        stages = len(self.scales)
        if epochs < stages:
            raise InputError(f"--epochs {epochs} for {stages} scales: every scale needs an epoch")
        given = self.scale_epochs or (epochs // stages,)
        if len(given) == 1:
            given = (*given * (stages - 1), epochs - given[0] * (stages - 1))
        arithmetic = f"--scale-epochs {','.join(map(str, given))} for --scales {','.join(map(str, self.scales))}"
        if len(given) != stages:
            raise InputError(f"{arithmetic}: give one number, or {stages}, one per scale")
        if sum(given) != epochs or min(given) < 1:
            raise InputError(
                f"{arithmetic}: every scale needs an epoch and {'+'.join(map(str, given))} must be --epochs {epochs}"
            )
        return list(zip(self.scales, given, strict=True))

    def _ramp_sizes(self) -> list[int]:
        """At most 8 sizes on an even grid that ends at the largest scale."""
        largest = self.scales[-1]
        span = largest * (1 - RAMP_START)
        unit = RAMP_GRID_PX * max(1, math.ceil(span / (RAMP_MOST_SIZES - 1) / RAMP_GRID_PX))
        return [largest - k * unit for k in reversed(range(int(span // unit) + 1))]

    def _ramp(self, epochs: int) -> list[tuple[int, int]]:
        """(size, epochs) of each phase; the size of an epoch depends on the progress at its middle."""
        sizes = self._ramp_sizes()

        def size_at(progress: float) -> int:
            rise = (progress - RAMP_DELAY) / (1 - RAMP_FINISH - RAMP_DELAY)
            return sizes[round(min(1.0, max(0.0, rise)) * (len(sizes) - 1))]

        per_epoch = [*(size_at((epoch + 0.5) / epochs) for epoch in range(epochs - 1)), sizes[-1]]
        return [(size, len(list(run))) for size, run in groupby(per_epoch)]

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
