"""Metrics of weighted images, one class or several labels an image: of all images alike, or of bootstrap samples.

Each function takes the values of N images and B weighings, and returns B values by name; NaN where one is undefined.
"""

from collections.abc import Callable, Collection

import numpy as np

from toolkit.models import ranking
from toolkit.models.ranking import lowest_of_classes, mean_of_classes
from toolkit.strategies.measures import ImageValues, Weighing

BINS = 15  # of the calibration error
AT_A_TIME = 8192  # images
RANKING = {"auroc": ranking.auroc, "average_precision": ranking.average_precision}


def of_classes(names: Collection[str], images: ImageValues, weighing: Weighing) -> dict[str, np.ndarray]:
    """For one class an image; `images.record` has the rows of `metrics.COLUMNS`, `images.summed` right, top 5, loss."""
    found: dict[str, np.ndarray] = {}
    for measured in (_means, _of_counts, _calibration_error, _of_ranking):
        found |= measured(names, images, weighing)
    return found


def of_labels(
    names: Collection[str], images: ImageValues, predicted: np.ndarray, weighing: Weighing
) -> dict[str, np.ndarray]:
    """For several labels an image; `predicted`: N x C; `images.scores` is needed for all but loss and F1."""
    found: dict[str, np.ndarray] = {}
    if "loss" in names and images.summed is not None:
        found["loss"] = weighing.totals(images.summed[-1:])[0] / np.concatenate(weighing.sums)
    if {*names} & {"micro_f1", "macro_f1"}:
        found |= _f1_of_labels(images.labels, predicted, weighing)
    if images.scores is None:
        return found
    if {*names} & {"map", "worst_class_ap", "auroc"}:
        each = of_each_label(images, weighing)
        precisions = each["average_precision"]
        found |= {"map": 100 * mean_of_classes(precisions), "worst_class_ap": 100 * lowest_of_classes(precisions)}
        found["auroc"] = 100 * mean_of_classes(each["auroc"])
    if "micro_auroc" in names:
        of_all = np.flatnonzero(images.labels.T)  # positions in the C x N scores
        image_of = np.tile(np.arange(len(images.labels)), images.classes)
        only = {"auroc": ranking.auroc}
        found["micro_auroc"] = 100 * ranking.measured(of_all, images.scores.ravel(), weighing, only, image_of)["auroc"]
    return found


def of_each_label(images: ImageValues, weighing: Weighing) -> dict[str, np.ndarray]:
    """C x B AUROC and average precision of each class, several labels an image."""
    positives = [np.flatnonzero(row) for row in images.labels.T]
    assert images.scores is not None
    return ranking.of_each(positives, images.scores, weighing, RANKING)


def of_each_class(
    images: ImageValues, weighing: Weighing, measures: Collection[str] = tuple(RANKING)
) -> dict[str, np.ndarray]:
    """C x B of AUROC and average precision of each class against the rest, one class an image."""
    order = np.argsort(images.labels, kind="stable")
    bounds = np.searchsorted(images.labels[order], np.arange(1, images.classes))
    assert images.scores is not None
    chosen: dict[str, Callable[..., np.ndarray]] = {name: RANKING[name] for name in measures}
    return ranking.of_each(np.split(order, bounds), images.scores, weighing, chosen)


def class_counts(images: ImageValues, weighing: Weighing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """C x B weights of the images of each class, of those that are right, and of those predicted as the class."""
    predicted = images.record[0].astype(np.int64)
    return (
        weighing.group_totals(images.labels, images.classes),
        weighing.group_totals(images.labels, images.classes, predicted == images.labels),
        weighing.group_totals(predicted, images.classes),
    )


def least_costly(images: ImageValues) -> np.ndarray:
    """N classes: the decision of each image that has the lowest expected cost under its probabilities."""
    assert images.scores is not None
    assert images.costs is not None
    starts = range(0, images.scores.shape[1], AT_A_TIME)
    parts = [images.costs.T @ images.scores[:, i : i + AT_A_TIME].astype(np.float64) for i in starts]
    return np.concatenate([part.argmin(0) for part in parts])


def _means(names: Collection[str], images: ImageValues, weighing: Weighing) -> dict[str, np.ndarray]:
    """Means of one value an image."""
    labels, predicted = images.labels, images.record[0].astype(np.int64)
    rows: dict[str, np.ndarray] = {"top1": 100.0 * (predicted == labels)}
    if images.summed is not None:
        rows |= {"top5": 100 * images.summed[1], "loss": images.summed[2]}
    if images.costs is not None:
        rows["expected_cost"] = images.costs[labels, predicted]
        if images.scores is not None and "bayes_cost" in names:
            rows["bayes_cost"] = images.costs[labels, least_costly(images)]
    rows = {name: row for name, row in rows.items() if name in names}
    if not rows:
        return {}
    means = weighing.totals(np.stack([*rows.values()])) / np.concatenate(weighing.sums)
    return dict(zip(rows, means, strict=True))


def _of_counts(names: Collection[str], images: ImageValues, weighing: Weighing) -> dict[str, np.ndarray]:
    if not {*names} & {"balanced_accuracy", "macro_f1", "worst_class_accuracy"}:
        return {}
    there, right, predicted = class_counts(images, weighing)
    recall, f1 = ranking.ratio(right, there), ranking.ratio(2 * right, there + predicted)
    return {
        "balanced_accuracy": 100 * mean_of_classes(recall),
        "macro_f1": 100 * mean_of_classes(f1),
        "worst_class_accuracy": 100 * lowest_of_classes(recall),
    }


def _calibration_error(names: Collection[str], images: ImageValues, weighing: Weighing) -> dict[str, np.ndarray]:
    """Expected calibration error, as `metrics.calibration_error`."""
    if "ece" not in names:
        return {}
    confidence, right = images.record[1], images.record[0].astype(np.int64) == images.labels
    bin_of = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.zeros((BINS, len(right)))
    gaps[bin_of, np.arange(len(right))] = right - confidence
    return {"ece": np.abs(weighing.totals(gaps)).sum(0) / np.concatenate(weighing.sums)}


def _of_ranking(names: Collection[str], images: ImageValues, weighing: Weighing) -> dict[str, np.ndarray]:
    wanted = [name for name in RANKING if name in names]
    if not wanted or images.scores is None:
        return {}
    each = of_each_class(images, weighing, wanted)
    return {name: 100 * mean_of_classes(values) for name, values in each.items()}


def label_counts(labels: np.ndarray, weighing: Weighing) -> np.ndarray:
    """C x B weights of the images that have each label; `labels`: N x C of 0 and 1."""
    classes, rows = np.nonzero(labels.T)
    return weighing.run_totals(rows, np.searchsorted(classes, np.arange(labels.shape[1] + 1)))


def _f1_of_labels(labels: np.ndarray, predicted: np.ndarray, weighing: Weighing) -> dict[str, np.ndarray]:
    right, true, found = (label_counts(rows, weighing) for rows in (labels * predicted, labels, predicted))
    seen = true + found
    return {
        "micro_f1": 100 * np.nan_to_num(ranking.ratio(2 * right.sum(0), seen.sum(0))),
        "macro_f1": 100 * np.nan_to_num(mean_of_classes(ranking.ratio(2 * right, seen))),
    }
