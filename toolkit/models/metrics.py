"""Metrics of predictions on labeled images: accuracy, confusion, calibration, hardest images. Pure NumPy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

UNREADABLE = -1  # in the first column of an image that could not be read
COLUMNS = ("predicted", "confidence", "p_label")  # of a task whose images have one class each


@dataclass(frozen=True)
class PredictionTable:
    """What is kept of every image, in the order of the index; one row per eval spec, such as `64px`.

    `labels`: N, or N x C. `columns`: R names of a task's values. `values`: S x R x N; with COLUMNS these are the
    predicted class, its probability, and the probability of the true label. The first is UNREADABLE without an image.
    """

    specs: tuple[str, ...]
    labels: np.ndarray
    columns: tuple[str, ...]
    values: np.ndarray

    @classmethod
    def of_classes(
        cls,
        specs: tuple[str, ...],
        labels: np.ndarray,
        predicted: np.ndarray,
        confidence: np.ndarray,
        p_label: np.ndarray,
    ) -> "PredictionTable":
        """The table with COLUMNS, each S x N."""
        return cls(specs, labels, COLUMNS, np.stack([predicted, confidence, p_label], axis=1))

    @property
    def has_classes(self) -> bool:
        """Whether each image has one class, so that there are accuracies, confusions and confidences."""
        return self.columns == COLUMNS

    @property
    def readable(self) -> np.ndarray:
        """N booleans: whether the image could be read."""
        return (self.values[:, 0] != UNREADABLE).all(axis=0)

    @property
    def predicted(self) -> np.ndarray:
        """S x N classes."""
        return self.values[:, 0].astype(np.int64)

    @property
    def confidence(self) -> np.ndarray:
        return self.values[:, 1]

    @property
    def p_label(self) -> np.ndarray:
        return self.values[:, 2]

    def of(self, spec: str) -> "Predictions":
        """Predictions of one eval spec for the images that could be read."""
        row, readable = self.specs.index(spec), self.readable
        return Predictions(self.labels[readable], self.predicted[row, readable], self.confidence[row, readable])

    def hardest(self, count: int) -> np.ndarray:
        """Positions in the index of the images that were predicted worst: by the last column, averaged over specs."""
        order = np.argsort(self.values[:, -1].mean(axis=0), kind="stable")
        return order[self.readable[order]][:count]


class Predictions(NamedTuple):
    """N true labels, N predicted classes, and the confidence of each prediction in [0, 1]."""

    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray


class Bin(NamedTuple):
    """Predictions of similar confidence: bounds, number of images, mean confidence and share that is correct."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


class Confused(NamedTuple):
    """How many images of class `label` were predicted as class `predicted`."""

    label: int
    predicted: int
    images: int


def accuracy(predictions: Predictions) -> float:
    """Percent correct."""
    return 100 * float((predictions.predicted == predictions.labels).mean())


def confusion(predictions: Predictions, classes: int) -> np.ndarray:
    """C x C counts: a row per true class, a column per predicted class."""
    pairs = predictions.labels * classes + predictions.predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_accuracy(predictions: Predictions, classes: int) -> np.ndarray:
    """Percent correct of each class's images; NaN for a class without images."""
    correct = np.bincount(predictions.labels[predictions.predicted == predictions.labels], minlength=classes)
    with np.errstate(invalid="ignore"):
        return 100 * correct / np.bincount(predictions.labels, minlength=classes)


def balanced_accuracy(predictions: Predictions, classes: int) -> float:
    """Mean over the classes with images of the percentage that is correct."""
    return float(np.nanmean(class_accuracy(predictions, classes)))


def macro_f1(predictions: Predictions, classes: int) -> float:
    """Mean F1 in percent over the classes that are labels or predictions of some image."""
    correct = np.bincount(predictions.labels[predictions.predicted == predictions.labels], minlength=classes)
    seen = np.bincount(predictions.labels, minlength=classes) + np.bincount(predictions.predicted, minlength=classes)
    return float(100 * (2 * correct[seen > 0] / seen[seen > 0]).mean())


def class_metrics(predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """Balanced accuracy, macro F1, worst class and calibration error, by the names they have in summary.json.

    The worst class is the one with images of which the smallest share is correct, the first of several.
    """
    of_class = class_accuracy(predictions, len(classes))
    worst = int(np.nanargmin(of_class))
    return {
        "balanced_accuracy": balanced_accuracy(predictions, len(classes)),
        "macro_f1": macro_f1(predictions, len(classes)),
        "worst_class": classes[worst],
        "worst_class_accuracy": float(of_class[worst]),
        "ece": calibration_error(predictions),
    }


def confused(predictions: Predictions, count: int) -> list[Confused]:
    """The most frequently confused pairs of classes, at most `count`, most images first."""
    wrong = predictions.predicted != predictions.labels
    pairs, images = np.unique(
        np.stack([predictions.labels[wrong], predictions.predicted[wrong]]), axis=1, return_counts=True
    )
    order = np.argsort(-images, kind="stable")[:count]
    return [Confused(int(pairs[0, i]), int(pairs[1, i]), int(images[i])) for i in order]


def most_confused(predictions: Predictions, classes: int, count: int) -> np.ndarray:
    """The classes in most errors, as label or prediction; at most `count`, ascending."""
    wrong = predictions.predicted != predictions.labels
    trouble = np.bincount(predictions.labels[wrong], minlength=classes)
    trouble += np.bincount(predictions.predicted[wrong], minlength=classes)
    return np.sort(np.argsort(-trouble, kind="stable")[:count])


def reliability(predictions: Predictions, bins: int = 15) -> list[Bin]:
    """The non-empty bins of `bins` of equal width over the confidence (arXiv 1706.04599, eq. 2)."""
    bin_of = np.clip(np.ceil(predictions.confidence * bins).astype(int) - 1, 0, bins - 1)
    correct = predictions.predicted == predictions.labels
    return [
        Bin(
            low=b / bins,
            high=(b + 1) / bins,
            images=int(inside.sum()),
            confidence=float(predictions.confidence[inside].mean()),
            accuracy=float(correct[inside].mean()),
        )
        for b in range(bins)
        if (inside := bin_of == b).any()
    ]


def calibration_error(predictions: Predictions, bins: int = 15) -> float:
    """Expected calibration error in [0, 1] (arXiv 1706.04599, eq. 3): 0 if confidence equals accuracy."""
    found = reliability(predictions, bins)
    return sum(b.images * abs(b.accuracy - b.confidence) for b in found) / max(1, len(predictions.labels))
