"""A model that takes images of any size: its graph makes them square as evaluation does, resizes and normalizes."""

import torch
from torch import Tensor, nn

from toolkit.config.choices import Fit
from toolkit.data.images.preprocess import MEAN_COLOR, MOST_BITS, MOST_WEIGHT


class Uint8Input(nn.Module):
    """H x W x 3 uint8 RGB, upright, to 1 x C logits; gives the pixels of `preprocess.py` to the bit.

    A resize is a product of matrices: of the image, and of integer weights that depend on its size. float64 holds all
    sums exactly. Places outside of the centered square weigh nothing.
    """

    scale: Tensor
    shift: Tensor
    border: Tensor

    def __init__(
        self, model: nn.Module, size: int, mean: tuple[float, ...], std: tuple[float, ...], fit: Fit = "crop"
    ) -> None:
        super().__init__()
        self.model, self.size, self.fit = model, size, fit
        means, stds = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
        self.register_buffer("scale", 1 / (255 * stds))
        self.register_buffer("shift", -means / stds)
        if fit == "pad":
            self.register_buffer("border", torch.tensor(MEAN_COLOR, dtype=torch.float64)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        rows, columns = (torch.arange(length, dtype=torch.float64) for length in image.shape[:2])
        pixels = image.permute(2, 0, 1).double()
        square = {"crop": self._cropped, "pad": self._padded, "squash": self._squashed}[self.fit]
        return self.model((square(pixels, rows, columns).float() * self.scale + self.shift)[None])

    def _cropped(self, pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The centered square of 3 x H x W pixels."""
        side = torch.minimum(rows[-1], columns[-1]) + 1
        for places in (columns, rows):
            inside = places - torch.floor((places[-1] + 1 - side) / 2)
            pixels = self._resize(pixels, inside, side, side / self.size).transpose(1, 2)
        return pixels

    def _squashed(self, pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        for places in (columns, rows):
            side = places[-1] + 1
            pixels = self._resize(pixels, places, side, side / self.size).transpose(1, 2)
        return pixels

    def _padded(self, pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """3 x H x W pixels in the middle of a square of the mean color."""
        longer, covered = torch.maximum(rows[-1], columns[-1]) + 1, []
        for places in (columns, rows):
            side = places[-1] + 1
            taken = torch.floor((2 * side * self.size + longer) / (2 * longer)).clamp(min=1.0)
            targets = torch.arange(self.size, dtype=torch.float64) - torch.floor((self.size - taken) / 2)
            covered += [(targets >= 0) & (targets < taken)]
            targets = torch.minimum(targets.clamp(min=0.0), taken - 1)  # the edge is repeated, and covered by the color
            pixels = self._resize(pixels, places, side, side / taken, targets).transpose(1, 2)
        return torch.where(covered[1][:, None] & covered[0], pixels, self.border)

    def _resize(
        self, pixels: Tensor, inside: Tensor, side: Tensor, step: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        """The last axis of 3 x A x B pixels resized; values of 0 ... 255.

        `inside`: the place of each of the B in the `side` places that are kept, `step` of which make a target.
        """
        centers = step * ((torch.arange(self.size, dtype=torch.float64) if targets is None else targets) + 0.5)
        reach = step.clamp(min=1.0)
        triangle = (1 - ((inside - centers[:, None] + 0.5) * (1 / reach)).abs()).clamp(min=0.0)
        triangle = triangle * ((inside >= 0) & (inside < side))
        weights = triangle / triangle.sum(1, keepdim=True)
        exponents = torch.arange(1, MOST_BITS + 1, dtype=torch.float64)
        bits = (torch.floor(0.5 + weights.max() * 2**exponents) < MOST_WEIGHT).double().sum()
        whole = torch.floor(weights * 2.0**bits + 0.5)
        return torch.floor((pixels @ whole.T + 2.0 ** (bits - 1)) / 2.0**bits).clamp(max=255.0)
