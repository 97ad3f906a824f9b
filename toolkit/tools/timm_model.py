"""A trained model at one scale as plain timm describes it: the call that builds it, its preprocessing, config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import nn

MIDDLE = "ImageOps.fit(image, (min(image.size),) * 2, Image.Resampling.NEAREST)"  # what `middle` does


def middle(image: Image.Image) -> Image.Image:
    """The largest square in the middle, not resized: timm's transform of it is what evaluation sees, nearly."""
    return ImageOps.fit(image, (min(image.size),) * 2, Image.Resampling.NEAREST)


@dataclass(frozen=True)
class TimmModel:
    """`arguments` are those of `timm.create_model` beside the name; images are `size` px; `known` is what timm knows.

    `mean` and `std`: 3 values each, for pixels in [0, 1].
    """

    arch: str
    arguments: Mapping[str, Any]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    known: Mapping[str, Any]

    def create(self, checkpoint: Path | None = None) -> nn.Module:
        """The model in evaluation mode, made as `call` says."""
        path = {} if checkpoint is None else {"checkpoint_path": str(checkpoint)}
        return timm.create_model(self.arch, **self.arguments, **path).eval()

    def call(self, checkpoint: str) -> str:
        """The Python text that loads a file of weights."""
        given = {**self.arguments, "checkpoint_path": checkpoint}
        return f"timm.create_model({self.arch!r}, {_written(given)})"

    def transform_call(self) -> str:
        """The Python text that makes `transform`."""
        return f"timm.data.create_transform({_written(self.preprocessing())})"

    def transform(self) -> Any:
        """From a PIL image to normalized 3 x S x S."""
        return create_transform(**self.preprocessing())

    def preprocessing(self) -> dict[str, Any]:
        """As near to evaluation as timm comes: it resizes, then cuts out the square in the middle."""
        return {
            "input_size": (3, self.size, self.size),
            "interpolation": "bilinear",
            "mean": self.mean,
            "std": self.std,
            "crop_pct": 1.0,
            "crop_mode": "center",
        }

    def config(self) -> dict[str, Any]:
        """config.json as timm and the Hugging Face hub read it: the folder loads as `local-dir:` or `hf-hub:`."""
        kept = {name: self.known[name] for name in ("first_conv", "classifier") if name in self.known}
        count = len(self.classes)
        return {
            "architecture": self.arch.partition(".")[0],
            "num_classes": count,
            "label_names": self.classes,
            "model_args": {name: value for name, value in self.arguments.items() if name != "num_classes"},
            "pretrained_cfg": {**self.preprocessing(), "num_classes": count, **kept},
        }


def _written(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
