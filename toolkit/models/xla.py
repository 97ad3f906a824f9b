"""Where XLA computes, as on TPUs: whether it does, its processes, the end of a step, and its random generator."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from accelerate.utils import is_torch_xla_available, parse_flag_from_env

from toolkit.system import host

BFLOAT16 = "XLA_USE_BF16"  # read when the first tensor is made


def only_cpu() -> bool:
    """Whether the launcher allows no device but the CPU."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or os.environ.get("ACCELERATE_TORCH_DEVICE") == "cpu"


def on_xla() -> bool:
    """Whether the run computes by way of XLA: torch_xla is installed and told on what."""
    return not only_cpu() and "PJRT_DEVICE" in os.environ and is_torch_xla_available()


def join_host() -> None:
    """Where XLA computes, give this process one chip of its machine; call it before anything asks for the device."""
    if on_xla() and "PJRT_LOCAL_PROCESS_COUNT" not in os.environ:  # `xmp.spawn` has done so
        from torch_xla._internal import pjrt

        if host.local_processes() > 1:
            pjrt.initialize_multiprocess(int(os.environ["LOCAL_RANK"]), host.local_processes())
        else:  # else it would see all chips, and XLA counts each as a process
            pjrt.initialize_singleprocess()


@contextlib.contextmanager
def weights_kept() -> Iterator[None]:
    """Undo what Accelerate asks of XLA within, where it trains in bfloat16: to store every float32 as bfloat16."""
    asked = BFLOAT16 in os.environ  # by the user
    yield
    if not asked:
        os.environ.pop(BFLOAT16, None)


def model() -> Any:
    """torch_xla's functions of the device; installed only where XLA is used."""
    import torch_xla.core.xla_model as xm

    return xm


def end_step() -> None:
    """Where XLA computes, carry out what was requested since the last call, as one graph."""
    if on_xla():
        import torch_xla

        torch_xla.sync()
