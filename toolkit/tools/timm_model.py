"""A trained model at one scale in terms of timm: the call that creates it, its preprocessing, config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import nn

MIDDLE = "ImageOps.fit(image, (min(image.size),) * 2, Image.Resampling.NEAREST)"  # code of `middle`


def middle(image: Image.Image) -> Image.Image:
    """The largest center square, not resized; timm's transform of it closely matches evaluation's preprocessing."""
    return ImageOps.fit(image, (min(image.size),) * 2, Image.Resampling.NEAREST)


@dataclass(frozen=True)
class TimmModel:
    """Arguments of `timm.create_model` besides the name (`arguments`), and the image `size`, px.

    `mean` and `std`: 3 values each, for pixels in [0, 1]. `known`: the pretrained_cfg of timm's model.
    """

    arch: str
    arguments: Mapping[str, Any]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    known: Mapping[str, Any]

    def create(self, checkpoint: Path | None = None) -> nn.Module:
        """The model in evaluation mode, created with the arguments of `call`."""
        path = {} if checkpoint is None else {"checkpoint_path": str(checkpoint)}
        return timm.create_model(self.arch, **self.arguments, **path).eval()

    def call(self, checkpoint: str) -> str:
        """Python code that creates the model and loads a file of weights."""
        given = {**self.arguments, "checkpoint_path": checkpoint}
        return f"timm.create_model({self.arch!r}, {_written(given)})"

    def transform_call(self) -> str:
        """Python code that creates `transform`."""
        return f"timm.data.create_transform({_written(self.preprocessing())})"

    def transform(self) -> Any:
        """timm's transform of a PIL image to a normalized 3 x S x S tensor."""
        return create_transform(**self.preprocessing())

    def preprocessing(self) -> dict[str, Any]:
        """Arguments of timm's transform, as close to evaluation as it allows: it resizes before the center crop."""
        return {
            "input_size": (3, self.size, self.size),
            "interpolation": "bilinear",
            "mean": self.mean,
            "std": self.std,
            "crop_pct": 1.0,
            "crop_mode": "center",
        }

    def config(self) -> dict[str, Any]:
        """config.json for timm and the Hugging Face Hub, so that the folder loads as `local-dir:` or `hf-hub:`."""
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
