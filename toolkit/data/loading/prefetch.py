"""Fetches the next window of remote shards while images are drawn from this one, so that nobody waits at its start."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from toolkit.data.loading.batches import Batch
from toolkit.data.loading.sampler import BatchSpec
from toolkit.data.loading.workers import Threads
from toolkit.data.sources.index import Index
from toolkit.system import host

STREAMS = 4  # threads that fetch, one block each at a time


def fetching_ahead(
    load: Callable[[Iterable[BatchSpec]], Iterator[Batch]],
    batch_specs: Iterable[BatchSpec],
    index: Index,
    windows: Sequence[Sequence[int]],
    rank: int,
) -> Iterator[Batch]:
    """What `load` makes of the requests of an epoch; `windows` are the numbers of the shards that are mixed.

    The processes of a machine share the work. An error is left to whoever needs the block: it meets the same one.
    """
    assert index.blocks is not None
    cache, local = index.blocks, host.local_processes()
    own, everything = slice(rank % local, None, local), slice(None)
    window_of = np.empty(len(index.containers), dtype=np.int64)
    for number, shards in enumerate(windows):
        window_of[shards] = number
    drawn = asked = begun = -1  # windows: delivered from, requested from, and whose next one is being fetched

    def noted() -> Iterator[BatchSpec]:
        nonlocal asked
        for spec in batch_specs:
            asked = int(window_of[index.container[spec.ids]].max())
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
            # Whoever asks for the next batch has ended the step before: so has every process, and none needs an
            # earlier window. In the cache's two halves there is room for this one and the next.
            drawn = int(window_of[index.container[batch.ids]].min())
            if drawn == asked > begun and drawn + 1 < len(windows) and fit(drawn, drawn + 1):
                begun = drawn
                # All of this window before any of the next: what was used last must not go first.
                for window, part in ((drawn, own), (drawn, everything), (drawn + 1, own)):
                    blocks = [(url, block) for url in urls(window) for block in range(cache.count(url))]
                    for url, block in blocks[part]:
                        threads.submit(partial(hold, window, url, block))
    finally:
        threads.close()
