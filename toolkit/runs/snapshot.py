"""The state of a run at one step, and the names of the checkpoint files that store it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.models.optimizer_state import join_optimizer
from toolkit.runs.checkpoint import Contents, Tensors, load
from toolkit.runs.committed import read_manifest
from toolkit.runs.earlier import progress_now
from toolkit.runs.progress import Progress

MODEL, EMA, OPTIMIZER, MEANS = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "means.safetensors"
OPTIMIZER_REST, TRAINER = "optimizer.json", "trainer.json"


@dataclass(frozen=True)
class Snapshot:
    """All state of a run between two steps.

    `average`: the moving average of the weights, empty if there is none; `optimizer` and `optimizer_rest`: as
    `split_optimizer` returns them; `scaler`: state of the float16 gradient scaler, None if there is none; `means`: what
    `RunningMeans.state` of each process returns, one row a process.
    """

    model: Tensors
    average: Tensors
    optimizer: Tensors
    optimizer_rest: Mapping[str, Any]
    progress: Progress
    scaler: Mapping[str, Any] | None
    means: Tensors = field(default_factory=dict)

    def files(self) -> Contents:
        """Contents by file name, as a checkpoint stores them."""
        return {
            MODEL: self.model,
            **({EMA: self.average} if self.average else {}),
            OPTIMIZER: self.optimizer,
            OPTIMIZER_REST: self.optimizer_rest,
            **({MEANS: self.means} if self.means else {}),
            TRAINER: {"progress": asdict(self.progress), "scaler": self.scaler},
        }

    @property
    def exported(self) -> Tensors:
        """The weights of the best model, if this is its state."""
        return _exported(self.model, self.average, self.progress)

    def each(self, change: Callable[[Tensors], Tensors]) -> "Snapshot":
        """A copy, whose groups of tensors are changed by a function."""
        return replace(
            self,
            model=change(self.model),
            average=change(self.average),
            optimizer=change(self.optimizer),
            means=change(self.means),
        )

    def optimizer_state(self) -> dict[str, Any]:
        """The argument of `Optimizer.load_state_dict`."""
        return join_optimizer(self.optimizer, self.optimizer_rest)


def read_snapshot(checkpoint: Path) -> Snapshot:
    """Read the state in a verified checkpoint; raises InputError if a file cannot be read."""
    held = load(checkpoint, (MODEL, EMA, OPTIMIZER, OPTIMIZER_REST, TRAINER, MEANS))
    trainer = held[TRAINER]
    return Snapshot(
        model=held[MODEL],
        average=held.get(EMA, {}),
        optimizer=held[OPTIMIZER],
        optimizer_rest=held[OPTIMIZER_REST],
        progress=Progress(**progress_now(trainer["progress"])),
        scaler=trainer["scaler"],
        means=held.get(MEANS) or _means_of_ranks(checkpoint),
    )


def _means_of_ranks(checkpoint: Path) -> dict[str, Tensor]:
    """Running means as earlier versions saved them: by each process, with its generators, in a file of its own."""
    names = sorted(name for name in read_manifest(checkpoint)["files"] if name.startswith("rng/rank-"))
    parts = [*load(checkpoint, names).values()]
    mark = "mean "
    return {
        name.removeprefix(mark): torch.stack([part[name] for part in parts])
        for name in (parts[0] if parts else ())
        if name.startswith(mark)
    }


def read_exported(checkpoint: Path, progress: Progress) -> Tensors:
    """Read the weights of the best model, in its verified checkpoint; raises InputError if they cannot be read."""
    held = load(checkpoint, (MODEL, EMA))
    return _exported(held[MODEL], held.get(EMA, {}), progress)


def _exported(model: Tensors, average: Tensors, progress: Progress) -> Tensors:
    """The average, if there is one and the raw weights are not better."""
    return model if progress.best_weights == "raw" or not average else average
