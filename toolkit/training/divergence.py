"""A loss or gradient that is not finite: named, and answered by stopping or by going back to the last checkpoint."""

import contextlib
import logging
from pathlib import Path

from accelerate.utils import broadcast_object_list

from toolkit.system.errors import InputError, NonFiniteError
from toolkit.training.resume import restore, restore_best
from toolkit.training.run import Run

log = logging.getLogger(__name__)

MOST_ROLLBACKS = 3


def check_finite(run: Run, step: int | None) -> None:
    """Raises NonFiniteError, naming the samples of the global batch, where `step` was not finite on some process."""
    if step is None:
        return
    epoch = next(epoch for epoch in run.epochs() if epoch.start <= step < epoch.end)
    spec = next(run.data.sampler.batch_specs(epoch, step))
    raise NonFiniteError(
        f"the loss or its gradient is not finite at step {step} (epoch {epoch.number}), samples "
        f"{' '.join(map(str, spec.ids.tolist()))}; nothing was saved since; look at those images, or lower "
        "--learning-rate, or set --gradient-clip"
    )


def roll_back(run: Run, error: NonFiniteError) -> None:
    """Go back to the last checkpoint and continue with the images in another order; raises `error` where that ends."""
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
    restore(start, run.state, records.fingerprint)
    progress.rollbacks = rollbacks
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        restore_best(records.directory, progress)  # it may have passed a damaged checkpoint, and with it the best model
        records.directory.truncate_to(progress)
    run.accelerator.wait_for_everyone()
    records.tracking.rewind(progress.step)
    log.warning("%s", error)
    log.warning("rollback %d of %d: going on from %s, images in another order", rollbacks, MOST_ROLLBACKS, start)


def _verified(run: Run) -> Path | None:
    """The checkpoint to go back to, as rank 0 finds it; None where there is none that is whole."""
    found: list[Path | None] = [None]
    if run.accelerator.is_main_process:
        with contextlib.suppress(InputError):  # all are damaged, as was said
            found = [run.records.directory.store.recover()]
    return broadcast_object_list(found)[0]
