"""Learning-rate schedules as pure functions of progress."""

import math


def cosine(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up over the first `warmup` of the run, then half a cosine to 0.

    `progress` and `warmup` are shares of the sample budget in [0, 1] (SGDR without restarts, arXiv:1608.03983).
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def constant(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up over the first `warmup` of the run, then 1."""
    return min(1.0, progress / warmup) if warmup else 1.0


SHAPES = {"cosine": cosine, "plateau": constant}
