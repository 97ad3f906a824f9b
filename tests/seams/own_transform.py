"""Transforms of one's own: python own_transform.py OUTPUT trains with one of them."""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

from toolkit import Settings, SingleScale, train

TORCHVISION = v2.Compose([v2.RandomRotation(20), v2.RandomPhotometricDistort(), v2.RandomErasing(p=0.5)])


def blocks(pixels: np.ndarray) -> np.ndarray:
    """Draws from all three generators, and changes what it is given."""
    row, column = random.randrange(len(pixels)), np.random.randint(len(pixels))
    pixels[row:, column:] = 255 - pixels[row:, column:]
    pixels[:row, :column] //= 1 + int(torch.randint(3, ()))
    return pixels


def start(output: Path, **more: Any) -> dict[str, Any]:
    usual = {"synthetic_size": 32, "synthetic_count": 96, "batch_size": 12, "epochs": 3, "record_samples": True}
    named = {name: more.pop(name) for name in ("transform",) if name in more}
    settings = Settings(output_dir=output, log_with="none", **{**usual, "num_workers": 2, **more})
    return train(settings, SingleScale(24), **named)


if __name__ == "__main__":
    start(Path(sys.argv[1]), transform="own_transform:TORCHVISION")
