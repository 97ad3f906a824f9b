"""A model that takes images of any size: its graph holds the crop, the resize and the normalization of evaluation."""

import torch
from torch import Tensor, nn

from toolkit.data.images.preprocess import MOST_BITS, MOST_WEIGHT


class Uint8Input(nn.Module):
    """H x W x 3 uint8 RGB, upright, to 1 x C logits; gives the pixels of `preprocess.py` to the bit.

    A resize is a product of matrices: of the image, and of integer weights that depend on its size. float64 holds all
    sums exactly. Places outside of the centered square weigh nothing.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model, self.size = model, size
        means, stds = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
        self.register_buffer("scale", 1 / (255 * stds))
        self.register_buffer("shift", -means / stds)

    def forward(self, image: Tensor) -> Tensor:
        rows, columns = (torch.arange(length, dtype=torch.float64) for length in image.shape[:2])
        side = torch.minimum(rows[-1], columns[-1]) + 1
        pixels = image.permute(2, 0, 1).double()
        for places in (columns, rows):
            pixels = self._resize(pixels, places, side).transpose(1, 2)
        return self.model((pixels.float() * self.scale + self.shift)[None])

    def _resize(self, pixels: Tensor, places: Tensor, side: Tensor) -> Tensor:
        """The last axis of 3 x A x B pixels cropped to `side` in the middle, and resized; values of 0 ... 255."""
        inside = places - torch.floor((places[-1] + 1 - side) / 2)
        step = side / self.size
        centers = step * (torch.arange(self.size, dtype=torch.float64) + 0.5)
        reach = step.clamp(min=1.0)
        triangle = (1 - ((inside - centers[:, None] + 0.5) * (1 / reach)).abs()).clamp(min=0.0)
        triangle = triangle * ((inside >= 0) & (inside < side))
        weights = triangle / triangle.sum(1, keepdim=True)
        exponents = torch.arange(1, MOST_BITS + 1, dtype=torch.float64)
        bits = (torch.floor(0.5 + weights.max() * 2**exponents) < MOST_WEIGHT).double().sum()
        whole = torch.floor(weights * 2.0**bits + 0.5)
        return torch.floor((pixels @ whole.T + 2.0 ** (bits - 1)) / 2.0**bits).clamp(max=255.0)
