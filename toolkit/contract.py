"""The former place of `toolkit.strategies.base`, kept for one release."""

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
