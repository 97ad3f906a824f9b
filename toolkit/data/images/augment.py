"""Augmentation as a pure function of (seed, epoch, key), and the fixed box of evaluation.

The key of an image is its id; where it comes again in an epoch, another number. The random draws do not depend on
process, worker, batch or scale. All augmentation is applied once, at the largest size
of a step; smaller views are derived from the result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from toolkit.config.choices import Fit
from toolkit.data.images.counter_rng import uniforms
from toolkit.data.images.decode import Box
from toolkit.data.images.preprocess import MEAN_COLOR, part
from toolkit.data.images.seeding import seed_globals
from toolkit.data.images.transform import Transform

CROP_TRIES = 10
MOST_MAGNITUDE = 10.0  # of RandAugment
CROP_RATIO = (3 / 4, 4 / 3)
ERASED_AREA, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # as in timm
CROP_STREAM, COLOR_STREAM, ERASE_STREAM = 1, 2, 3  # separate the random draws of one sample


def seen_box(width: int, height: int, fit: Fit) -> Box:
    """The box of evaluation: the largest centered square, or the whole image."""
    return Box(*part(width, height, fit), pad=fit == "pad")


def random_resized_crops(
    widths: np.ndarray, heights: np.ndarray, smallest: float, draws: np.ndarray, fit: Fit = "crop"
) -> np.ndarray:
    """N x 4 boxes of `smallest` to 1 of the area, with aspect ratio 3/4 to 4/3 (Inception, arXiv:1409.4842).

    Where the whole image is fitted into the square, the ratio is 3/4 to 4/3 of the image's own. `draws`: N x 40 uniform
    numbers for ten tries. If no try fits, or with `smallest` = 1, the box is that of evaluation.
    """
    side = np.minimum(widths, heights)
    whole = np.stack([(widths - side) // 2, (heights - side) // 2, side, side], axis=1)
    if fit != "crop":
        whole = np.stack([0 * widths, 0 * heights, widths, heights], axis=1)
    if smallest >= 1:
        return whole
    area, shape, left, top = draws.reshape(len(draws), CROP_TRIES, 4).transpose(2, 0, 1)
    area = (widths * heights)[:, None] * (smallest + (1 - smallest) * area)
    low, high = np.log(CROP_RATIO)
    ratio = np.exp(low + (high - low) * shape)
    if fit != "crop":
        ratio = ratio * (widths / heights)[:, None]
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= widths[:, None]) & (h > 0) & (h <= heights[:, None])
    left, top = left * (widths[:, None] - w + 1), top * (heights[:, None] - h + 1)
    boxes = np.stack([left.astype(np.int64), top.astype(np.int64), w, h], axis=2)
    first = boxes[np.arange(len(boxes)), fits.argmax(1)]
    return np.where(fits.any(1)[:, None], first, whole)


def mirrored(pixels: np.ndarray) -> np.ndarray:
    """H x W x 3 pixels flipped horizontally: copying one channel at a time is 6 times as fast as all three at once."""
    turned = np.empty(pixels.shape, dtype=pixels.dtype)
    for channel in range(pixels.shape[2]):
        turned[..., channel] = pixels[:, ::-1, channel]
    return turned


@dataclass(frozen=True)
class Augmenter:
    """Random resized crop, mirror, RandAugment, color jitter and erasing, scaled by the phase's `regularization`.

    `rand_augment`: timm's magnitude, 0 to 10; `color_jitter`: largest change of brightness, contrast and saturation;
    `random_erasing`: probability. 0 disables each of the three. `transform`: the user's own, applied before them.
    """

    crop_scale: float
    hflip: bool
    seed: int
    rand_augment: float = 0.0
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    transform: Transform | None = None
    fit: Fit = "crop"

    @property
    def holds_interpreter(self) -> bool:
        """Whether it runs Python code and global random generators for each image.

        Threads would not make that faster, and their results would not be reproducible.
        """
        return self.recolors or self.transform is not None

    @property
    def recolors(self) -> bool:
        return self.rand_augment > 0 or self.color_jitter > 0

    def draw(
        self, epoch: int, keys: np.ndarray, widths: np.ndarray, heights: np.ndarray, regularization: float
    ) -> tuple[list[Box], list[bool]]:
        """The crop box of each image, and whether to mirror it."""
        draws = uniforms(self.seed, CROP_STREAM, epoch, keys, 1 + 4 * CROP_TRIES)
        smallest = max(0.0, 1 - regularization * (1 - self.crop_scale))
        sides = widths.astype(np.int64), heights.astype(np.int64)
        boxes = random_resized_crops(*sides, smallest, draws[:, 1:], self.fit)
        found = [Box(left, top, width, height, self.fit == "pad") for left, top, width, height in boxes.tolist()]
        return found, (self.hflip & (draws[:, 0] < 0.5)).tolist()

    def change(self, pixels: np.ndarray, epoch: int, key: int, regularization: float) -> np.ndarray:
        """Apply the transform, color changes and erasing to one S x S x 3 uint8 image, already cropped and mirrored."""
        if self.transform is not None:
            pixels = self.transform.apply(pixels, self.seed, epoch, key)
        if self.recolors and regularization > 0:
            pixels = self._recolor(pixels, epoch, key, regularization)
        if self.random_erasing:
            pixels = self._erase(pixels, epoch, key, self.random_erasing * regularization)
        return pixels

    def _recolor(self, pixels: np.ndarray, epoch: int, key: int, regularization: float) -> np.ndarray:
        """timm's RandAugment, then color jitter; both use the global generators, which are seeded here per image."""
        seed_globals(self.seed, COLOR_STREAM, epoch, key)
        image: Any = Image.fromarray(pixels)
        magnitude = min(self.rand_augment * regularization, MOST_MAGNITUDE)
        for transform in _color_transforms(magnitude, self.color_jitter * regularization, len(pixels)):
            image = transform(image)
        return np.array(image)

    def _erase(self, pixels: np.ndarray, epoch: int, key: int, probability: float) -> np.ndarray:
        """Replace one rectangle by noise, independent for each pixel (arXiv:1708.04896)."""
        chance, area, shape, left, top, seed = uniforms(self.seed, ERASE_STREAM, epoch, np.array([key]), 6)[0]
        if chance >= probability:
            return pixels
        size = len(pixels)
        share = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area
        low, high = np.log(ERASED_RATIO)
        ratio = np.exp(low + (high - low) * shape)
        height = min(size, max(1, round(size * np.sqrt(share * ratio))))
        width = min(size, max(1, round(size * np.sqrt(share / ratio))))
        y, x = int(top * (size - height + 1)), int(left * (size - width + 1))
        noise = np.random.default_rng(int(seed * 2**53)).integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels = pixels.copy()
        pixels[y : y + height, x : x + width] = noise
        return pixels


@lru_cache(maxsize=64)
def _color_transforms(magnitude: float, jitter: float, size: int) -> tuple[Callable[[Any], Any], ...]:
    """timm's RandAugment for images of `size` px, and torchvision's color jitter; both transform PIL images."""
    from timm.data.auto_augment import rand_augment_transform
    from torchvision.transforms import ColorJitter

    transforms: list[Callable[[Any], Any]] = []
    if magnitude:
        # Just below 10: at 10 timm posterizes to 0 bits, which Pillow rejects.
        options = {"translate_const": round(0.45 * size), "img_mean": MEAN_COLOR, "magnitude_max": 9.999}
        transform = rand_augment_transform("rand-m10-mstd0.5-inc1", options)
        for operation in transform.ops:  # the string above accepts only whole magnitudes
            operation.magnitude = magnitude
        transforms.append(transform)
    if jitter:
        transforms.append(ColorJitter(jitter, jitter, jitter))
    return tuple(transforms)
