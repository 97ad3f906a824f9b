"""The global random generators of a process: torch's, also of its device, Python's and NumPy's."""

import hashlib
import random
from functools import cache

import numpy as np
import torch

from toolkit.models import xla


def seed_generators(*key: int) -> None:
    """Start them from a key, e.g. (seed, step, rank): what draws from them next is a pure function of it."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    seed, long_seed = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:12], "little") >> 1
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(long_seed)  # torch.manual_seed takes 100 us
    if (kind := _accelerator()) is not None:
        torch.get_device_module(kind).manual_seed(long_seed)
    if xla.on_xla():
        xla.model().set_rng_state(seed)


@cache
def _accelerator() -> str | None:
    """The kind of GPU, "cuda" for example; None without one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type
