"""Metrics of several labels an image, and the thresholds that suit them. Pure NumPy.

`labels`: N x C of 0 and 1; `probabilities`: N x C; `thresholds`: C, a class is predicted above its own.
"""

import numpy as np

MIDDLE = 0.5  # the threshold of a class that says nothing about its own


def mean_average_precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean of the average precisions of the classes that have images, in percent; 0 if none has."""
    found = [average_precision(labels[:, c], probabilities[:, c]) for c in np.flatnonzero(labels.any(0))]
    return 100 * float(np.mean(found)) if found else 0.0


def average_precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Precision at each recall of one class with images, weighted by the gain of recall; equal ones count at once."""
    right, predicted, _ = _cuts(labels, probabilities)
    recall = right / right[-1]
    return float((np.diff(recall, prepend=0) * right / predicted).sum())


def micro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """F1 of all N x C predictions together, in percent; 0 if nothing is true or predicted."""
    seen = int(labels.sum() + predicted.sum())
    return 100 * 2 * int((labels * predicted).sum()) / seen if seen else 0.0


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1, in percent, of the classes that some image has or is predicted to have; 0 if there is none."""
    seen = labels.sum(0) + predicted.sum(0)
    right = (labels * predicted).sum(0)
    return 100 * float((2 * right[seen > 0] / seen[seen > 0]).mean()) if seen.any() else 0.0


def best_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> list[float]:
    """For each class the threshold of the highest F1, of several the one nearest to 0.5; 0.5 for one without images."""
    return [_best_threshold(labels[:, c], probabilities[:, c]) for c in range(labels.shape[1])]


def _best_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    right, predicted, lowest = _cuts(labels, probabilities)
    thresholds = (lowest + np.append(lowest[1:], 0)) / 2  # in the middle between two probabilities
    usable = (thresholds > 0) & (thresholds < 1) & (thresholds < lowest)  # float64 may have none between two
    if not right[-1] or not usable.any():
        return MIDDLE
    f1 = np.where(usable, 2 * right / (predicted + right[-1]), -1)
    best = np.flatnonzero(f1 == f1.max())
    return float(thresholds[best[np.abs(thresholds[best] - MIDDLE).argmin()]])


def _cuts(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At each distinct probability, from the highest: how many images reach it, how many of these are right, and it."""
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))
    return np.cumsum(labels[order])[last], last + 1, ordered[last]
