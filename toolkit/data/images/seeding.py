"""Start the global generators for one image, so that code which draws from them is a pure function of its key."""

import random

import numpy as np
import torch

from toolkit.data.images.counter_rng import words

READ_STREAM, TRANSFORM_STREAM = 5, 6  # beside those of augmentation and mixing


def seed_globals(seed: int, stream: int, epoch: int, key: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, on the CPU; `stream` separates uses with the same keys."""
    keys = words(seed, stream, epoch, np.array([key]), 3)[0].tolist()
    random.seed(keys[0])
    np.random.seed(keys[1] & 0xFFFFFFFF)
    torch.default_generator.manual_seed(keys[2] & 0x7FFFFFFFFFFFFFFF)  # torch.manual_seed takes 100 us
