"""The state of a run at one step, and the names of the checkpoint files that store it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.models.optimizer_state import join_optimizer
from toolkit.runs.checkpoint import Contents, Tensors, load
from toolkit.runs.earlier import progress_now
from toolkit.runs.progress import Progress

MODEL, EMA, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
OPTIMIZER_REST, TRAINER = "optimizer.json", "trainer.json"


@dataclass(frozen=True)
class Snapshot:
    """All state except the random generators and running means, which each process saves itself.

    `average`: the moving average of the weights, empty if there is none; `optimizer` and `optimizer_rest`: as
    `split_optimizer` returns them; `scaler`: state of the float16 gradient scaler, None if there is none.
    """

    model: Tensors
    average: Tensors
    optimizer: Tensors
    optimizer_rest: Mapping[str, Any]
    progress: Progress
    scaler: Mapping[str, Any] | None

    def files(self) -> Contents:
        """Contents by file name, as a checkpoint stores them."""
        return {
            MODEL: self.model,
            **({EMA: self.average} if self.average else {}),
            OPTIMIZER: self.optimizer,
            OPTIMIZER_REST: self.optimizer_rest,
            TRAINER: {"progress": asdict(self.progress), "scaler": self.scaler},
        }

    @property
    def exported(self) -> Tensors:
        """The weights of the best model, if this is its state."""
        return _exported(self.model, self.average, self.progress)

    def optimizer_state(self) -> dict[str, Any]:
        """The argument of `Optimizer.load_state_dict`."""
        return join_optimizer(self.optimizer, self.optimizer_rest)


def read_snapshot(checkpoint: Path) -> Snapshot:
    """Read the state in a verified checkpoint; raises InputError if a file cannot be read."""
    held = load(checkpoint, (MODEL, EMA, OPTIMIZER, OPTIMIZER_REST, TRAINER))
    trainer = held[TRAINER]
    return Snapshot(
        model=held[MODEL],
        average=held.get(EMA, {}),
        optimizer=held[OPTIMIZER],
        optimizer_rest=held[OPTIMIZER_REST],
        progress=Progress(**progress_now(trainer["progress"])),
        scaler=trainer["scaler"],
    )


def read_exported(checkpoint: Path, progress: Progress) -> Tensors:
    """Read the weights of the best model, in its verified checkpoint; raises InputError if they cannot be read."""
    held = load(checkpoint, (MODEL, EMA))
    return _exported(held[MODEL], held.get(EMA, {}), progress)


def _exported(model: Tensors, average: Tensors, progress: Progress) -> Tensors:
    """The average, if there is one and the raw weights are not better."""
    return model if progress.best_weights == "raw" or not average else average
