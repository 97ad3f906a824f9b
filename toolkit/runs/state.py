"""A run's state in memory: what a checkpoint holds, taken from what learns and put back."""

import copy
import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

MODEL, EMA, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
OPTIMIZER_REST, TRAINER = "optimizer.json", "trainer.json"


@dataclass
class Progress:
    """All of a run's state that is neither tensor nor a function of the step."""

    step: int = 0  # optimizer steps done, each on a global batch
    epoch: int = 0  # epochs closed: trained, evaluated, recorded
    images_seen: int = 0
    optimizer_updates: int = 0  # steps that moved the weights: all but those that overflowed in float16
    rollbacks: int = 0
    best_top1: float | None = None  # in percent, at the selection size
    best: dict[str, Any] = field(default_factory=dict)  # of the best model: epoch, step, figures
    reference_top1: float | None = None  # what patience and plateau compare with, in the last phase
    stale_epochs: int = 0  # since it was last exceeded by min_delta
    plateau_epochs: int = 0
    plateau_factor: float = 1.0
    stopped_early: bool = False
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    inexact: list[str] = field(default_factory=list)  # resumes after which generators began anew, and why

    @property
    def best_step(self) -> int | None:
        return self.best.get("step")

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps that were left out because float16 gradients overflowed."""
        return self.step - self.optimizer_updates

    def at(self) -> tuple[int, int]:
        """Where it stands: steps and epochs done."""
        return self.step, self.epoch

    def become(self, other: "Progress") -> None:
        """Take over another's state in place: everyone who holds this one sees it."""
        vars(self).update(copy.deepcopy(vars(other)))


def exported(contents: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights of a checkpoint that are evaluated and exported: the moving average where there is one."""
    return contents.get(EMA) or contents[MODEL]


def generator_state() -> dict[str, Tensor]:
    """The states of this process's global generators."""
    version, keys, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *keys], dtype=torch.int64),
        "numpy": torch.tensor(
            [*legacy["state"]["key"].tolist(), legacy["state"]["pos"], legacy["has_gauss"]], dtype=torch.int64
        ),
        "gauss": torch.tensor([gauss or 0.0, float(gauss is not None), legacy["gauss"]], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    gauss, has_gauss, cached = states["gauss"].tolist()
    version, *keys = states["python"].tolist()
    random.setstate((version, tuple(keys), gauss if has_gauss else None))
    *words, position, numpy_has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, numpy_has_gauss, cached))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def seed_generators(*key: int) -> None:
    """Start this process's global generators from a key, e.g. (seed, step, rank)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    seed = int.from_bytes(digest[:4], "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(int.from_bytes(digest[4:12], "little") >> 1)
