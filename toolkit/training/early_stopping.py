"""The best epoch so far, early stopping, and a lower learning rate on a plateau."""

from toolkit.config.settings import Settings
from toolkit.runs.progress import Progress

PLATEAU_EPOCHS, PLATEAU_FACTOR = 2, 0.5


def select(settings: Settings, progress: Progress, top1: float, in_last_phase: bool) -> bool:
    """Whether `top1`, in percent at the selection size, is the best so far.

    Updates the counters for patience and plateau in `progress`, in the last phase only.
    """
    best = progress.best_top1 is None or top1 > progress.best_top1
    if best:
        progress.best_top1 = top1
    if not in_last_phase:
        return best
    if progress.reference_top1 is None or top1 > progress.reference_top1 + settings.min_delta:
        progress.reference_top1, progress.stale_epochs, progress.plateau_epochs = top1, 0, 0
        return best
    progress.stale_epochs += 1
    progress.plateau_epochs += 1
    progress.stopped_early = settings.patience is not None and progress.stale_epochs >= settings.patience
    if settings.scheduler == "plateau" and progress.plateau_epochs >= PLATEAU_EPOCHS:
        progress.plateau_factor *= PLATEAU_FACTOR
        progress.plateau_epochs = 0
    return best
