"""Augmentation as a pure function of (seed, epoch, sample id), and the fixed crop of evaluation."""

import math
from dataclasses import dataclass

import numpy as np

from toolkit.data.decode import Box

CROP_TRIES = 10
CROP_RATIO = (3 / 4, 4 / 3)
AUGMENT_STREAM = 1  # keeps this generator apart from the one of the order


def center_square(width: int, height: int) -> Box:
    """The largest square in the middle: what evaluation sees."""
    side = min(width, height)
    return Box((width - side) // 2, (height - side) // 2, side, side)


def random_resized_crop(width: int, height: int, smallest: float, rng: np.random.Generator) -> Box:
    """A box of `smallest` to 1 of the area and 3/4 to 4/3 in shape (Inception, arXiv:1409.4842); else the middle.

    `smallest` = 1 means no random crop: the largest square in the middle, as in evaluation.
    """
    if smallest >= 1:
        return center_square(width, height)
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(smallest, 1)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h)
    return center_square(width, height)


@dataclass(frozen=True)
class Augmenter:
    """Random resized crop and mirror, scaled by the phase's strength."""

    crop_scale: float
    hflip: bool
    seed: int

    def draw(self, epoch: int, sample: int, width: int, height: int, strength: float) -> tuple[Box, bool]:
        """Where to crop, and whether to mirror: the same for any process, worker and scale."""
        rng = np.random.default_rng((self.seed, AUGMENT_STREAM, epoch, sample))
        mirror = self.hflip and bool(rng.random() < 0.5)
        smallest = 1 - strength * (1 - self.crop_scale)
        return random_resized_crop(width, height, smallest, rng), mirror
