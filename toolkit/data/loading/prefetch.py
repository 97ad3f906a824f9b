"""Fetches the next windows of remote shards while training uses the current ones, so that no process has to wait."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from toolkit.data.loading.batches import Batch
from toolkit.data.loading.sampler import BatchSpec, RankShare, Window
from toolkit.data.loading.workers import Threads
from toolkit.data.sources.index import Index
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


def fetching_ahead(
    load: Callable[[Iterable[BatchSpec]], Iterator[Batch]],
    batch_specs: Iterable[BatchSpec],
    index: Index,
    windows: Sequence[Sequence[Window]],
    share: RankShare,
) -> Iterator[Batch]:
    """The batches that `load` builds from one process's specs of an epoch; `windows`: of each lane of their order.

    Errors of fetching are ignored here: the worker that needs the block fetches it and raises the same error.
    """
    assert index.blocks is not None
    cache, count, passed = index.blocks, len(windows), 0
    lanes, uses = lanes_of(windows, share, host.local_processes()), last_uses(windows)
    requested: list[BatchSpec] = []

    def noted() -> Iterator[BatchSpec]:
        for spec in batch_specs:
            requested.append(spec)
            for lane in lanes:
                lane.requested = lane.at((spec.taken + spec.step.batch_size) // count - 1)
            yield spec

    def urls(window: Window) -> list[str]:
        return [index.containers[shard] for shard in window.shards]

    def due(lane: Lane) -> bool:
        if not lane.drawn == lane.requested > lane.begun or lane.drawn + 1 == len(lane.windows):
            return False
        both = lane.windows[lane.drawn : lane.drawn + 2]
        return sum(cache.files[url].size for window in both for url in urls(window)) <= cache.bound // count

    def hold(lane: Lane, window: int, url: str, block: int) -> None:
        if window >= lane.drawn:
            cache.hold(url, block)

    def fetch(lane: Lane, window: int, part: slice) -> None:
        blocks = [(url, block) for url in urls(lane.windows[window]) for block in range(cache.count(url))]
        for url, block in blocks[part]:
            threads.submit(partial(hold, lane, window, url, block))

    threads = Threads(STREAMS)
    try:
        for batch in load(noted()):
            yield batch
            # The caller takes the next batch after a step is complete. Then every process has completed that step, and
            # none needs an earlier window. The two halves of the cache have room for these windows and the next.
            place = requested.pop(0).taken // count
            while passed < len(uses) and uses[passed][0] <= place:
                threads.submit(partial(cache.release, index.containers[uses[passed][1]]))
                passed += 1
            for lane in lanes:
                lane.drawn = lane.at(place)
            # All current windows before any next one: the cache drops the least recently used blocks first, and
            # the current ones are still in use.
            begin = [lane for lane in lanes if due(lane)]
            for lane in begin:
                lane.begun = lane.drawn
                fetch(lane, lane.drawn, lane.share)
            for lane in begin:
                fetch(lane, lane.drawn, slice(None))
            for lane in begin:
                fetch(lane, lane.drawn + 1, lane.share)
    finally:
        threads.close()
