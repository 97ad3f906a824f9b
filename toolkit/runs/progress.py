"""Progress of a run: all state that is neither a tensor nor a function of the step."""

import copy
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Counts, clocks and the best model so far; stored in every checkpoint."""

    step: int = 0  # optimizer steps done, each on a global batch
    epoch: int = 0  # epochs closed: trained, evaluated, recorded
    images_seen: int = 0
    optimizer_updates: int = 0  # steps that changed the weights: all except float16 overflows
    rollbacks: int = 0
    best_score: float | None = None  # of --select-by, at the selection size
    best: dict[str, Any] = field(default_factory=dict)  # of the best model: epoch, step, metrics, weights
    reference_score: float | None = None  # patience and plateau compare with it in the last phase
    stale_epochs: int = 0  # since reference_score was last exceeded by min_delta
    plateau_epochs: int = 0
    plateau_factor: float = 1.0
    stopped_early: bool = False
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    inexact: list[str] = field(default_factory=list)  # resumes that are not bit-exact, and why

    @property
    def best_step(self) -> int | None:
        return self.best.get("step")

    @property
    def best_weights(self) -> str | None:
        """`averaged` or `raw`, with --ema-decay; runs of earlier versions exported the average."""
        return self.best.get("weights")

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps that were skipped because float16 gradients overflowed."""
        return self.step - self.optimizer_updates

    def at(self) -> tuple[int, int]:
        """Steps and epochs done."""
        return self.step, self.epoch

    def become(self, other: "Progress") -> None:
        """Copy another's values in place, so that all holders of this object see them."""
        vars(self).update(copy.deepcopy(vars(other)))
