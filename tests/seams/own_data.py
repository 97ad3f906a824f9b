"""A map-style data set of one's own, drawn on request in many sizes: python own_data.py OUTPUT trains on it."""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toolkit import Settings, SingleScale, train


class Stripes:
    classes, shades = ("plain", "narrow", "wide"), 40

    def __init__(self, count: int, seed: int) -> None:
        self.seed, self.targets = seed, [i % 3 for i in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        rng, label = np.random.default_rng((self.seed, i)), self.targets[i]
        pixels = rng.integers(0, 100, (*rng.integers(20, 40, 2), 3), dtype=np.uint8)
        pixels[(np.arange(len(pixels)) // max(1, 2 * label)) % 2 < (label > 0)] += 100
        pixels += random.randrange(self.shades)  # as the transforms of torchvision draw
        return (Image.fromarray(pixels) if i % 2 else pixels), label


DATA = {"train": Stripes(96, 0), "val": Stripes(12, 1), "test": Stripes(9, 2)}


def start(output: Path, data: Any = DATA, **settings: Any) -> dict[str, Any]:
    usual = {"arch": "test_resnet", "epochs": 3, "batch_size": 12, "num_workers": 2, "record_samples": True}
    return train(Settings(output_dir=output, log_with="none", **{**usual, **settings}), SingleScale(24), data=data)


if __name__ == "__main__":
    __import__("own_data").start(Path(sys.argv[1]))  # whose classes have their module's name
