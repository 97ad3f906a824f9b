"""The global random generators of a process: torch, Python, NumPy, and that of the device."""

import hashlib
import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from toolkit.models import xla


def generator_state() -> dict[str, Tensor]:
    """The states of this process's global generators."""
    version, keys, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *keys], dtype=torch.int64),
        "numpy": torch.tensor(
            [*legacy["state"]["key"].tolist(), legacy["state"]["pos"], legacy["has_gauss"]], dtype=torch.int64
        ),
        "gauss": torch.tensor([gauss or 0.0, float(gauss is not None), legacy["gauss"]], dtype=torch.float64),
    }
    if (kind := _accelerator()) is not None:
        states[kind] = torch.get_device_module(kind).get_rng_state()
    if xla.on_xla():
        states["xla"] = torch.tensor(xla.model().get_rng_state(), dtype=torch.uint64)
    return states


def restore_generators(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    gauss, has_gauss, cached = states["gauss"].tolist()
    version, *keys = states["python"].tolist()
    random.setstate((version, tuple(keys), gauss if has_gauss else None))
    *words, position, numpy_has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, numpy_has_gauss, cached))
    if (kind := _accelerator()) is not None and kind in states:
        torch.get_device_module(kind).set_rng_state(states[kind])
    if "xla" in states and xla.on_xla():
        xla.model().set_rng_state(int(states["xla"].numpy()))


def seed_generators(*key: int) -> None:
    """Start this process's global generators from a key, e.g. (seed, step, rank)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    seed = int.from_bytes(digest[:4], "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(int.from_bytes(digest[4:12], "little") >> 1)
    if xla.on_xla():
        xla.model().set_rng_state(seed)


def _accelerator() -> str | None:
    """The kind of GPU, "cuda" for example, whose generator `torch.manual_seed` seeds too; None without one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type
