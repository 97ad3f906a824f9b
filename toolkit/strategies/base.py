"""All that the loop and a strategy say to each other.

A strategy brackets the model call: which sizes go in, and what to make of the logits that come out. It is frozen,
printable, serializable, and a pure function of its fields, phase and step, so it has nothing to checkpoint and every
rank agrees with every other.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from toolkit.config.choices import NORM_MODES, NormMode
from toolkit.system.errors import InputError

Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Budget:
    """What training may spend: `images` are those of an epoch that fill whole batches."""

    epochs: int
    images: int
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch_size


@dataclass(frozen=True)
class Phase:
    """A stretch of training; `sizes` are all that may occur in it, px; `regularization` scales the augmentation."""

    index: int
    epochs: int
    steps: int
    sizes: tuple[int, ...]
    batch_size: int
    lr_scale: float = 1.0
    regularization: float = 1.0


@dataclass(frozen=True)
class Step:
    """One optimizer step over all processes: `sizes` ascend, the last one teaches."""

    sizes: tuple[int, ...]
    batch_size: int


@dataclass(frozen=True)
class EvalSpec:
    """One figure to report; over several `sizes`, probabilities are averaged."""

    name: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Loss:
    """`total` is what is minimized; `parts` are for logs only."""

    total: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class NormPolicy:
    """Which scales own normalization: statistics and affine ("full"), statistics only, or nothing ("off").

    With "off" all sizes share one set, and `scales` are those that its statistics are of at the end of training.
    """

    mode: NormMode
    scales: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.mode not in NORM_MODES:
            raise InputError(f"--norm-per-scale {self.mode}: one of {', '.join(NORM_MODES)}")

    def scale_for(self, size: int) -> int:
        """The scale whose normalization serves `size`: its own, else the nearest in log size, the larger of two."""
        return min(self.scales, key=lambda scale: (max(scale / size, size / scale), -scale))


class Strategy(ABC):
    """What is trained at which size; subclasses are frozen dataclasses, each in a file of its own."""

    name: ClassVar[str]

    @abstractmethod
    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """What each stretch of training looks like; epochs and steps add up to the budget."""

    @abstractmethod
    def step(self, phase: Phase, i: int) -> Step:
        """The i-th optimizer step of the phase."""

    @abstractmethod
    def loss(self, logits: Sequence[Tensor], targets: Tensor, criterion: Criterion, phase: Phase, step: Step) -> Loss:
        """The loss of one micro-batch; logits: one N x C per size of the step; targets: N ints or N x C floats."""

    @abstractmethod
    def eval_specs(self) -> tuple[EvalSpec, ...]:
        """Every scale worth reporting."""

    @abstractmethod
    def selection(self) -> EvalSpec:
        """The one of the panel that picks the best model."""

    @abstractmethod
    def norm(self) -> NormPolicy:
        """Which scales share normalization."""

    def to_dict(self) -> dict[str, Any]:
        """Its name and fields, as they stand in a configuration file."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"strategy": self.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


def at_size(size: int) -> EvalSpec:
    """The figure at one size, named `64px`."""
    return EvalSpec(f"{size}px", (size,))
