"""Where XLA computes, as on TPUs: whether it does, the end of a step, and the random generator of its device."""

import os
from typing import Any

from accelerate.utils import is_torch_xla_available, parse_flag_from_env


def only_cpu() -> bool:
    """Whether the launcher allows no device but the CPU."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or os.environ.get("ACCELERATE_TORCH_DEVICE") == "cpu"


def on_xla() -> bool:
    """Whether the run computes by way of XLA: torch_xla is installed and told on what."""
    return not only_cpu() and "PJRT_DEVICE" in os.environ and is_torch_xla_available()


def model() -> Any:
    """torch_xla's functions of the device; installed only where XLA is used."""
    import torch_xla.core.xla_model as xm

    return xm


def end_step() -> None:
    """Where XLA computes, carry out what was requested since the last call, as one graph."""
    if on_xla():
        import torch_xla

        torch_xla.sync()
