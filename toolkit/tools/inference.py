"""Inference options shared by evaluate and predict, and an Evaluator of a run's best model on the device."""

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

    `num_workers` None: the CPU quota divided by local processes. `amp` None: the precision of the training. `flip`:
    average probabilities with those of the mirrored image. `alone`: as the flag of training.
    """

    batch_size: int = 64
    num_workers: int | None = None
    amp: bool | None = None
    flip: bool = False
    alone: bool = False


def start_evaluator(loaded: LoadedRun, options: InferenceOptions, unreadable: Path | None = None) -> Evaluator:
    """Start an Accelerator and move the run's model to its device; `device.stop` ends it.

    `unreadable`: a file that lists unreadable images, which are then left out.
    """
    accelerator = _start(loaded, options)
    console.start(accelerator.is_main_process)
    place = accelerator.device
    return Evaluator(
        accelerator,
        loaded.model.to(place),
        loaded.task,
        loaded.classes,
        loaded.mean.to(place),
        loaded.std.to(place),
        options.batch_size,
        host.loader_threads() if options.num_workers is None else options.num_workers,
        loaded.settings.loader_timeout_s,
        quarantine=Quarantine(unreadable, accelerator.process_index) if unreadable else None,
        flip=options.flip,
    )


def _start(loaded: LoadedRun, options: InferenceOptions) -> Accelerator:
    """Start the Accelerator, without `amp` in the precision of the training, or float32 if the device lacks support."""
    settings = loaded.settings.model_copy(update={"alone": options.alone})
    if options.amp is not None:
        return device.start(settings.model_copy(update={"amp": options.amp}), trains=False)
    precision = loaded.precision()
    precision = precision if precision in (None, *device.precisions()) else "float32"
    return device.start(settings, precision, trains=False)
