"""The images of each optimizer step: a pure function of (seed, epoch, rollbacks), for any number of processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from toolkit.strategies.base import Phase, Step, Strategy

ORDER_STREAM = 0  # separates this generator from those of augmentation


@dataclass(frozen=True)
class RankShare:
    """The share of each global batch that one process takes, in `accumulation` equal micro-batches."""

    rank: int
    processes: int
    accumulation: int


class Epoch(NamedTuple):
    """One pass over the images; `first`: number of its first step in the phase, `start`: the same in the run."""

    number: int
    phase: Phase
    first: int
    start: int
    steps: int
    rollbacks: int = 0  # how often the run went back to a checkpoint; each time changes the order

    @property
    def end(self) -> int:
        """The number in the run of the step after the last one of the epoch."""
        return self.start + self.steps

    @property
    def closes_phase(self) -> bool:
        return self.first + self.steps == self.phase.steps


class BatchSpec(NamedTuple):
    """A global batch or micro-batch to load: image ids, sizes, step, epoch, and regularization, 0 to 1."""

    ids: np.ndarray
    step: Step
    number: int  # optimizer step in the run, from 0
    epoch: int
    regularization: float


@dataclass(frozen=True)
class Shards:
    """Remote files that hold the images: the ids in each, its size in bytes, and how much is shuffled at a time."""

    ids: tuple[np.ndarray, ...]
    sizes: tuple[int, ...]
    window: int  # bytes

    def windows(self, rng: np.random.Generator) -> list[list[int]]:
        """The shards in random order, grouped into windows of at most `window` bytes, or of one larger shard."""
        windows: list[list[int]] = []
        room = 0
        for shard in rng.permutation(len(self.ids)).tolist():
            if not windows or self.sizes[shard] > room:
                windows.append([])
                room = self.window
            windows[-1].append(shard)
            room -= self.sizes[shard]
        return windows

    def permutation(self, rng: np.random.Generator) -> np.ndarray:
        """All images, one window after the other; images are shuffled within their window."""
        mixed = [np.concatenate([self.ids[shard] for shard in window]) for window in self.windows(rng)]
        return np.concatenate([rng.permutation(ids) for ids in mixed])


@dataclass(frozen=True)
class Sampler:
    """The order of the training images."""

    images: int
    seed: int
    strategy: Strategy
    shards: Shards | None = None

    def _rng(self, epoch: int, rollbacks: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, ORDER_STREAM, epoch, rollbacks))

    def permutation(self, epoch: int, rollbacks: int = 0) -> np.ndarray:
        rng = self._rng(epoch, rollbacks)
        return rng.permutation(self.images) if self.shards is None else self.shards.permutation(rng)

    def windows(self, epoch: int, rollbacks: int = 0) -> list[list[int]]:
        """The shards that are shuffled together, in the order of the epoch; empty if the images are not in shards."""
        return [] if self.shards is None else self.shards.windows(self._rng(epoch, rollbacks))

    def batch_specs(self, epoch: Epoch, from_step: int = 0) -> Iterator[BatchSpec]:
        """The global batches of one epoch, in order, without those of steps before `from_step` of the run."""
        order, taken = self.permutation(epoch.number, epoch.rollbacks), 0
        for i in range(epoch.steps):
            step = self.strategy.step(epoch.phase, epoch.first + i)
            ids = order[taken : taken + step.batch_size]
            taken += step.batch_size
            if epoch.start + i >= from_step:
                yield BatchSpec(ids, step, epoch.start + i, epoch.number, epoch.phase.regularization)


def micro_batches(spec: BatchSpec, share: RankShare) -> Iterator[BatchSpec]:
    """One process's share of a global batch: contiguous, so that neighbors in the batch stay together."""
    per_process = len(spec.ids) // share.processes
    own = spec.ids[share.rank * per_process : (share.rank + 1) * per_process]
    for ids in np.split(own, share.accumulation):
        yield spec._replace(ids=ids)
