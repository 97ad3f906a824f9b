"""A run's best model on the device, ready for images: the options that all of inference shares."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from toolkit.models.evaluator import Evaluator
from toolkit.runs.quarantine import Quarantine
from toolkit.system import console, host
from toolkit.tools.loaded_run import LoadedRun
from toolkit.training import device


@dataclass(frozen=True)
class InferenceOptions:
    """`batch_size` images per process and forward pass; `num_workers` decoding threads per process.

    `num_workers` None: the CPU quota over local processes. `amp` None: the precision of the training. `flip`: average
    the probabilities with those of the mirrored image.
    """

    batch_size: int = 64
    num_workers: int | None = None
    amp: bool | None = None
    flip: bool = False


def start_evaluator(loaded: LoadedRun, options: InferenceOptions, unreadable: Path | None = None) -> Evaluator:
    """The Accelerator and a run's model on it; `device.stop` ends it.

    With a file `unreadable`, images that cannot be read are left out and listed there.
    """
    accelerator = _start(loaded, options.amp)
    console.start(accelerator.is_main_process)
    place = accelerator.device
    return Evaluator(
        accelerator,
        loaded.model.to(place),
        loaded.mean.to(place),
        loaded.std.to(place),
        options.batch_size,
        host.loader_threads() if options.num_workers is None else options.num_workers,
        loaded.settings.loader_timeout_s,
        quarantine=Quarantine(unreadable, accelerator.process_index) if unreadable else None,
        flip=options.flip,
    )


def _start(loaded: LoadedRun, amp: bool | None) -> Accelerator:
    """`amp` None: the precision of the training, or float32 where this device lacks it."""
    if amp is not None:
        return device.start(loaded.settings.model_copy(update={"amp": amp}))
    precision = loaded.precision()
    return device.start(loaded.settings, precision if precision in (None, *device.precisions()) else "float32")
