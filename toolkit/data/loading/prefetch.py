"""Fetches the next window of remote shards while training uses the current one, so that no process has to wait."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from toolkit.data.loading.batches import Batch
from toolkit.data.loading.sampler import BatchSpec
from toolkit.data.loading.workers import Threads
from toolkit.data.sources.index import Index
from toolkit.system import host

STREAMS = 4  # fetching threads; each fetches one block at a time


def fetching_ahead(
    load: Callable[[Iterable[BatchSpec]], Iterator[Batch]],
    batch_specs: Iterable[BatchSpec],
    index: Index,
    windows: Sequence[Sequence[int]],
    rank: int,
) -> Iterator[Batch]:
    """The batches that `load` builds from the specs of an epoch; `windows`: numbers of the shards shuffled together.

    The processes of a machine share the fetching. Errors of fetching are ignored here: the worker that needs the block
    fetches it and raises the same error.
    """
    assert index.blocks is not None
    cache, local = index.blocks, host.local_processes()
    own, everything = slice(rank % local, None, local), slice(None)
    window_of = np.empty(len(index.containers), dtype=np.int64)
    for number, shards in enumerate(windows):
        window_of[shards] = number
    drawn = requested = begun = -1  # windows: last delivered, last requested, last that started a prefetch

    def noted() -> Iterator[BatchSpec]:
        nonlocal requested
        for spec in batch_specs:
            requested = int(window_of[index.container[spec.ids]].max())
            yield spec

    def urls(window: int) -> list[str]:
        return [index.containers[shard] for shard in windows[window]]

    def fit(first: int, second: int) -> bool:
        return sum(cache.files[url].size for url in urls(first) + urls(second)) <= cache.bound

    def hold(window: int, url: str, block: int) -> None:
        if window >= drawn:
            cache.hold(url, block)

    threads = Threads(STREAMS)
    try:
        for batch in load(noted()):
            yield batch
            # The caller takes the next batch after a step is complete. Then every process has completed that step, and
            # none needs an earlier window. The two halves of the cache have room for this window and the next.
            drawn = int(window_of[index.container[batch.ids]].min())
            if drawn == requested > begun and drawn + 1 < len(windows) and fit(drawn, drawn + 1):
                begun = drawn
                # All of this window before any of the next: the cache drops the least recently used blocks first, and
                # this window is still in use.
                for window, part in ((drawn, own), (drawn, everything), (drawn + 1, own)):
                    blocks = [(url, block) for url in urls(window) for block in range(cache.count(url))]
                    for url, block in blocks[part]:
                        threads.submit(partial(hold, window, url, block))
    finally:
        threads.close()
