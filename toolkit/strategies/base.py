"""The interfaces between the training loop and what a user may replace: strategies and tasks.

A strategy chooses the sizes that go into the model and computes the loss from the logits that come out. It is frozen,
printable, serializable, and a pure function of its fields, phase and step. So it has nothing to checkpoint, and all
ranks agree.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from toolkit.config.choices import NORM_MODES, NormMode
from toolkit.config.tables import entry_name
from toolkit.strategies.measures import ImageValues, Weighing, by_measure
from toolkit.strategies.measures import Metric as Metric
from toolkit.system.errors import InputError, nearest


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
    """A part of training; `sizes`: all sizes used in it, px; `regularization`: share of the run's, 0 or more.

    It scales augmentation, MixUp and CutMix, dropout, drop path, and what `Task.regularized` scales. Every epoch has
    steps / epochs steps of `batch_size` images, at most the budget's. `trainable`: the first parts of names that learn,
    with "head" and "last_norm" for the last layers; empty: all. `counts_for_patience`: patience and the plateau
    schedule follow the last phase that counts. `lr_weight`: how far an image carries the schedule after the warm-up,
    relative to other phases; 0 holds the rate. `lr_restart`: the schedule begins again, at its peak. `lr_hold`: the
    rate is the peak, and the schedule with its warm-up begins behind. The loop fills in `start` and `end`.
    """

    index: int
    epochs: int
    steps: int
    sizes: tuple[int, ...]
    batch_size: int
    lr_scale: float = 1.0
    lr_weight: float = 1.0
    lr_restart: bool = False
    regularization: float = 1.0
    trainable: tuple[str, ...] = ()
    counts_for_patience: bool = True
    lr_hold: bool = False
    start: float = 0.0
    end: float = 1.0

    def progress(self, i: int) -> float:
        """The share of the run's images that are trained on at the middle of step `i` of the phase."""
        return self.start + (self.end - self.start) * (i + 0.5) / self.steps


@dataclass(frozen=True)
class Step:
    """One optimizer step over all processes; `sizes` ascend, px; the last one is the teacher.

    `progress`, 0 to 1, is for a loss that follows it: that of the run, `Phase.progress`, or of the phase.
    """

    sizes: tuple[int, ...]
    batch_size: int
    progress: float = 0.0


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

    @property
    def smaller_teach(self) -> bool:
        """Whether the loss at a size may depend on what a smaller one predicts, as with an ensemble teacher."""
        return False

    @abstractmethod
    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """The phases of training, in order; their epochs sum to the budget, and no epoch has more images than it."""

    @abstractmethod
    def step(self, phase: Phase, i: int) -> Step:
        """The i-th optimizer step of the phase."""

    @abstractmethod
    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: "BoundTask", phase: Phase, step: Step) -> Loss:
        """The loss of one micro-batch; `logits`: N x C for each size of the step; `targets`: what `task.loss` takes."""

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
        plain = {name: _as_lists(value) for name, value in values.items()}
        return {"strategy": entry_name("strategy", type(self)), **plain}


