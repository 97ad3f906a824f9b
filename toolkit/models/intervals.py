"""95% intervals of metrics by the bootstrap: images are drawn with replacement, as many as there are."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from toolkit.strategies.base import Metric, Task
from toolkit.strategies.measures import ImageValues, Weighing

RESAMPLES = 1000  # default of --bootstrap
BOUNDS = (2.5, 97.5)  # percent
AT_ONCE = 2**26  # weights in memory, 4 bytes each
BIAS = 0.25  # of the samples' standard deviation, from which on it is taken off
LEAST_DEFINED = 0.5  # share of the samples in which a metric must be defined


class Interval(NamedTuple):
    low: float
    high: float


def resample(
    task: Task, names: Sequence[str], images: ImageValues, resamples: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Values of the named metrics in each bootstrap sample; NaN where one is undefined.

    The n-th sample of N images is the same for all metrics and models, so differences of two models are paired.
    """
    count = len(images.labels)
    step = max(1, AT_ONCE // count)
    parts = [
        task.weighted(names, images, Weighing.bootstrap(count, range(first, min(resamples, first + step)), seed))
        for first in range(0, resamples, step)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in names if name in parts[0]}


def intervals(
    task: Task, metrics: Sequence[Metric], values: Mapping[str, float], images: ImageValues, resamples: int
) -> dict[str, Interval]:
    """The interval of each metric that has one; `values`: of all images.

    From the 2.5th to the 97.5th percentile of the samples. Where their mean is off by a quarter of their deviation or
    more (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 10: a smaller bias can be ignored), they
    are moved onto the value: the worst of several classes is worse in samples, and a calibration error is larger.
    """
    found = resample(task, [metric.name for metric in metrics if metric.name in values], images, resamples)
    by_name = {metric.name: metric for metric in metrics}
    made = {name: _interval(by_name[name], values[name], samples) for name, samples in found.items()}
    return {name: interval for name, interval in made.items() if interval is not None}


def _interval(metric: Metric, value: float, samples: np.ndarray) -> Interval | None:
    known = samples[np.isfinite(samples)]
    if not math.isfinite(value) or len(known) < LEAST_DEFINED * len(samples):
        return None
    bias = known.mean() - value
    moved = known - bias if abs(bias) >= BIAS * known.std() else known
    low, high = np.percentile(moved, BOUNDS).tolist()
    least = 0.0 if metric.percent or known.min() >= 0 else -math.inf
    return Interval(min(value, max(least, low)), max(value, min(100.0 if metric.percent else math.inf, high)))
