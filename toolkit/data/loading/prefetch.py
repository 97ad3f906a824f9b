"""Fetches the next windows of remote shards while training uses the current ones, so that no process has to wait."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from toolkit.data.loading.batches import Batch
from toolkit.data.loading.sampler import BatchSpec, RankShare, Window
from toolkit.data.loading.workers import Threads
from toolkit.data.sources.index import Index
from toolkit.data.sources.remote import BlockCache
from toolkit.system import host

STREAMS = 4  # fetching threads; each fetches one block at a time


@dataclass
class Lane:
    """A lane of the order that a process draws from, with others on its machine: it fetches a `share` of the blocks.

    Numbers of windows: `drawn`: last delivered, `requested`: last requested, `begun`: last that started a prefetch.
    """

    windows: Sequence[Window]
    share: slice
    drawn: int = -1
    requested: int = -1
    begun: int = -1

    def at(self, image: int) -> int:
        """The window of an image, by its place in the lane."""
        return bisect_right(self.windows, image, key=lambda window: window.end)


def lanes_of(windows: Sequence[Sequence[Window]], share: RankShare, local: int) -> list[Lane]:
    """The lanes that a process draws from; `local`: number of processes on its machine."""
    count, processes = len(windows), share.processes
    found = []
    for lane in range(share.rank * count // processes, -(-(share.rank + 1) * count // processes)):
        drawing = range(lane * processes // count, -(-(lane + 1) * processes // count))
        here = [rank for rank in drawing if rank // local == share.rank // local]
        found.append(Lane(windows[lane], slice(here.index(share.rank), None, len(here))))
    return found


def last_uses(windows: Sequence[Sequence[Window]]) -> list[tuple[int, int]]:
    """When each shard is needed no more, and its number, in that order: how far the lanes have come then, in images."""
    ends: dict[int, int] = {}
    for window in (window for lane in windows for window in lane):
        for shard in window.shards:
            ends[shard] = max(window.end, ends.get(shard, 0))
    return sorted((end, shard) for shard, end in ends.items())


@dataclass
class Ahead:
    """What a process fetches ahead; `uses`: as from `last_uses`, of which the first `passed` are over.

    `count`: number of all lanes, of which it draws from `lanes`. Errors of fetching are ignored here: the worker that
    needs the block fetches it and raises the same error.
    """

    cache: BlockCache
    containers: Sequence[str]
    count: int
    lanes: Sequence[Lane]
    uses: Sequence[tuple[int, int]]
    threads: Threads
    passed: int = 0

    def request(self, spec: BatchSpec) -> None:
        """A batch is about to be loaded."""
        for lane in self.lanes:
            lane.requested = lane.at((spec.taken + spec.step.batch_size) // self.count - 1)

    def deliver(self, spec: BatchSpec) -> None:
        """All processes have completed the batches before this one: none needs an earlier window."""
        place = spec.taken // self.count
        while self.passed < len(self.uses) and self.uses[self.passed][0] <= place:
            self.threads.submit(partial(self.cache.release, self.containers[self.uses[self.passed][1]]))
            self.passed += 1
        for lane in self.lanes:
            lane.drawn = lane.at(place)
        # All current windows before any next one: the cache drops the least recently used blocks first, and the
        # current ones are still in use.
        begin = [lane for lane in self.lanes if self._due(lane)]
        for lane in begin:
            lane.begun = lane.drawn
            self._fetch(lane, lane.drawn, lane.share)
        for lane in begin:
            self._fetch(lane, lane.drawn, slice(None))
        for lane in begin:
            self._fetch(lane, lane.drawn + 1, lane.share)

    def _due(self, lane: Lane) -> bool:
        """Whether a next window can be fetched: the two halves of the cache have room for the current ones and it."""
        if not lane.drawn == lane.requested > lane.begun or lane.drawn + 1 == len(lane.windows):
            return False
        both = lane.windows[lane.drawn : lane.drawn + 2]
        return sum(self.cache.files[url].size for window in both for url in self._urls(window)) <= (
            self.cache.bound // self.count
        )

    def _fetch(self, lane: Lane, window: int, part: slice) -> None:
        urls = self._urls(lane.windows[window])
        blocks = [(url, block) for url in urls for block in range(self.cache.count(url))]
        for url, block in blocks[part]:
            self.threads.submit(partial(self._hold, lane, window, url, block))

    def _hold(self, lane: Lane, window: int, url: str, block: int) -> None:
        if window >= lane.drawn:
            self.cache.hold(url, block)

    def _urls(self, window: Window) -> list[str]:
        return [self.containers[shard] for shard in window.shards]


def fetching_ahead(
    load: Callable[[Iterable[BatchSpec]], Iterator[Batch]],
    batch_specs: Iterable[BatchSpec],
    index: Index,
    windows: Sequence[Sequence[Window]],
    share: RankShare,
) -> Iterator[Batch]:
    """The batches that `load` builds from one process's specs of an epoch; `windows`: of each lane of their order."""
    assert index.blocks is not None
    lanes, threads = lanes_of(windows, share, host.local_processes()), Threads(STREAMS)
    ahead = Ahead(index.blocks, index.containers, len(windows), lanes, last_uses(windows), threads)
    requested: deque[BatchSpec] = deque()

    def noted() -> Iterator[BatchSpec]:
        for spec in batch_specs:
            requested.append(spec)
            ahead.request(spec)
            yield spec

    try:
        for batch in load(noted()):
            yield batch
            ahead.deliver(requested.popleft())  # the caller takes the next batch after a step is complete
    finally:
        threads.close()
