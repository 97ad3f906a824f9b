"""The best epoch so far, early stopping, and a lower learning rate on a plateau."""

import math
from collections.abc import Mapping

from toolkit.config.settings import Settings
from toolkit.runs.progress import Progress
from toolkit.strategies.base import Metric

PLATEAU_EPOCHS, PLATEAU_FACTOR = 2, 0.5


def select(settings: Settings, progress: Progress, metric: Metric, value: float, counts: bool) -> bool:
    """Whether `value` of the metric at the selection size is the best so far.

    Updates the counters for patience and plateau in `progress` if the epoch `counts` for them.
    """
    best = _better(metric, value, progress.best_score, 0)
    if best:
        progress.best_score = value
    if not counts:
        return best
    if _better(metric, value, progress.reference_score, settings.min_delta):
        progress.reference_score, progress.stale_epochs, progress.plateau_epochs = value, 0, 0
        return best
    progress.stale_epochs += 1
    progress.plateau_epochs += 1
    progress.stopped_early = settings.patience is not None and progress.stale_epochs >= settings.patience
    if settings.scheduler == "plateau" and progress.plateau_epochs >= PLATEAU_EPOCHS:
        progress.plateau_factor *= PLATEAU_FACTOR
        progress.plateau_epochs = 0
    return best


def better(metric: Metric, values: Mapping[str, float]) -> str:
    """The name of the best of `values`, the first of equal ones."""
    best, *others = values
    for name in others:
        best = name if _better(metric, values[name], values[best], 0) else best
    return best


def _better(metric: Metric, value: float, reference: float | None, least: float) -> bool:
    """Whether `value` exceeds the reference by more than `least`; any number is better than none or NaN."""
    if reference is None or math.isnan(reference):
        return reference is None or not math.isnan(value)
    return metric.gain(value, reference) > least
