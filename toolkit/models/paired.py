"""Differences between two models' metrics on the same images, with 95% intervals. Pure NumPy."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from toolkit.models.intervals import BOUNDS, RESAMPLES, resample
from toolkit.models.metrics import Predictions
from toolkit.strategies.base import Metric, Task
from toolkit.strategies.measures import ImageValues, Weighing

Z = 1.96  # standard normal quantile of a 95% interval
MARGIN = 1.0  # points: a loss below this still counts as "not worse"

Verdict = Literal["better", "not worse", "worse", "undecided"]


@dataclass(frozen=True)
class Difference:
    """A metric of one model minus that of another; `low` to `high` is the 95% interval.

    In points of a percentage, or not `percent`, in the metric's own unit.
    """

    value: float
    low: float
    high: float
    percent: bool = True
    higher_is_better: bool = True

    @property
    def verdict(self) -> Verdict:
        """better: the interval is above 0; not worse: above -1 point; worse: below 0; else undecided.

        The other way round where lower is better; without a percentage nothing is called not worse.
        """
        low, high = (self.low, self.high) if self.higher_is_better else (-self.high, -self.low)
        if low > 0:
            return "better"
        if self.percent and low > -MARGIN:
            return "not worse"
        return "worse" if high < 0 else "undecided"

    def __str__(self) -> str:
        digits = 2 if self.percent else 4
        return f"{self.value:+.{digits}f} ({self.low:+.{digits}f} to {self.high:+.{digits}f})"


class PairedValues(NamedTuple):
    """A metric of two models, and the second one's minus the first one's."""

    first: float
    second: float
    difference: Difference


def accuracy_difference(images: int, only_first: int, only_second: int) -> Difference:
    """Accuracy of the second model minus that of the first, from how many images only one of them has right.

    The adjusted Wald interval for paired proportions of Bonett and Price, "Adjusted Wald Confidence Interval for a
    Difference of Binomial Proportions Based on Paired Data", J. Educ. Behav. Stat. 37 (2012): one image is added to
    either count. It is not centered on `value`, and is wide enough for few images and for models that agree on all.
    """
    first, second = (only_first + 1) / (images + 2), (only_second + 1) / (images + 2)
    center, half = second - first, Z * math.sqrt((first + second - (second - first) ** 2) / (images + 2))
    low, high = max(-1.0, center - half), min(1.0, center + half)
    return Difference(100 * (only_second - only_first) / images, 100 * low, 100 * high)


def bootstrap_differences(
    metrics: Mapping[str, Callable[[Predictions], float]], first: Predictions, second: Predictions, seed: int = 0
) -> dict[str, Difference]:
    """Each metric of the second model minus that of the first, with percentile intervals of a paired bootstrap.

    Images are drawn with replacement, the same for both models (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13). The same seed gives the same interval.
    """
    rng, images = np.random.default_rng(seed), len(first.labels)
    found: dict[str, list[float]] = {name: [] for name in metrics}
    for _ in range(RESAMPLES):
        drawn = rng.integers(images, size=images)
        one, other = (Predictions(*(column[drawn] for column in predictions)) for predictions in (first, second))
        for name, metric in metrics.items():
            found[name].append(metric(other) - metric(one))
    bounds = {name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in found.items()}
    return {name: Difference(metric(second) - metric(first), *bounds[name]) for name, metric in metrics.items()}


def metric_difference(metric: Metric, task: Task, first: ImageValues, second: ImageValues) -> PairedValues:
    """The metric of two models on the same images, and its difference, with the interval of the same bootstrap."""
    pair = first, second
    values = [task.weighted([metric.name], images, Weighing.plain(len(images.labels)))[metric.name] for images in pair]
    samples = [resample(task, [metric.name], images, RESAMPLES)[metric.name] for images in pair]
    found = samples[1] - samples[0]
    known = found[np.isfinite(found)]
    low, high = np.percentile(known, BOUNDS).tolist() if len(known) else (math.nan, math.nan)
    one, other = (float(value[0]) for value in values)
    return PairedValues(one, other, Difference(other - one, low, high, metric.percent, metric.higher_is_better))
