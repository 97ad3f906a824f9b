"""Classification: every image has one of C classes."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossSingleLabel, PolyCrossEntropy
from torch import Tensor

from toolkit.config.choices import ClassLoss, ClassWeights
from toolkit.config.tables import MULTI_LABEL, entry_name
from toolkit.models import metrics, weighted_metrics
from toolkit.models.class_weights import weights_of
from toolkit.models.ranking import ratio
from toolkit.strategies.base import BoundTask, Metric, Task
from toolkit.strategies.measures import ImageValues, Weighing
from toolkit.system.errors import InputError

TOP = 5
MOST_SMOOTHING = 0.99


def check_objective(task: Any, losses: Sequence[str]) -> None:
    """Raise InputError unless a task has one of these losses, and values for its other fields that there are."""
    for flag, value, choices in (
        ("--loss", task.loss, losses),
        ("--class-weights", task.class_weights, get_args(ClassWeights)),
    ):
        if value not in choices:
            named = f"--task {entry_name('task', type(task))}"
            raise InputError(f"{flag} {value}: must be one of {', '.join(choices)} with {named}")
    if not task.class_weights_power > 0:
        raise InputError(f"--class-weights-power {task.class_weights_power:g}: must be above 0")
    if not 0 <= task.label_smoothing < 1:
        raise InputError(f"--label-smoothing {task.label_smoothing:g}: must be 0 or more and below 1")


@dataclass(frozen=True)
class Classification(Task):
    """One label per image.

    `loss`: "ce", cross-entropy of softmax probabilities, or "bce", mean binary cross-entropy over the classes, each
    with a probability of its own (arXiv:2110.00476), or timm's losses of softmax probabilities "asl", asymmetric
    (arXiv:2009.14119), and "poly", Poly-1 (arXiv:2204.12511). `label_smoothing`: share of the target spread over all
    classes.
    `class_weights`: "inverse" weights an image by N / (C x images of its class), so that classes count alike;
    "effective" by the effective number of images in their place (arXiv:1901.05555). `class_weights_power`: of the
    weights, whose mean over the training images stays 1.
    """

    loss: ClassLoss = "ce"
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"
    class_weights_power: float = 1.0

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("top1", "top-1"),
        Metric("top5", "top-5"),
        Metric("loss", "loss", percent=False, higher_is_better=False),
        Metric("balanced_accuracy", "balanced accuracy"),
        Metric("macro_f1", "macro F1"),
    )
    extra_metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("worst_class_accuracy", "worst class"),
        Metric("auroc", "AUROC", scores=True),
        Metric("average_precision", "mAP", scores=True),
        Metric("ece", "ECE", percent=False, higher_is_better=False),
        Metric("expected_cost", "expected cost", percent=False, higher_is_better=False, costs=True),
        Metric("bayes_cost", "least expected cost", percent=False, higher_is_better=False, scores=True, costs=True),
    )

    summed: ClassVar[tuple[str, ...]] = ("right", "among_top5", "loss")

    def __post_init__(self) -> None:
        check_objective(self, get_args(ClassLoss))

    def check_labels(self, labels: np.ndarray, classes: int) -> None:
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            several = f" (for --task {MULTI_LABEL})" if np.isin(labels, (0, 1)).all() else ""
            raise InputError(
                f"labels of shape {labels.shape[1:]} and type {labels.dtype}{several}: the task wants one whole number "
                "per image"
            )

    def class_counts(self, labels: np.ndarray, classes: int) -> np.ndarray:
        return np.bincount(labels, minlength=classes)

    def columns(self, classes: Sequence[str]) -> tuple[str, ...]:
        return metrics.COLUMNS

    def measure(
        self, sums: Mapping[str, float], labels: np.ndarray, record: np.ndarray, classes: int
    ) -> dict[str, float]:
        images, predictions = len(labels), metrics.Predictions(labels, record[0].astype(np.int64), record[1])
        return {
            "top1": 100 * sums["right"] / images,
            "top5": 100 * sums["among_top5"] / images,
            "loss": sums["loss"] / images,
            "balanced_accuracy": metrics.balanced_accuracy(predictions, classes),
            "macro_f1": metrics.macro_f1(predictions, classes),
        }

    def weighted(self, names: Sequence[str], images: ImageValues, weighing: Weighing) -> dict[str, np.ndarray]:
        own = type(self).measure is not Classification.measure  # of a subclass, whose definitions count
        names, others = split_names(names, self.metrics) if own else (names, [])
        found = super().weighted(others, images, weighing) if others else {}
        return found | weighted_metrics.of_classes(names, images, weighing)

    def of_each_class(self, images: ImageValues) -> dict[str, np.ndarray]:
        plain = Weighing.plain(len(images.labels))
        there, right, predicted = (counts[:, 0] for counts in weighted_metrics.class_counts(images, plain))
        values = {
            "recall": ratio(right, there),
            "precision": ratio(right, predicted),
            "f1": ratio(2 * right, there + predicted),
        }
        if images.scores is not None:
            found = weighted_metrics.of_each_class(images, plain, ["average_precision"])
            values["average_precision"] = found["average_precision"][:, 0]
        return values

    def check_selection(self, metric: Metric, labels: np.ndarray, classes: Sequence[str]) -> None:
        if metric.name in weighted_metrics.RANKING and len(present := np.unique(labels)) == 1:
            raise InputError(
                f"--select-by {metric.name}: all {len(labels)} validation images are of class "
                f"{classes[present[0]]!r}, and it compares classes: select by {self.metrics[0].name}, or add images of "
                "other classes"
            )

    def answer(self, probabilities: np.ndarray, classes: Sequence[str]) -> str:
        return classes[int(probabilities.argmax())]

    def regularized(self, share: float) -> Task:
        return replace(self, label_smoothing=scaled_smoothing(self.label_smoothing, share))

    def bind(self, class_counts: np.ndarray, device: torch.device) -> BoundTask:
        weights = None
        if self.class_weights != "none":
            weights = torch.tensor(self._weights(class_counts), dtype=torch.float32, device=device)
        kinds = {"ce": CrossEntropy, "bce": BinaryCrossEntropy, "asl": Asymmetric, "poly": Poly}
        kind = kinds[self.loss]
        return kind(len(class_counts), self.label_smoothing, weights)

    def _weights(self, counts: np.ndarray) -> np.ndarray:
        """The weight of an image of each class."""
        if self.class_weights == "inverse" and self.class_weights_power == 1:
            return counts.sum() / (len(counts) * np.maximum(counts, 1))
        share = weights_of(counts, self.class_weights, self.class_weights_power)
        return share * counts.sum() / (share * counts).sum()


def split_names(names: Sequence[str], metrics: Sequence[Metric]) -> tuple[list[str], list[str]]:
    """The names that are none of the metrics, and those that are."""
    known = {metric.name for metric in metrics}
    return [name for name in names if name not in known], [name for name in names if name in known]


def scaled_smoothing(smoothing: float, share: float) -> float:
    """A share of the label smoothing, below 1 also where the share is above 1."""
    return min(share * smoothing, max(smoothing, MOST_SMOOTHING))


class CrossEntropy(BoundTask):
    """Softmax over C classes; `weights`: C, or None."""

    def __init__(self, classes: int, smoothing: float, weights: Tensor | None) -> None:
        self.classes, self.smoothing, self.weights = classes, smoothing, weights

    def targets(self, labels: Tensor) -> Tensor:
        return labels

    def mixable(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self.classes).float()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        # Divided by images, not by weights: micro-batches and processes then add up to the whole batch.
        total = F.cross_entropy(logits, targets, self.weights, reduction="sum", label_smoothing=self.smoothing)
        return total / len(logits)

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits.float(), 1)

    def true_class(self, targets: Tensor) -> Tensor:
        return targets.argmax(1) if targets.ndim == 2 else targets

    def average(self, logits: Sequence[Tensor]) -> Tensor:
        return torch.logsumexp(torch.stack([F.log_softmax(x, 1) for x in logits]), 0) - np.log(len(logits))

    def probabilities(self, averaged: Tensor) -> Tensor:
        return averaged.exp()  # `average` returns logarithms of probabilities

    def confidence(self, probabilities: Tensor) -> Tensor:
        return probabilities.max(1).values

    def sums(self, averaged: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        right = averaged.topk(min(TOP, averaged.shape[1]), 1).indices == labels[:, None]
        loss = self._log_loss(averaged.to(dtype), labels)
        return torch.stack([right[:, 0].sum().to(dtype), right.sum().to(dtype), loss])

    def each(self, averaged: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        if type(self).sums is not CrossEntropy.sums:  # of a subclass, which sums something else
            return super().each(averaged, labels, dtype)
        right = averaged.topk(min(TOP, averaged.shape[1]), 1).indices == labels[:, None]
        losses = self._log_losses(averaged.to(dtype), labels)
        return torch.stack([right[:, 0].to(dtype), right.any(1).to(dtype), losses])

    def _log_loss(self, averaged: Tensor, labels: Tensor) -> Tensor:
        return F.nll_loss(averaged, labels, reduction="sum")

    def _log_losses(self, averaged: Tensor, labels: Tensor) -> Tensor:
        """The same of each of N images."""
        return F.nll_loss(averaged, labels, reduction="none")

    def record(self, averaged: Tensor, labels: Tensor) -> Tensor:
        best, predicted = averaged.topk(1, 1)
        p_label = averaged.gather(1, labels[:, None])
        return torch.cat([predicted.to(best.dtype), self.probabilities(best), self.probabilities(p_label)], 1).T


class _OfImages(CrossEntropy):
    """A loss of softmax probabilities that has a value for each image."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        whole = targets if targets.ndim == 2 else self.mixable(targets)
        losses = self.of_images(logits, whole, self.smoothing)
        return losses.mean() if self.weights is None else (losses * (whole @ self.weights)).mean()

    @abstractmethod
    def of_images(self, logits: Tensor, whole: Tensor, smoothing: float) -> Tensor:
        """N losses of N x C targets that are shares of classes."""

    def _log_loss(self, averaged: Tensor, labels: Tensor) -> Tensor:
        return self.of_images(averaged, self.mixable(labels), 0.0).sum().to(averaged.dtype)

    def _log_losses(self, averaged: Tensor, labels: Tensor) -> Tensor:
        return self.of_images(averaged, self.mixable(labels), 0.0).to(averaged.dtype)


