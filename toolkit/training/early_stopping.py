"""The best epoch so far, early stopping, and a lower learning rate on a plateau."""

from toolkit.config.settings import Settings
from toolkit.runs.progress import Progress
from toolkit.strategies.base import Metric

PLATEAU_EPOCHS, PLATEAU_FACTOR = 2, 0.5


def select(settings: Settings, progress: Progress, metric: Metric, value: float, counts: bool) -> bool:
    """Whether `value` of the metric at the selection size is the best so far.

    Updates the counters for patience and plateau in `progress` if the epoch `counts` for them.
    """
    best = progress.best_score is None or metric.gain(value, progress.best_score) > 0
    if best:
        progress.best_score = value
    if not counts:
        return best
    if progress.reference_score is None or metric.gain(value, progress.reference_score) > settings.min_delta:
        progress.reference_score, progress.stale_epochs, progress.plateau_epochs = value, 0, 0
        return best
    progress.stale_epochs += 1
    progress.plateau_epochs += 1
    progress.stopped_early = settings.patience is not None and progress.stale_epochs >= settings.patience
    if settings.scheduler == "plateau" and progress.plateau_epochs >= PLATEAU_EPOCHS:
        progress.plateau_factor *= PLATEAU_FACTOR
        progress.plateau_epochs = 0
    return best
