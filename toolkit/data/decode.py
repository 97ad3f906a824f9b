"""From a file to a uint8 crop of a given size: simplejpeg for JPEG, PIL for the rest and for odd JPEGs."""

import io
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from toolkit.errors import InputError
from toolkit.images import resize


class Box(NamedTuple):
    """A crop, px; the origin is the upper left corner."""

    left: int
    top: int
    width: int
    height: int


def read_pixels(path: Path) -> np.ndarray:
    """The image as H x W x 3 uint8 RGB: gray is repeated, alpha dropped, palette and CMYK converted.

    Raises InputError naming file and reason.
    """
    try:
        content = path.read_bytes()
        if content[:3] == b"\xff\xd8\xff":
            try:
                return simplejpeg.decode_jpeg(content, colorspace="RGB")
            except ValueError:  # CMYK and other odd ones
                pass
        with Image.open(io.BytesIO(content)) as image:
            if image.mode == "P" and "transparency" in image.info:
                return np.array(image.convert("RGBA").convert("RGB"))
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read as an image: {reason}") from None


def crop_and_resize(pixels: np.ndarray, box: Box, size: int) -> Tensor:
    """The box of H x W x 3 pixels as 3 x size x size uint8, antialiased."""
    crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    return resize(torch.from_numpy(crop).permute(2, 0, 1)[None], size)[0]
