"""MixUp and CutMix: drawn per pair, applied on the device to a whole batch at once.

The partner of an image is its neighbor in the global batch, at position XOR 1. Micro-batches are contiguous and of even
size, so pairs never cross processes. The weight depends on (seed, epoch, key of the pair's first image).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toolkit.data.images.counter_rng import words

MIX_STREAM = 4


@dataclass(frozen=True)
class Mixer:
    """Beta(alpha, alpha) weights for MixUp (arXiv:1710.09412) and CutMix (arXiv:1905.04899); 0 disables one.

    If both are enabled, each pair uses one of the two at random.
    """

    mixup: float
    cutmix: float
    seed: int

    def draw(self, epoch: int, keys: np.ndarray, regularization: float) -> Tensor | None:
        """N x 5 float32 for N images: weight of the image itself, and the box of its partner; `keys`: of the images.

        The box is left, top, right, bottom as fractions of the side; it is empty for MixUp. Returns None if nothing is
        mixed. The phase's `regularization` scales alpha.
        """
        alphas = [alpha * regularization for alpha in (self.mixup, self.cutmix)]
        if not any(alphas):
            return None
        rows = [self._pair(alphas, key) for key in words(self.seed, MIX_STREAM, epoch, keys[::2], 1)[:, 0].tolist()]
        return torch.tensor(np.repeat(np.array(rows, dtype=np.float32), 2, axis=0))

    @staticmethod
    def _pair(alphas: list[float], key: int) -> tuple[float, float, float, float, float]:
        rng = np.random.default_rng(key)
        cut = bool(rng.random() < 0.5) if all(alphas) else not alphas[0]
        own = float(rng.beta(alphas[cut], alphas[cut]))
        if not cut:
            return own, 0.0, 0.0, 0.0, 0.0
        half, x, y = np.sqrt(1 - own) / 2, rng.random(), rng.random()
        return own, max(0.0, x - half), max(0.0, y - half), min(1.0, x + half), min(1.0, y + half)


def mix(images: Tensor, targets: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Mixed uint8 N x 3 x S x S, and mixed N x C targets; `drawn`: N x 5 as from Mixer.draw, on the device."""
    size = images.shape[-1]
    own, box = drawn[:, 0], torch.round(drawn[:, 1:] * size)
    partner = images.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    grid = torch.arange(size, device=images.device)
    inside_x = (grid >= box[:, 0:1]) & (grid < box[:, 2:3])
    inside_y = (grid >= box[:, 1:2]) & (grid < box[:, 3:4])
    inside = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]  # N x 1 x S x S
    cut = drawn[:, 3] > 0
    share = torch.where(cut, 1 - inside.sum((1, 2, 3)) / size**2, own)  # weight of the image itself, exact to the pixel
    blended = torch.lerp(partner.float(), images.float(), share[:, None, None, None]).round().to(torch.uint8)
    mixed = torch.where(cut[:, None, None, None], torch.where(inside, partner, images), blended)
    others = targets.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return mixed.contiguous(memory_format=torch.channels_last), torch.lerp(others, targets, share[:, None])
