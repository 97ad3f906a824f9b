"""Batches of images on the device: normalisation and the views at each size. Pure functions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bilinear resize of N x C x H x W, uint8 or float, to size x size px."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 N x C x H x W to float32 of zero mean and unit deviation; mean and std: C values, for pixels in [0, 1]."""
    return (images.float() / 255 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


def views(images: Tensor, sizes: Sequence[int], mean: Tensor, std: Tensor) -> tuple[Tensor, ...]:
    """The batch at each size, normalised; each view is derived from the full images, never from another view."""
    pixels = normalise(images, mean, std)
    return tuple(resize(pixels, size).contiguous(memory_format=torch.channels_last) for size in sizes)
