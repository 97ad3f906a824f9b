"""Random numbers as a pure function of keys, for many samples at once.

This is SplitMix64 (Steele et al., OOPSLA 2014), whose outputs can be computed in any order. A generator object per
sample would cost about 30 us of interpreter time each.
"""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def words(seed: int, stream: int, epoch: int, ids: np.ndarray, count: int) -> np.ndarray:
    """N x count random uint64 for N sample ids; `stream` separates uses that share the other keys."""
    state = np.zeros(len(ids), dtype=np.uint64)
    for key in (seed & 0xFFFFFFFFFFFFFFFF, stream, epoch, ids):
        state = _mix(state + GOLDEN + np.asarray(key).astype(np.uint64))
    return _mix(state[:, None] + GOLDEN * np.arange(1, count + 1, dtype=np.uint64))


def uniforms(seed: int, stream: int, epoch: int, ids: np.ndarray, count: int) -> np.ndarray:
    """N x count random numbers in [0, 1) for N sample ids."""
    return (words(seed, stream, epoch, ids, count) >> np.uint64(11)) * 2.0**-53
