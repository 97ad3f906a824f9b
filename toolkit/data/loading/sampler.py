"""The images of each optimizer step: a pure function of (seed, epoch, rollbacks), for any number of processes.

An image may come several times an epoch, or not at all, if classes are balanced.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from toolkit.data.loading.balance import Balance, repeats
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
    """A global batch or micro-batch to load: image ids, sizes, step, epoch, and regularization, 0 to 1.

    `keys`: one for each image, no two alike in an epoch, if images come more than once in it; else its id is its key.
    """

    ids: np.ndarray
    step: Step
    number: int  # optimizer step in the run, from 0
    epoch: int
    regularization: float
    keys: np.ndarray | None = None

    @property
    def draw_keys(self) -> np.ndarray:
        """What the random draws of each image depend on, besides seed and epoch."""
        return self.ids if self.keys is None else self.keys

    def part(self, places: slice) -> "BatchSpec":
        """A part of the images."""
        return self._replace(ids=self.ids[places], keys=None if self.keys is None else self.keys[places])


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

    def permutation(self, rng: np.random.Generator, counts: np.ndarray | None = None) -> np.ndarray:
        """All images, as often as `counts` says, one window after the other, and shuffled within their window."""
        mixed = [np.concatenate([self.ids[shard] for shard in window]) for window in self.windows(rng)]
        if counts is not None:
            mixed = [np.repeat(ids, counts[ids]) for ids in mixed]
        return np.concatenate([rng.permutation(ids) for ids in mixed])


@dataclass(frozen=True)
class Sampler:
    """The order of the training images; `balance`: how often each comes, None: once an epoch."""

    images: int
    seed: int
    strategy: Strategy
    shards: Shards | None = None
    balance: Balance | None = None

    def _rng(self, epoch: int, rollbacks: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, ORDER_STREAM, epoch, rollbacks))

    def permutation(self, epoch: int, rollbacks: int = 0) -> np.ndarray:
        rng = self._rng(epoch, rollbacks)
        counts = None if self.balance is None else self.balance.counts(epoch)
        if self.shards is not None:
            return self.shards.permutation(rng, counts)
        return rng.permutation(self.images if counts is None else np.repeat(np.arange(self.images), counts))

    def windows(self, epoch: int, rollbacks: int = 0) -> list[list[int]]:
        """The shards that are shuffled together, in the order of the epoch; empty if the images are not in shards."""
        return [] if self.shards is None else self.shards.windows(self._rng(epoch, rollbacks))

    def batch_specs(self, epoch: Epoch, from_step: int = 0) -> Iterator[BatchSpec]:
        """The global batches of one epoch, in order, without those of steps before `from_step` of the run."""
        order, taken = self.permutation(epoch.number, epoch.rollbacks), 0
        keys = None if self.balance is None else order + self.images * repeats(order)
        for i in range(epoch.steps):
            step = self.strategy.step(epoch.phase, epoch.first + i)
            places = slice(taken, taken + step.batch_size)
            taken += step.batch_size
            if epoch.start + i >= from_step:
                number, regularization = epoch.start + i, epoch.phase.regularization
                yield BatchSpec(order, step, number, epoch.number, regularization, keys).part(places)


def micro_batches(spec: BatchSpec, share: RankShare) -> Iterator[BatchSpec]:
    """One process's share of a global batch: contiguous, so that neighbors in the batch stay together."""
    per_process = len(spec.ids) // share.processes
    micro = per_process // share.accumulation
    for start in range(share.rank * per_process, (share.rank + 1) * per_process, micro):
        yield spec.part(slice(start, start + micro))
