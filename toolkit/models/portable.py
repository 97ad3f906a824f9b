"""A trained model at one scale, for use without the toolkit: code that creates it, preprocessing, config.json."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import timm
from safetensors.torch import load_file
from timm.data import create_transform
from torch import nn
from torchvision import transforms
from torchvision.transforms import v2

from toolkit.config.choices import Fit

CROP_MODES: Mapping[Fit, str] = {"crop": "center", "pad": "border", "squash": "squash"}  # of timm's transform
TIMM = "https://github.com/huggingface/pytorch-image-models"


@dataclass(frozen=True)
class PortableModel(ABC):
    """What a model card tells of a model; `arguments`: of the call that creates it, `size`: of its images, px.

    `mean` and `std`: 3 values each, for pixels in [0, 1]. `fit`: how its images become square.
    """

    start: ClassVar[str] = "random weights"  # what it was trained from, if not from timm's pretrained weights
    library: ClassVar[str]  # for the model card's front matter
    transform_of: ClassVar[str]  # the library whose transform the card compares with evaluation

    arguments: Mapping[str, Any]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    fit: Fit = field(default="crop", kw_only=True)

    @property
    @abstractmethod
    def name(self) -> str:
        """The model's name in messages."""

    @property
    @abstractmethod
    def origin(self) -> str:
        """Markdown: the name, and where it comes from."""

    @property
    def note(self) -> str:
        """A sentence on how else the exported folder loads; empty if no other way is known."""
        return ""

    @abstractmethod
    def create(self, checkpoint: Path | None = None) -> nn.Module:
        """The model in evaluation mode, created as `code` creates it; `checkpoint`: a file of weights."""

    @abstractmethod
    def code(self, checkpoint: str) -> tuple[list[str], list[str]]:
        """Lines of Python: imports, and those that create `model` with a file of weights."""

    @abstractmethod
    def transform(self) -> Any:
        """A library's transform of a PIL image to a normalized 3 x S x S tensor."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The contents of config.json."""

    def preprocessing(self) -> dict[str, Any]:
        """Arguments of timm's transform, as close to evaluation as it allows: it resizes before the center crop."""
        return {
            "input_size": (3, self.size, self.size),
            "interpolation": "bilinear",
            "mean": self.mean,
            "std": self.std,
            "crop_pct": 1.0,
            "crop_mode": CROP_MODES[self.fit],
        }


@dataclass(frozen=True)
class TimmModel(PortableModel):
    """A model that `timm.create_model` creates; `module`: the one that registers it, if it is the user's own.

    `known`: its pretrained_cfg.
    """

    library = transform_of = "timm"

    arch: str
    known: Mapping[str, Any]
    module: str = ""

    @property
    def name(self) -> str:
        return self.arch

    @property
    def origin(self) -> str:
        library = f"[timm]({TIMM})"
        return f"`{self.arch}`" + (f", which `{self.module}` adds to {library}," if self.module else f" of {library}")

    @property
    def note(self) -> str:
        local = "`timm.create_model('local-dir:FOLDER', pretrained=True)` loads this folder, too, by its config.json."
        return "" if self.module else local

    def create(self, checkpoint: Path | None = None) -> nn.Module:
        path = {} if checkpoint is None else {"checkpoint_path": str(checkpoint)}
        return timm.create_model(self.arch, **self.arguments, **path).eval()

    def call(self, checkpoint: str) -> str:
        """Python code that creates the model and loads a file of weights."""
        given = {**self.arguments, "checkpoint_path": checkpoint}
        return f"timm.create_model({self.arch!r}, {written(given)})"

    def code(self, checkpoint: str) -> tuple[list[str], list[str]]:
        registers = [f"import {self.module}  # registers {self.arch}"] if self.module else []
        return ["import timm", *registers], [f"model = {self.call(checkpoint)}.eval()"]

    def transform(self) -> Any:
        return create_transform(**self.preprocessing())

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


@dataclass(frozen=True)
class OwnModel(PortableModel):
    """A model of the user's own. `text`: module:function, or what kind of object it is; `make` creates it."""

    library, transform_of, start = "pytorch", "torchvision", "the initial weights of its code"

    text: str
    make: Callable[[], nn.Module]

    @property
    def name(self) -> str:
        return self.text

    @property
    def origin(self) -> str:
        return f"`{self.text.rpartition(' ')[2]}`"  # module:function, or the last word of: an object of module.Class

    def create(self, checkpoint: Path | None = None) -> nn.Module:
        model = self.make()
        if checkpoint is not None:
            model.load_state_dict(load_file(checkpoint))
        model.eval()
        return model

    def code(self, checkpoint: str) -> tuple[list[str], list[str]]:
        module, _, function = self.text.partition(":")
        made = f"{function}({written(self.arguments)}).eval()" if function else "..."
        note = "" if function else f"  # {self.text}, created as for the training, then .eval()"
        imports = [f"from {module} import {function}"] if function else []
        return (
            [*imports, "from safetensors.torch import load_file"],
            [f"model = {made}{note}", f"model.load_state_dict(load_file({checkpoint!r}))"],
        )

    def transform(self) -> Any:
        normalized = [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        square = transforms.CenterCrop(self.size)
        if self.fit == "crop":
            return transforms.Compose([transforms.Resize(self.size), square, *normalized])
        if self.fit == "squash":
            return transforms.Compose([transforms.Resize((self.size, self.size)), *normalized])
        return transforms.Compose([v2.Resize(None, max_size=self.size), *normalized, square])  # pads with 0, the mean

    def config(self) -> dict[str, Any]:
        """config.json: how to create the model, its classes, and its preprocessing."""
        return {
            "model_from": self.text,
            "arguments": dict(self.arguments),
            "num_classes": len(self.classes),
            "label_names": self.classes,
            "preprocessing": self.preprocessing(),
        }


def written(arguments: Mapping[str, Any]) -> str:
    """Arguments of a call as Python code."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
