"""The images of each optimizer step: a pure function of (seed, epoch, rollbacks), for any number of processes.

An image may come several times an epoch, or not at all, if classes are balanced.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from toolkit.data.loading.balance import Balance, repeats
from toolkit.data.loading.orders import Orders
from toolkit.strategies.base import Phase, Step, Strategy

LANES = 64  # at most
MIXED = 2  # the least number of largest shards that are shuffled together
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
    taken: int = 0  # images of the epoch that came before the global batch

    @property
    def draw_keys(self) -> np.ndarray:
        """What the random draws of each image depend on, besides seed and epoch."""
        return self.ids if self.keys is None else self.keys

    def part(self, places: slice) -> "BatchSpec":
        """A part of the images."""
        return self._replace(ids=self.ids[places], keys=None if self.keys is None else self.keys[places])


class Window(NamedTuple):
    """Shards whose images are shuffled together in a lane; `parts`: of each shard's images, those that belong to it.

    `end`: how many images of the lane there are up to the window's last.
    """

    shards: tuple[int, ...]
    parts: tuple[slice, ...]
    end: int


@dataclass(frozen=True)
class Consecutive(Sequence[np.ndarray]):
    """The ids in each shard, where those of a shard follow those of the one before; `ends`: of each shard's."""

    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, shard: Any) -> Any:
        return np.arange(self.ends[shard - 1] if shard else 0, self.ends[shard])


