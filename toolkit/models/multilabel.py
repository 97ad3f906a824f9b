"""Several labels an image: every image has any number of C classes, none too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from timm.loss import AsymmetricLossMultiLabel
from timm.loss import BinaryCrossEntropy as TimmBinaryCrossEntropy
from torch import Tensor, nn

from toolkit.config.choices import ClassWeights, MultiLabelLoss
from toolkit.models import multilabel_metrics as metrics
from toolkit.models import weighted_metrics
from toolkit.models.class_weights import weights_of
from toolkit.models.classification import BinaryCrossEntropy, check_objective, scaled_smoothing, split_names
from toolkit.models.ranking import ratio
from toolkit.strategies.base import BoundTask, Metric, Task
from toolkit.strategies.measures import ImageValues, Weighing
from toolkit.system.errors import InputError


@dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of classes per image, each with a probability of its own; labels are rows of C zeros and ones.

    `loss`: "bce", binary cross-entropy, or "asl", the asymmetric loss (arXiv:2009.14119), both timm's and the mean
    over the classes. `label_smoothing`: share of the target that is moved to 0.5. `class_weights`: "inverse" weighs a
    class by 1 / its images, "effective" by 1 / their effective number, with mean 1 and to `class_weights_power`.
    `thresholds`: a class is predicted above its own, one for all or one each, 0 to 1; empty: chosen for the highest F1
    on the validation images.
    """

    loss: MultiLabelLoss = "bce"
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"
    class_weights_power: float = 1.0
    thresholds: tuple[float, ...] = ()

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("map", "mAP"),
        Metric("micro_f1", "micro F1"),
        Metric("macro_f1", "macro F1"),
        Metric("loss", "loss", percent=False, higher_is_better=False),
    )
    extra_metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("worst_class_ap", "worst class"),
        Metric("auroc", "AUROC"),
        Metric("micro_auroc", "micro AUROC"),
    )
    summed: ClassVar[tuple[str, ...]] = ("loss",)
    several_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_objective(self, get_args(MultiLabelLoss))
        given = self.thresholds if isinstance(self.thresholds, tuple) else (self.thresholds,)
        for value in given:
            if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value < 1:
                raise InputError(f"--task-kwargs thresholds={value}: a threshold must be above 0 and below 1")
        object.__setattr__(self, "thresholds", tuple(map(float, given)))

    def check_labels(self, labels: np.ndarray, classes: int) -> None:
        if labels.ndim != 2 or labels.shape[1] != classes or not np.isin(labels, (0, 1)).all():
            raise InputError(
                f"labels of shape {labels.shape[1:]} and type {labels.dtype}: the task wants {classes} zeros and ones "
                "per image"
            )
        self._each(classes)

    def class_counts(self, labels: np.ndarray, classes: int) -> np.ndarray:
        return labels.sum(0).astype(np.int64)

    def check_counts(self, counts: np.ndarray, classes: Sequence[str]) -> None:
        missing = [name for name, count in zip(classes, counts, strict=True) if not count]
        if missing:
            more = f", nor {len(missing) - 1} others" if missing[1:] else ""
            raise InputError(
                f"no image of train has class {missing[0]!r}{more}: leave the class out, add images that have it, or "
                "hold out others for validation by --val-split or --seed"
            )

    def columns(self, classes: Sequence[str]) -> tuple[str, ...]:
        return (*(f"p_{name}" for name in classes), "fit")

    def measure(
        self, sums: Mapping[str, float], labels: np.ndarray, record: np.ndarray, classes: int
    ) -> dict[str, float]:
        probabilities = record[:-1].T
        predicted = self._predicted(probabilities)
        return {
            "map": metrics.mean_average_precision(labels, probabilities),
            "micro_f1": metrics.micro_f1(labels, predicted),
            "macro_f1": metrics.macro_f1(labels, predicted),
            "loss": sums["loss"] / len(labels),
        }

    def weighted(self, names: Sequence[str], images: ImageValues, weighing: Weighing) -> dict[str, np.ndarray]:
        own = type(self).measure is not MultiLabel.measure  # of a subclass, whose definitions count
        names, others = split_names(names, self.metrics) if own else (names, [])
        found = super().weighted(others, images, weighing) if others else {}
        images = _with_scores(images)
        return found | weighted_metrics.of_labels(names, images, self._predicted(images.record[:-1].T), weighing)

    def of_each_class(self, images: ImageValues) -> dict[str, np.ndarray]:
        images, plain = _with_scores(images), Weighing.plain(len(images.labels))
        predicted = self._predicted(images.record[:-1].T)
        right, there, found = (
            weighted_metrics.label_counts(rows, plain)[:, 0]
            for rows in (images.labels * predicted, images.labels, predicted)
        )
        return {
            "average_precision": weighted_metrics.of_each_label(images, plain)["average_precision"][:, 0],
            "precision": ratio(right, found),
            "recall": ratio(right, there),
            "f1": ratio(2 * right, there + found),
        }

    def check_selection(self, metric: Metric, labels: np.ndarray, classes: Sequence[str]) -> None:
        if metric.name in ("auroc", "micro_auroc") and not (labels.any(0) & ~labels.all(0)).any():
            raise InputError(
                f"--select-by {metric.name}: no class is on some of the {len(labels)} validation images and not on "
                f"others, and it compares these: select by {self.metrics[0].name}, or add other images"
            )

    def choices(self, labels: np.ndarray, record: np.ndarray) -> dict[str, Any]:
        return {} if self.thresholds else {"thresholds": metrics.best_thresholds(labels, record[:-1].T)}

    def answer(self, probabilities: np.ndarray, classes: Sequence[str]) -> str:
        return "|".join(classes[i] for i in np.flatnonzero(self._predicted(probabilities)).tolist())

    def exported(self, classes: Sequence[str]) -> dict[str, Any]:
        return {"thresholds": self._each(len(classes)).tolist()}

    def regularized(self, share: float) -> Task:
        return replace(self, label_smoothing=scaled_smoothing(self.label_smoothing, share))

    def bind(self, class_counts: np.ndarray, device: torch.device) -> BoundTask:
        weights = None
        if self.class_weights != "none":
            share = weights_of(class_counts, self.class_weights, self.class_weights_power)
            weights = torch.tensor(share, dtype=torch.float32)
        kind = {"bce": _binary_cross_entropy, "asl": _asymmetric}[self.loss]
        losses, thresholds = kind(self.label_smoothing, weights).to(device), self._each(len(class_counts))
        return SeveralLabels(len(class_counts), losses, kind(0.0, None), torch.from_numpy(thresholds))

    def _each(self, classes: int) -> np.ndarray:
        """The threshold of each class; raises InputError if there are others."""
        given = self.thresholds or (metrics.MIDDLE,)
        if len(given) not in (1, classes):
            raise InputError(f"--task-kwargs thresholds: {len(given)} for {classes} classes: give one, or one for each")
        return np.array(given if len(given) == classes else given * classes)

    def _predicted(self, probabilities: np.ndarray) -> np.ndarray:
        """Whether each probability, of C or N x C, is above its threshold; compared in float64."""
        return probabilities.astype(np.float64) > self._each(probabilities.shape[-1])


