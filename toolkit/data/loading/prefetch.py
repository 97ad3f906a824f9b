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
    """A lane of the order, and numbers of its windows: last delivered, last requested, last that started a prefetch.

    `released`: the first that may still be needed.
    """

    windows: Sequence[Window]
    drawn: int = -1
    requested: int = -1
    begun: int = -1
    released: int = 0

    def at(self, image: int) -> int:
        """The window of an image, by its place in the lane."""
        return bisect_right(self.windows, image, key=lambda window: window.end)


def fetching_ahead(
    load: Callable[[Iterable[BatchSpec]], Iterator[Batch]],
    batch_specs: Iterable[BatchSpec],
    index: Index,
    windows: Sequence[Sequence[Window]],
    share: RankShare,
) -> Iterator[Batch]:
    """The batches that `load` builds from one process's specs of an epoch; `windows`: of each lane of their order.

    Processes of a machine that draw from the same lane share the fetching. Errors of fetching are ignored here: the
    worker that needs the block fetches it and raises the same error.
    """
    assert index.blocks is not None
    cache, count = index.blocks, len(windows)
    first, last = share.rank * count // share.processes, -(-(share.rank + 1) * count // share.processes)
    lanes = [Lane(of_lane) for of_lane in windows[first:last]]
    sharing = host.local_processes() if count % share.processes else 1
    own, everything = slice(share.rank % sharing, None, sharing), slice(None)
    requested: list[BatchSpec] = []

    def noted() -> Iterator[BatchSpec]:
        for spec in batch_specs:
            requested.append(spec)
            for lane in lanes:
                lane.requested = lane.at((spec.taken + spec.step.batch_size) // count - 1)
            yield spec

    def urls(window: Window) -> list[str]:
        return [index.containers[shard] for shard in window.shards]

    def fit(*both: Window) -> bool:
        return sum(cache.files[url].size for window in both for url in urls(window)) <= cache.bound // count

    def hold(lane: Lane, window: int, url: str, block: int) -> None:
        if window >= lane.drawn:
            cache.hold(url, block)

    def release(lane: Lane) -> None:
        for window in lane.windows[lane.released : lane.drawn]:
            for url in urls(window):
                cache.release(url)
        lane.released = lane.drawn

    def fetch(lane: Lane, threads: Threads) -> None:
        # All of this window before any of the next: the cache drops the least recently used blocks first, and
        # this window is still in use.
        for window, part in ((lane.drawn, own), (lane.drawn, everything), (lane.drawn + 1, own)):
            blocks = [(url, block) for url in urls(lane.windows[window]) for block in range(cache.count(url))]
            for url, block in blocks[part]:
                threads.submit(partial(hold, lane, window, url, block))

    threads = Threads(STREAMS)
    try:
        for batch in load(noted()):
            yield batch
            # The caller takes the next batch after a step is complete. Then every process has completed that step, and
            # none needs an earlier window. The two halves of the cache have room for these windows and the next.
            spec = requested.pop(0)
            for lane in lanes:
                lane.drawn = lane.at(spec.taken // count)
                release(lane)
                following = lane.drawn + 1
                if (
                    lane.drawn == lane.requested > lane.begun
                    and following < len(lane.windows)
                    and fit(lane.windows[lane.drawn], lane.windows[following])
                ):
                    lane.begun = lane.drawn
                    fetch(lane, threads)
    finally:
        threads.close()
