"""From an index to batches: sample order, batches, workers, prefetching, caches.

The order is a pure function of (seed, epoch, rollbacks), the same for any number of processes. Never: a data source.
"""