def _with_scores(images: ImageValues) -> ImageValues:
    """The probabilities of all classes are in the record, too."""
    return replace(images, scores=images.record[:-1])


def _binary_cross_entropy(smoothing: float, weights: Tensor | None) -> nn.Module:
    return TimmBinaryCrossEntropy(smoothing=smoothing, smooth_dense=True, weight=weights, reduction="none")


def _asymmetric(smoothing: float, weights: Tensor | None) -> nn.Module:
    return AsymmetricLossMultiLabel(smoothing=smoothing, weight=weights, reduction="none")


class SeveralLabels(BinaryCrossEntropy):
    """`losses`: N x C from N x C logits and targets; `plain`: without smoothing and weights; `thresholds`: C."""

    def __init__(self, classes: int, losses: nn.Module, plain: nn.Module, thresholds: Tensor) -> None:
        super().__init__(classes, smoothing=0.0, weights=None)
        self.losses, self.plain, self.thresholds = losses, plain, thresholds

    def targets(self, labels: Tensor) -> Tensor:
        return labels.float()

    def mixable(self, labels: Tensor) -> Tensor:
        return labels.float()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.losses(logits, targets).mean()

    def confidence(self, probabilities: Tensor) -> Tensor:
        """The probability of what the answer says of the class of which it is the least sure."""
        predicted = probabilities.double() > self.thresholds.to(probabilities.device)
        return torch.where(predicted, probabilities, 1 - probabilities).min(1).values

    def sums(self, averaged: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        return self.plain(averaged.to(dtype), labels.to(dtype)).mean(1).sum()[None].to(dtype)

    def each(self, averaged: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        if type(self).sums is not SeveralLabels.sums:  # of a subclass, which sums something else
            return BoundTask.each(self, averaged, labels, dtype)
        return self.plain(averaged.to(dtype), labels.to(dtype)).mean(1)[None].to(dtype)

    def record(self, averaged: Tensor, labels: Tensor) -> Tensor:
        """The probability of each class, and the geometric mean of those of what the labels say."""
        p = self.probabilities(averaged)
        fit = torch.where(labels > 0, averaged, -averaged)
        return torch.cat([p, nn.functional.logsigmoid(fit).mean(1, keepdim=True).exp()], 1).T
