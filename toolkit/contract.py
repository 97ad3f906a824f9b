"""The former place of `toolkit.strategies.base`, kept for one release.

It has the current names only. An old strategy must rename its method `panel` to `eval_specs`, and in each `Phase` the
argument `strength` to `regularization`.
"""

from toolkit.strategies.base import (
    NORM_MODES,
    Budget,
    EvalSpec,
    Loss,
    NormPolicy,
    Phase,
    Step,
    Strategy,
    at_size,
)

__all__ = [
    "NORM_MODES",
    "Budget",
    "EvalSpec",
    "Loss",
    "NormPolicy",
    "Phase",
    "Step",
    "Strategy",
    "at_size",
]
