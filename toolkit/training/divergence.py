"""Non-finite loss or gradient: report step and samples, then stop or roll back to the last checkpoint."""

import contextlib
import logging
from pathlib import Path

from toolkit.models.collectives import from_main
from toolkit.system.errors import InputError, NonFiniteError
from toolkit.training.resume import restore, restore_best
from toolkit.training.run import Run

log = logging.getLogger(__name__)

MOST_ROLLBACKS = 3


def check_finite(run: Run, step: int | None) -> None:
    """Raise NonFiniteError, naming the samples of the global batch, unless `step` is None.

    `step`: the first optimizer step that was not finite on some rank.
    """
    if step is None:
        return
    epoch = next(epoch for epoch in run.epochs() if epoch.start <= step < epoch.end)
    spec = next(run.data.sampler.batch_specs(epoch, step))
    raise NonFiniteError(
        f"the loss or its gradient is not finite at step {step} (epoch {epoch.number + 1}), samples "
        f"{' '.join(map(str, spec.ids.tolist()))}; nothing was saved since; look at those images, or lower "
        "--learning-rate, or set --gradient-clip"
    )


def roll_back(run: Run, error: NonFiniteError) -> None:
    """Restore the last checkpoint and continue with the images in another order.

    Raises NonFiniteError if `on_divergence` is "stop", there is no checkpoint, or the rollbacks are used up.
    """
    progress, records, rollbacks = run.state.progress, run.records, run.state.progress.rollbacks + 1
    records.tracking.alert("Diverged", str(error), progress.step)
    records.saver.join(progress.step)
    start = _verified(run)
    if run.settings.on_divergence == "stop":
        raise error
    if start is None:
        raise NonFiniteError(f"{error} (no checkpoint to go back to: --save-every-steps saves within an epoch)")
    if rollbacks > MOST_ROLLBACKS:
        raise NonFiniteError(f"{error} (after {MOST_ROLLBACKS} rollbacks)")
    restore(start, run.state, records.fingerprint, run.plan)
    progress.rollbacks = rollbacks
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        restore_best(records.directory, progress)  # a skipped damaged checkpoint may hold the best model
        records.directory.truncate_to(progress)
    run.accelerator.wait_for_everyone()
    records.tracking.rewind(progress.step)
    log.warning("%s", error)
    log.warning("rollback %d of %d: continuing from %s, images in another order", rollbacks, MOST_ROLLBACKS, start)


def _verified(run: Run) -> Path | None:
    """The newest intact checkpoint, found by rank 0 for all ranks; None if there is none."""
    found: Path | None = None
    if run.accelerator.is_main_process:
        with contextlib.suppress(InputError):  # all are damaged; already logged
            found = run.records.directory.store.recover()
    return from_main(found)
