"""Compares the logits of an exported file with those of the run's own model."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Say = Callable[[Tensor], Tensor]  # N x 3 x S x S -> N x C


@dataclass(frozen=True)
class Difference:
    """How a file's logits differ from the run's, over `images` images.

    `largest`: absolute difference of a logit. `relative`: the largest difference divided by 1 + the largest absolute
    logit of its image. `same`: images with the same top-1.
    """

    images: int
    largest: float
    relative: float
    same: int

    def within(self, tolerance: float) -> bool:
        """Whether each difference is at most `tolerance` * (1 + largest logit of the image), with the same top-1."""
        return self.relative <= tolerance and self.same == self.images  # a NaN is not `<=`

    def __str__(self) -> str:
        return (
            f"its logits differ by {self.largest:.2g} at most, {self.relative:.2g} x (1 + the image's largest logit); "
            f"{self.same} of {self.images} images have the same top-1"
        )


@torch.no_grad()
def answer(say: Say, pixels: Tensor) -> Tensor:
    """N x C logits, computed in batches of 1, 5 and the rest."""
    return torch.cat([say(part) for part in (pixels[:1], pixels[1:6], pixels[6:]) if len(part)])


def compare(logits: Tensor, expected: Tensor) -> Difference:
    """The difference of N x C logits from the expected ones."""
    differences = (logits - expected).abs().amax(1)
    reached = expected.gather(1, logits.argmax(1, keepdim=True)).squeeze(1)
    return Difference(
        images=len(expected),
        largest=float(differences.max()),
        relative=float((differences / (1 + expected.abs().amax(1))).max()),
        same=int((reached == expected.amax(1)).sum()),  # several classes may share the largest logit
    )
