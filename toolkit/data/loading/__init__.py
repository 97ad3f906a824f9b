"""From an index to batches: order, batches, workers, prefetching, caches.

The order is a pure function of (seed, epoch) and the same on any number of processes. Never: a new kind of source.
"""
