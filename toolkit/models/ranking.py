"""How well scores put the images of a class before all others: AUROC and average precision, for weighted images too.

Both are exact, also where scores are equal: a positive and a negative of one score count half to AUROC, and precision
is taken where all images of a score are in.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from toolkit.strategies.measures import Weighing, run_totals


class Levels(NamedTuple):
    """Weights at each of K different scores of the positives, ascending, in b weighings: K x b.

    `hits`: of positives; `least`: of all images with that score or more; `above`: of all with more. `total`: of all, b.
    """

    hits: np.ndarray
    least: np.ndarray
    above: np.ndarray
    total: np.ndarray


Measure = Callable[[Levels], np.ndarray]


def auroc(levels: Levels) -> np.ndarray:
    """The share of pairs of a positive and a negative whose positive has the higher score; NaN without such pairs."""
    hits, positives = levels.hits, levels.hits.sum(0)
    negatives = levels.total - positives
    at_least = _from_the_top(hits)  # positives
    ties = (levels.least - levels.above) - hits
    below = negatives - (levels.least - at_least)
    return ratio((hits * (below + ties / 2)).sum(0), positives * negatives)


def average_precision(levels: Levels) -> np.ndarray:
    """Precision at each recall, weighted by the gain of recall; NaN without positives."""
    precision = ratio(_from_the_top(levels.hits), levels.least)
    return ratio((levels.hits * np.nan_to_num(precision)).sum(0), levels.hits.sum(0))


def of_each(
    positives: Sequence[np.ndarray], scores: np.ndarray, weighing: Weighing, measures: Mapping[str, Measure]
) -> dict[str, np.ndarray]:
    """C x B values of each measure; NaN for a class that has none.

    `positives`: positions of each class's images; `scores`: C x N.
    """
    found = [measured(mine, row, weighing, measures) for mine, row in zip(positives, scores, strict=True)]
    return {name: np.stack([values[name] for values in found]) for name in measures}


def mean_of_classes(values: np.ndarray) -> np.ndarray:
    """B: the mean of C x B values over the classes that have one; NaN if none has."""
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0).sum(0), known.sum(0))


def lowest_of_classes(values: np.ndarray) -> np.ndarray:
    """B: the lowest of C x B values, of those that there are; NaN if there is none."""
    lowest = np.where(np.isfinite(values), values, np.inf).min(0)
    return np.where(np.isfinite(lowest), lowest, np.nan)


def measured(
    positives: np.ndarray,
    scores: np.ndarray,
    weighing: Weighing,
    measures: Mapping[str, Measure],
    image_of: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """B values of each measure of one ranking; `image_of`: the image of each score, where an image has several."""
    different, level_of = np.unique(scores[positives], return_inverse=True)
    if weighing.once:
        ordered, hits = np.sort(scores), np.bincount(level_of, minlength=len(different))
        least, above = (len(scores) - np.searchsorted(ordered, different, side) for side in ("left", "right"))
        parts = [Levels(hits[:, None], least[:, None], above[:, None], np.array([len(scores)]))]
    else:
        parts = _weighted(positives, scores, weighing, different, level_of, image_of)
    return {name: np.concatenate([measure(part) for part in parts]) for name, measure in measures.items()}


def _weighted(
    positives: np.ndarray,
    scores: np.ndarray,
    weighing: Weighing,
    different: np.ndarray,
    level_of: np.ndarray,
    image_of: np.ndarray | None,
) -> list[Levels]:
    """The levels of each block of weights."""
    order = np.argsort(scores)
    ordered, several = scores[order], 1 if image_of is None else len(scores) // weighing.images
    bounds = np.stack([np.searchsorted(ordered, different, side) for side in ("left", "right")], 1).ravel()
    starts = np.append(bounds, len(scores))  # images below all positives need no sum: the total is known
    own = positives[np.argsort(level_of, kind="stable")]
    own_starts = np.searchsorted(np.sort(level_of), np.arange(len(different) + 1))
    if image_of is not None:
        order, own = image_of[order], image_of[own]
    parts = []
    for block, total in zip(weighing.blocks, weighing.sums, strict=True):
        reached = _from_the_top(run_totals(block, order, starts))
        parts.append(Levels(run_totals(block, own, own_starts), reached[::2], reached[1::2], several * total))
    return parts


def _from_the_top(values: np.ndarray) -> np.ndarray:
    """Sums of each row and all below it."""
    return values[::-1].cumsum(0)[::-1]


def ratio(value: np.ndarray, by: np.ndarray) -> np.ndarray:
    """NaN where `by` is 0."""
    return np.divide(value, by, out=np.full(np.shape(value), np.nan), where=by > 0)