class Asymmetric(_OfImages):
    """timm's asymmetric loss, which takes labels: of a mixed image the mean over its two, by their shares."""

    def of_images(self, logits: Tensor, whole: Tensor, smoothing: float) -> Tensor:
        loss, (shares, labels) = AsymmetricLossSingleLabel(eps=smoothing, reduction="none"), whole.topk(2, 1)
        return sum(shares[:, i] * loss(logits.float(), labels[:, i]) for i in (0, 1))


class Poly(_OfImages):
    """timm's Poly-1 loss."""

    def of_images(self, logits: Tensor, whole: Tensor, smoothing: float) -> Tensor:
        return PolyCrossEntropy(reduction="none")(logits, whole * (1 - smoothing) + smoothing / self.classes)


class BinaryCrossEntropy(CrossEntropy):
    """A probability of its own for each of C classes."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        whole = targets if targets.ndim == 2 else self.mixable(targets)
        smooth = whole * (1 - self.smoothing) + self.smoothing / self.classes
        losses = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(1)
        return losses.mean() if self.weights is None else (losses * (whole @ self.weights)).mean()

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """N x C x 2: of each class, that the image is one and that it is not."""
        return torch.stack([F.logsigmoid(logits.float()), F.logsigmoid(-logits.float())], -1)

    def true_class(self, targets: Tensor) -> Tensor:
        whole = targets if targets.ndim == 2 else self.mixable(targets)
        return (whole < 0.5).long()  # 0: that the image is one

    def average(self, logits: Sequence[Tensor]) -> Tensor:
        if len(logits) == 1:
            return logits[0]
        stacked = torch.stack([*logits])  # in logarithms, because a sigmoid of 20 is 1 in float32
        return torch.logsumexp(F.logsigmoid(stacked), 0) - torch.logsumexp(F.logsigmoid(-stacked), 0)

    def probabilities(self, averaged: Tensor) -> Tensor:
        return averaged.sigmoid()

    def _log_loss(self, averaged: Tensor, labels: Tensor) -> Tensor:
        return self._log_losses(averaged, labels).sum()

    def _log_losses(self, averaged: Tensor, labels: Tensor) -> Tensor:
        whole = F.one_hot(labels, self.classes).to(averaged.dtype)
        return F.binary_cross_entropy_with_logits(averaged, whole, reduction="none").mean(1)
