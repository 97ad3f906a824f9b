"""A run's best model in memory, for images of any kind."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from toolkit.config.choices import Fit, GrayRange
from toolkit.config.data_roots import is_url
from toolkit.data.images.augment import seen_box
from toolkit.data.images.decode import crop_and_resize, decode, from_pil, upright
from toolkit.data.images.header import UNREADABLE, read_header, reason_of
from toolkit.data.images.preprocess import valid_orientation
from toolkit.data.images.views import normalize
from toolkit.data.sources.url_paths import read_url
from toolkit.models.source import Model
from toolkit.runs.mirror.copies import find_run
from toolkit.strategies.base import BoundTask
from toolkit.system.errors import InputError, first_line
from toolkit.system.places import expanded
from toolkit.system.result import Result
from toolkit.tools.export_model import chosen_size, one_scale
from toolkit.tools.loaded_run import load_run


@dataclass(frozen=True)
class EvalTransform:
    """An image to 3 x S x S float32 as evaluation sees it: upright, square by `fit`, antialiased resize, normalized.

    Takes a path or URL, bytes of a file, a PIL image, or an H x W x 3 uint8 array. Raises InputError if it cannot be
    read.
    """

    size: int
    mean: Tensor
    std: Tensor
    gray: GrayRange
    fit: Fit

    def __call__(self, image: Any) -> Tensor:
        pixels = self._pixels(image)
        square = crop_and_resize(pixels, seen_box(pixels.shape[1], pixels.shape[0], self.fit), self.size)
        return normalize(torch.from_numpy(square).permute(2, 0, 1)[None], self.mean, self.std)[0]

    def _pixels(self, image: Any) -> np.ndarray:
        """H x W x 3 uint8, upright."""
        name = str(image) if isinstance(image, str | Path) else f"a {type(image).__name__}"
        try:
            if isinstance(image, str | Path):
                image = read_url(name) if is_url(name) else expanded(image).read_bytes()
            if isinstance(image, bytes | bytearray | memoryview):
                image = bytes(image)
                return decode(image, orientation=read_header(io.BytesIO(image)).orientation, gray=self.gray)
            if isinstance(image, Image.Image):
                return upright(from_pil(image, self.gray), valid_orientation(image.getexif()) or 1)
        except UNREADABLE as error:
            raise InputError(f"{name} cannot be read as an image: {reason_of(error)}") from None
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            shape = f" of shape {array.shape} and type {array.dtype}" if array.ndim else ""
            raise InputError(f"{name}{shape} is no image: give a path, bytes, a PIL image or an H x W x 3 uint8 array")
        return np.require(array, requirements="W")  # torch warns of others


@dataclass(frozen=True, repr=False)
class Predictor(Result):
    """`predictor(images)` gives N x C probabilities of the `classes`; computes in float32.

    `model`: N x 3 x S x S, as `transform` makes them, to N x C logits; a plain module with the normalization of `size`.
    """

    run: Path
    model: nn.Module
    transform: EvalTransform
    classes: tuple[str, ...]
    size: int
    device: torch.device
    _task: BoundTask

    @torch.inference_mode()
    def __call__(self, images: Any) -> Tensor:
        """`images`: one image or a list of them, in any form that `transform` takes; on the CPU. Raises InputError."""
        many = images if isinstance(images, list | tuple) else [images]
        if not len(many):
            return torch.empty(0, len(self.classes))
        pixels = torch.stack([self.transform(image) for image in many]).to(self.device)
        logits = self.model(pixels.contiguous(memory_format=torch.channels_last)).float()
        return self._task.probabilities(self._task.average([logits])).cpu()

    @property
    def text(self) -> str:
        shown = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        return f"predictor of {self.run} at {self.size} px on {self.device}; {len(self.classes)} classes: {shown}"


def _device(device: str | torch.device | None) -> torch.device:
    try:
        place = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # torch raises both
        raise InputError(f"device {device}: {first_line(error)}") from None
    return place


def load(
    run: str | Path, *, size: int | None = None, device: str | torch.device | None = None, model: Model | None = None
) -> Predictor:
    """The best model of a run for predictions in memory.

    `size`, px: one that the run reports (None: the one that selected the best model). `device` None: a GPU, of any
    vendor, if there is one. `model`: as in `train`, for a run that was trained with a model of the user's own. Raises
    InputError.
    """
    place = _device(device)
    loaded = load_run(find_run(run), device=place, model=model)
    chosen = chosen_size(loaded, size, "size")
    return Predictor(
        run=loaded.directory.path,
        model=one_scale(loaded.model, chosen).eval(),
        transform=EvalTransform(
            chosen, loaded.mean.cpu(), loaded.std.cpu(), loaded.settings.range, loaded.settings.fit
        ),
        classes=loaded.classes,
        size=chosen,
        device=place,
        _task=loaded.bound_task,
    )
