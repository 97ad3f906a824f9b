"""The interfaces between the training loop and what a user may replace: strategies and schedules.

A strategy chooses the sizes that go into the model and computes the loss from the logits that come out. It is frozen,
printable, serializable, and a pure function of its fields, phase and step. So it has nothing to checkpoint, and all
ranks agree.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from toolkit.config.choices import NORM_MODES, NormMode
from toolkit.config.tables import entry_name
from toolkit.system.errors import InputError

Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Budget:
    """The length of training; `images`: per epoch, only those that fill whole batches."""

    epochs: int
    images: int
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch_size


@dataclass(frozen=True)
class Phase:
    """A part of training; `sizes`: all sizes used in it, px; `regularization` scales the augmentation."""

    index: int
    epochs: int
    steps: int
    sizes: tuple[int, ...]
    batch_size: int
    lr_scale: float = 1.0
    regularization: float = 1.0


@dataclass(frozen=True)
class Step:
    """One optimizer step over all processes; `sizes` ascend, px; the last one is the teacher."""

    sizes: tuple[int, ...]
    batch_size: int


@dataclass(frozen=True)
class EvalSpec:
    """One evaluation to report; over several `sizes`, px, probabilities are averaged."""

    name: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Loss:
    """The loss of a micro-batch; `total` is minimized, `parts` are only logged."""

    total: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class NormPolicy:
    """What each scale owns of normalization: statistics and affine ("full"), only "statistics", or nothing ("off").

    With "off" all sizes share one set; `scales` are those that its statistics describe at the end of training.
    """

    mode: NormMode
    scales: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.mode not in NORM_MODES:
            raise InputError(f"--norm-per-scale {self.mode}: one of {', '.join(NORM_MODES)}")

    def scale_for(self, size: int) -> int:
        """The scale whose normalization `size` uses: its own, else the nearest in log size, the larger on a tie."""
        return min(self.scales, key=lambda scale: (max(scale / size, size / scale), -scale))


class Strategy(ABC):
    """Which sizes to train in which phase, and the loss; subclasses are frozen dataclasses, one per file."""

    name: ClassVar[str]

    @abstractmethod
    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """The phases of training, in order; their epochs and steps sum to the budget."""

    @abstractmethod
    def step(self, phase: Phase, i: int) -> Step:
        """The i-th optimizer step of the phase."""

    @abstractmethod
    def loss(self, logits: Sequence[Tensor], targets: Tensor, criterion: Criterion, phase: Phase, step: Step) -> Loss:
        """The loss of one micro-batch; `logits`: N x C for each size of the step; `targets`: N ints or N x C floats."""

    @abstractmethod
    def eval_specs(self) -> tuple[EvalSpec, ...]:
        """The evaluations to report, one for each scale."""

    @abstractmethod
    def selection(self) -> EvalSpec:
        """The one of `eval_specs` that selects the best model."""

    @abstractmethod
    def norm(self) -> NormPolicy:
        """What each scale owns of normalization, and which scales share it."""

    def to_dict(self) -> dict[str, Any]:
        """Name and fields, as in a configuration file; a class of the user's own is named module:class."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"strategy": entry_name("strategy", type(self)), **plain}


@dataclass(frozen=True)
class Schedule(ABC):
    """The learning rate over a run, as a share of its peak; subclasses are frozen dataclasses with their own fields.

    `warmup`: the share of the run, 0 to 1, in which the rate rises linearly from 0.
    """

    warmup: float = 0.0

    def factor(self, progress: float) -> float:
        """The share of the peak learning rate at `progress`, a share of the run's steps in [0, 1]."""
        return progress / self.warmup if progress < self.warmup else self.shape(progress)

    @abstractmethod
    def shape(self, progress: float) -> float:
        """The same after the warm-up."""


def at_size(size: int) -> EvalSpec:
    """The evaluation at one size, named like `64px`."""
    return EvalSpec(f"{size}px", (size,))