def _as_lists(value: Any) -> Any:
    return [_as_lists(part) for part in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Task(ABC):
    """What a label is, which loss is minimized and what is measured; subclasses are frozen dataclasses.

    `metrics`: those of every evaluation; the first selects the best model unless `--select-by` names another.
    `extra_metrics`: others, which `weighted` measures at a run's end, in `toolkit evaluate`, and where they select.
    `summed`: names of the sums over images that `metrics` are computed from. `several_labels`: an image has any number
    of classes, so that sources give N rows of C zeros and ones.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    extra_metrics: ClassVar[tuple[Metric, ...]] = ()
    summed: ClassVar[tuple[str, ...]]
    several_labels: ClassVar[bool] = False

    @classmethod
    def metric(cls, name: str) -> Metric:
        """The metric of that name or title; raises InputError if there is none."""
        known = (*cls.metrics, *cls.extra_metrics)
        asked = name.lower().replace("_", " ")
        found = [metric for metric in known if name == metric.name or asked == metric.title.lower()]
        if not found:
            names = ", ".join(metric.name for metric in known)
            hint = nearest(name, [metric.name for metric in known])
            raise InputError(f"--select-by {name}: --task {entry_name('task', cls)} measures {names}{hint}")
        return found[0]

    @classmethod
    def headline(cls, select_by: str) -> tuple[Metric, ...]:
        """The metrics for a small table: the one that selects, and the first of the others that is in percent."""
        selects = cls.metric(select_by)
        return (selects, *[metric for metric in cls.metrics if metric.percent and metric is not selects][:1])

    @abstractmethod
    def check_labels(self, labels: np.ndarray, classes: int) -> None:
        """Raise InputError unless these are labels of N images: N ints, or N rows of numbers."""

    @abstractmethod
    def class_counts(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """The number of images of each class."""

    def check_counts(self, counts: np.ndarray, classes: Sequence[str]) -> None:  # noqa: B027 (most tasks can learn all)
        """Raise InputError if a class cannot be learned; `counts`: of the training images of each."""

    @abstractmethod
    def columns(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Names of the values that are kept of each image: the rows of `BoundTask.record`."""

    @abstractmethod
    def measure(
        self, sums: Mapping[str, float], labels: np.ndarray, record: np.ndarray, classes: int
    ) -> dict[str, float]:
        """All of `metrics` by name, from `summed` over N images and their R x N `record`."""

    def weighted(self, names: Sequence[str], images: ImageValues, weighing: Weighing) -> dict[str, np.ndarray]:
        """B values of the named metrics, extra ones too, for B weighings of the images; NaN where undefined.

        What cannot be measured is missing. Without a faster way, by `measure` of each weighing's images.
        """
        return by_measure(self.measure, self.summed, names, images, weighing)

    def of_each_class(self, images: ImageValues) -> dict[str, np.ndarray]:
        """Values of each class by name, 0 to 1 or NaN; the worst class is the lowest by the first. Empty: none."""
        return {}

    def check_selection(self, metric: Metric, labels: np.ndarray, classes: Sequence[str]) -> None:  # noqa: B027
        """Raise InputError if the metric is undefined, or the same for any model, on images with these labels."""

    def choices(self, labels: np.ndarray, record: np.ndarray) -> dict[str, Any]:
        """Fields to replace by what suits N validation images, such as thresholds; `record` as in `measure`."""
        return {}

    @abstractmethod
    def answer(self, probabilities: np.ndarray, classes: Sequence[str]) -> str:
        """The predicted class, or classes, of an image as text; `probabilities`: one per class."""

    def exported(self, classes: Sequence[str]) -> dict[str, Any]:
        """Entries of an export's config.json that tell how to read the probabilities."""
        return {}

    def regularized(self, share: float) -> "Task":
        """The task with its own regularization, such as label smoothing, scaled; itself if it has none.

        Only for the loss in training, and not to change what a label is. `share`: that of a phase, 0 or more.
        """
        return self

    @abstractmethod
    def bind(self, class_counts: np.ndarray, device: torch.device) -> "BoundTask":
        """The computations on a device; `class_counts`: images of each class in training; ones in an evaluation."""


class BoundTask(ABC):
    """A task's computations on a device. `averaged` stands for N x C logits that `average` returned."""

    @abstractmethod
    def targets(self, labels: Tensor) -> Tensor:
        """What `loss` takes for the labels of N images."""

    @abstractmethod
    def mixable(self, labels: Tensor) -> Tensor:
        """The same as N x C floats in [0, 1], of which MixUp and CutMix take weighted means; `loss` takes them too."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of N images, N x C logits."""

    @abstractmethod
    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Float32 N x ... x K: logarithms of probabilities that sum to 1 over the last dimension."""

    @abstractmethod
    def true_class(self, targets: Tensor) -> Tensor:
        """N x ...: which of the K `log_probabilities` the targets say; of mixed ones the one with most weight."""

    @abstractmethod
    def average(self, logits: Sequence[Tensor]) -> Tensor:
        """N x C logits whose probabilities are the means of those of several N x C logits."""

    @abstractmethod
    def probabilities(self, averaged: Tensor) -> Tensor:
        """N x C probabilities of the classes."""

    @abstractmethod
    def confidence(self, probabilities: Tensor) -> Tensor:
        """N: how sure each prediction is, 0 to 1; a cascade stops by it."""

    @abstractmethod
    def sums(self, averaged: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """`Task.summed` over N images, in that order; `dtype` keeps counts exact."""

    def each(self, averaged: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """S x N: the part of each image in `sums`."""
        return torch.stack([self.sums(averaged[i : i + 1], labels[i : i + 1], dtype) for i in range(len(labels))], 1)

    @abstractmethod
    def record(self, averaged: Tensor, labels: Tensor) -> Tensor:
        """R x N: what is kept of each image. The first row is 0 or more; the last tells how well it was predicted."""


def at_size(size: int) -> EvalSpec:
    """The evaluation at one size, named like `64px`."""
    return EvalSpec(f"{size}px", (size,))