@dataclass(frozen=True)
class Shards:
    """Remote files that hold the images: the ids in each, its size in bytes, and how much is shuffled at a time.

    The images of an epoch come in lanes of equal length: every batch takes as many of each, so that a process, whose
    share of a batch is contiguous, needs the shards of its own lanes only.
    """

    ids: Sequence[np.ndarray]
    sizes: tuple[int, ...]
    window: int  # bytes

    def lanes(self, batch: int) -> int:
        """The number of lanes for batches of that size, a power of two: it does not depend on the processes.

        The most of which every batch takes as many images, and whose windows have room for MIXED shards each.
        """
        used, lanes = sum(len(ids) > 0 for ids in self.ids), 1
        most = min(LANES, used, self.window // (MIXED * max(self.sizes)))
        while 2 * lanes <= most and batch % (2 * lanes) == 0:
            lanes *= 2
        return lanes

    def windows(self, rng: np.random.Generator, lanes: int, counts: np.ndarray | None = None) -> list[list[Window]]:
        """The windows of each lane: the shards in random order, cut into lanes of as many images.

        Each has at most `window` / `lanes` bytes, or one larger shard. `counts`: how often each image comes.
        """
        shards = rng.permutation(len(self.ids)).tolist()
        images = [len(self.ids[shard]) if counts is None else int(counts[self.ids[shard]].sum()) for shard in shards]
        length, begin = sum(images) // lanes, 0
        parts: list[list[tuple[int, slice]]] = [[] for _ in range(lanes)]
        for shard, count in zip(shards, images, strict=True):
            for lane in range(begin // length, min(-(-(begin + count) // length), lanes) if count else 0):
                start, stop = lane * length - begin, (lane + 1) * length - begin
                parts[lane].append((shard, slice(max(start, 0), min(stop, count))))
            begin += count
        # Every other lane goes backwards: both parts of a shard that was cut come at the same end of the epoch.
        return [self._grouped(part[:: -1 if lane % 2 else 1], self.window // lanes) for lane, part in enumerate(parts)]

    def _grouped(self, parts: list[tuple[int, slice]], most: int) -> list[Window]:
        groups: list[list[tuple[int, slice]]] = []
        room = 0
        for shard, part in parts:
            if not groups or self.sizes[shard] > room:
                groups.append([])
                room = most
            groups[-1].append((shard, part))
            room -= self.sizes[shard]
        ends = np.cumsum([sum(part.stop - part.start for _, part in group) for group in groups]).tolist()
        return [
            Window(tuple(shard for shard, _ in group), tuple(part for _, part in group), end)
            for group, end in zip(groups, ends, strict=True)
        ]

    def order(self, rng: np.random.Generator, lanes: int, counts: np.ndarray | None = None) -> np.ndarray:
        """The images of each lane, lanes x images, shuffled within their windows."""

        def shuffled(window: Window) -> np.ndarray:
            pairs = zip(window.shards, window.parts, strict=True)
            return rng.permutation(np.concatenate([self._repeated(shard, counts)[part] for shard, part in pairs]))

        return np.stack(
            [np.concatenate([shuffled(window) for window in lane]) for lane in self.windows(rng, lanes, counts)]
        )

    def _repeated(self, shard: int, counts: np.ndarray | None) -> np.ndarray:
        """The images of a shard, as often as they come."""
        ids = self.ids[shard]
        return ids if counts is None else np.repeat(ids, counts[ids])


@dataclass(frozen=True)
class Sampler:
    """The order of the training images.

    `balance`: how often each comes, None: once an epoch. `orders`: where the processes of a machine share them.
    """

    images: int
    seed: int
    strategy: Strategy
    shards: Shards | None = None
    balance: Balance | None = None
    orders: Orders | None = None

    def _rng(self, epoch: int, rollbacks: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, ORDER_STREAM, epoch, rollbacks))

    def _counts(self, epoch: int) -> np.ndarray | None:
        return None if self.balance is None else self.balance.counts(epoch)

    def permutation(self, epoch: int, rollbacks: int = 0) -> np.ndarray:
        """The images of an epoch, in order, where they are not in shards."""
        rng, counts = self._rng(epoch, rollbacks), self._counts(epoch)
        return rng.permutation(self.images if counts is None else np.repeat(np.arange(self.images), counts))

    def lanes(self, epoch: Epoch) -> int:
        """The lanes of an epoch; 1 if the images are not in shards."""
        return 1 if self.shards is None else self.shards.lanes(epoch.phase.batch_size)

    def order(self, epoch: Epoch) -> np.ndarray:
        """The images of an epoch: lanes x images."""
        if self.orders is None:
            return self._drawn(epoch)
        kind = (epoch.rollbacks, self.lanes(epoch))
        after = epoch._replace(number=epoch.number + 1)
        found = self.orders.get(epoch.number, kind, lambda: self._drawn(epoch))
        self.orders.draw_ahead(after.number, kind, lambda: self._drawn(after))
        return found

    def _drawn(self, epoch: Epoch) -> np.ndarray:
        if self.shards is None:
            return self.permutation(epoch.number, epoch.rollbacks)[None]
        rng = self._rng(epoch.number, epoch.rollbacks)
        return self.shards.order(rng, self.lanes(epoch), self._counts(epoch.number))

    def windows(self, epoch: Epoch) -> list[list[Window]]:
        """What is shuffled together in each lane, in the order of the epoch; empty if the images are not in shards."""
        if self.shards is None:
            return []
        rng = self._rng(epoch.number, epoch.rollbacks)
        return self.shards.windows(rng, self.lanes(epoch), self._counts(epoch.number))

    def batch_specs(self, epoch: Epoch, from_step: int = 0) -> Iterator[BatchSpec]:
        """The global batches of one epoch, in order, without those of steps before `from_step` of the run."""
        order, taken = self.order(epoch), 0
        keys = None if self.balance is None else order + self.images * repeats(order.ravel()).reshape(order.shape)
        for i in range(epoch.steps):
            step, number = self.strategy.step(epoch.phase, epoch.first + i), epoch.start + i
            of_lane = slice(taken // len(order), (taken + step.batch_size) // len(order))
            if number >= from_step:
                ids, of_ids = order[:, of_lane].ravel(), None if keys is None else keys[:, of_lane].ravel()
                yield BatchSpec(ids, step, number, epoch.number, epoch.phase.regularization, of_ids, taken)
            taken += step.batch_size


def micro_batches(spec: BatchSpec, share: RankShare) -> Iterator[BatchSpec]:
    """One process's share of a global batch: contiguous, so that neighbors in the batch stay together."""
    per_process = len(spec.ids) // share.processes
    micro = per_process // share.accumulation
    for start in range(share.rank * per_process, (share.rank + 1) * per_process, micro):
        yield spec.part(slice(start, start + micro))
