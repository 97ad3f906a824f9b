"""95% intervals of metrics by the bootstrap: images are drawn with replacement, as many as there are."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from toolkit.strategies.base import Metric, Task
from toolkit.strategies.measures import ImageValues, Weighing

RESAMPLES = 1000  # default of --bootstrap
BOUNDS = (2.5, 97.5)  # percent
SHARES = ("top1", "top5")  # metrics that are a share of the images
SAME = 1e-6  # relative difference of samples that is rounding
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

    From the 2.5th to the 97.5th percentile of the samples. The worst of several classes is worse in samples, and a
    calibration error is larger, as they are in the images themselves: where the mean of the samples is off by a quarter
    of their deviation or more (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 10: a smaller bias
    can be ignored), the interval is moved by twice that bias, and widened to hold the value. Where no sample differs it
    says nothing: a share of 0 or all of the images then has the exact interval (Clopper and Pearson, Biometrika 1934),
    another metric has none.
    """
    found = resample(task, [metric.name for metric in metrics if metric.name in values], images, resamples)
    by_name = {metric.name: metric for metric in metrics}
    made = {name: _interval(by_name[name], values[name], samples) for name, samples in found.items()}
    made |= {name: _of_share(by_name[name], values[name], len(images.labels)) for name in found if made[name] is None}
    return {name: interval for name, interval in made.items() if interval is not None}


def _interval(metric: Metric, value: float, samples: np.ndarray) -> Interval | None:
    known = samples[np.isfinite(samples)]
    if not math.isfinite(value) or len(known) < LEAST_DEFINED * len(samples) or np.ptp(known) <= SAME * abs(value):
        return None
    bias = known.mean() - value
    moved = known - 2 * bias if abs(bias) >= BIAS * known.std() else known
    low, high = np.percentile(moved, BOUNDS).tolist()
    least = 0.0 if metric.percent or known.min() >= 0 else -math.inf
    return Interval(min(value, max(least, low)), max(value, min(100.0 if metric.percent else math.inf, high)))


def _of_share(metric: Metric, value: float, images: int) -> Interval | None:
    """The exact interval of a share of the images that is 0 or 100%; None for another metric."""
    if metric.name not in SHARES or not metric.percent or value not in (0, 100):
        return None
    reach = 100 * (1 - (BOUNDS[0] / 100) ** (1 / images))
    return Interval(0, reach) if value == 0 else Interval(100 - reach, 100)
