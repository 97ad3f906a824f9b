"""The global random generators of a process: torch, Python, NumPy, CUDA."""

import hashlib
import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


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
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    gauss, has_gauss, cached = states["gauss"].tolist()
    version, *keys = states["python"].tolist()
    random.setstate((version, tuple(keys), gauss if has_gauss else None))
    *words, position, numpy_has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, numpy_has_gauss, cached))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def seed_generators(*key: int) -> None:
    """Start this process's global generators from a key, e.g. (seed, step, rank)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    seed = int.from_bytes(digest[:4], "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(int.from_bytes(digest[4:12], "little") >> 1)
