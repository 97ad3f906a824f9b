"""Closed standard streams and empty variables, repaired before anything uses them. Imports no torch."""

import os
import sys
from pathlib import Path

from toolkit.system.errors import InputError

# Of launchers and libraries; an empty one means unset, which they do not all know.
PREFIXES = ("ACCELERATE_", "OMPI_COMM_", "PMI_", "MV2_COMM_", "PJRT_")
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_WORLD_SIZE")
SWITCHES = ("ACCELERATE_USE_CPU", "ACCELERATE_DEBUG_MODE")
ON_OFF = ("y", "yes", "t", "true", "on", "1", "n", "no", "f", "false", "off", "0")  # as Accelerate reads them
LOWER = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND")  # Accelerate takes BF16 for float32


def provide_streams() -> None:
    """Open the standard streams that were closed (`2>&-`, daemons), so that no other file gets their numbers."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115


def quiet_torch() -> None:
    """Make torch's C++ log errors only, unless the user chose otherwise; call it before torch is imported.

    It warns with a page of addresses when the process that serves the store of a run ends; ours is one line.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def tidy_variables() -> None:
    """Remove empty variables of launchers, and write names of precisions in lower case.

    Raises InputError for a switch that is neither on nor off.
    """
    for name, value in [*os.environ.items()]:
        if not value.strip() and (name in NAMES or name.startswith(PREFIXES)):
            del os.environ[name]
        elif name in LOWER:
            os.environ[name] = value.strip().lower()
        elif name in SWITCHES and value.strip().lower() not in ON_OFF:
            raise InputError(f"{name}={value}: must be true or false; or unset it")
