"""A start in which only the classifier learns, for any strategy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from toolkit.strategies.base import BoundTask, Budget, EvalSpec, Loss, NormPolicy, Phase, Step, Strategy
from toolkit.strategies.finish import Finish
from toolkit.strategies.scales import check_fields
from toolkit.system.errors import InputError

HEAD_LR_SCALE = 2.0  # of the peak learning rate; fastai's fine_tune halves the rate when all begins to learn


@dataclass(frozen=True)
class HeadFirst(Strategy):
    """Train only the classifier for `head_epochs`, then all by `strategy`, so that a new head distorts no features.

    The first epochs are like those of the strategy's first phase; their learning rate is constant, and the schedule
    with its warm-up begins behind them. In config.yaml it is the strategy with a field more, so that every strategy can
    have it; a `Finish` goes around it. Source: LP-FT (arXiv:2202.10054).
    """

    name: ClassVar[str] = "head-first"

    strategy: Strategy
    head_epochs: int

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.strategy, HeadFirst | Finish):
            raise InputError(
                f"HeadFirst of a {type(self.strategy).__name__}: a run has one, and a Finish goes around it"
            )
        if self.head_epochs < 1:
            raise InputError(f"--head-epochs {self.head_epochs}: 1 or more")

    @property
    def smaller_teach(self) -> bool:
        return self.strategy.smaller_teach

    def __str__(self) -> str:
        return f"{self.head_epochs} epoch(s) of the classifier, then {self.strategy}"

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        left = budget.epochs - self.head_epochs
        if left < 1:
            raise InputError(f"--head-epochs {self.head_epochs}: at most {budget.epochs - 1} of {budget.epochs} epochs")
        try:
            rest = self.strategy.phases(replace(budget, epochs=left))
        except InputError as error:
            raise InputError(f"{error}; {self.head_epochs} of {budget.epochs} epochs are the head's") from None
        first = rest[0]
        head = replace(
            first,
            epochs=self.head_epochs,
            steps=self.head_epochs * (first.steps // first.epochs),
            lr_scale=HEAD_LR_SCALE * first.lr_scale,
            lr_hold=True,
            trainable=("head",),
            counts_for_patience=False,
        )
        return (head, *(replace(phase, index=phase.index + 1) for phase in rest))

    def _inner(self, phase: Phase) -> Phase:
        """The phase as the strategy knows it."""
        return replace(phase, index=max(0, phase.index - 1))

    def step(self, phase: Phase, i: int) -> Step:
        return self.strategy.step(self._inner(phase), i)

    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: BoundTask, phase: Phase, step: Step) -> Loss:
        return self.strategy.loss(logits, targets, task, self._inner(phase), step)

    def eval_specs(self) -> tuple[EvalSpec, ...]:
        return self.strategy.eval_specs()

    def selection(self) -> EvalSpec:
        return self.strategy.selection()

    def norm(self) -> NormPolicy:
        return self.strategy.norm()

    def to_dict(self) -> dict[str, Any]:
        return {**self.strategy.to_dict(), "head_epochs": self.head_epochs}
