"""From a file's bytes to a uint8 crop of a given size: simplejpeg for JPEG, PIL for the rest and for odd JPEGs.

Rules: EXIF orientation is applied. Gray is repeated; palettes are looked up; CMYK is converted; alpha is dropped, the
colours under it stay. 16-bit gray is divided by 257; float pixels must lie in [0, 1]; longer or signed integers, whose
range nobody knows, are refused. Of an animation the first frame counts.
"""

import io
import warnings
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image

from toolkit.data.header import MAX_PIXELS, UNREADABLE, reason_of

SCALES = (4, 2)  # denominators of scaled JPEG decoding that pay; 3/8 ... 7/8 are slower than decoding in full
MARGIN = 2  # a scaled crop stays at least so many times the target: 42-46 dB against decoding in full


class Box(NamedTuple):
    """A crop, px; the origin is the upper left corner."""

    left: int
    top: int
    width: int
    height: int


def decode(
    content: bytes, box: Box | None = None, size: int | None = None, orientation: int = 1, scaled: bool = False
) -> np.ndarray:
    """The box of an upright image as size x size x 3 uint8 RGB, antialiased; without box and size all of it.

    `orientation` is EXIF's, as the header tells it. `scaled` lets a JPEG be decoded at 1/2 or 1/4 where the box is
    still at least twice the target. Raises ValueError with the reason.
    """
    denominator = _denominator(box, size) if scaled and box is not None and size is not None else 1
    pixels, denominator = read_pixels(content, denominator)
    pixels = upright(pixels, orientation)
    return pixels if box is None or size is None else crop_and_resize(pixels, _shrunk(box, denominator), size)


def _denominator(box: Box, size: int) -> int:
    return next((d for d in SCALES if min(box.width, box.height) >= MARGIN * size * d), 1)


def _shrunk(box: Box, denominator: int) -> Box:
    """The same box in an image of 1/denominator the size: all of the pixels that it touches."""
    if denominator == 1:
        return box
    left, top = box.left // denominator, box.top // denominator
    right, bottom = -(-(box.left + box.width) // denominator), -(-(box.top + box.height) // denominator)
    return Box(left, top, right - left, bottom - top)


def read_pixels(content: bytes, denominator: int = 1) -> tuple[np.ndarray, int]:
    """The image as stored, H x W x 3 uint8 RGB, at 1/denominator of its size, and the denominator really used."""
    try:
        pixels = _decode_jpeg(content, denominator) if content[:3] == b"\xff\xd8\xff" else None
        return (_read_by_pil(content), 1) if pixels is None else (pixels, denominator)
    except UNREADABLE as error:
        raise ValueError(reason_of(error)) from None


def _decode_jpeg(content: bytes, denominator: int) -> np.ndarray | None:
    """None where simplejpeg finds fault or CMYK; PIL then has the last word."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours == "CMYK":
            return None
        if height * width <= MAX_PIXELS:
            least = {"min_height": -(-height // denominator), "min_width": -(-width // denominator)}
            return simplejpeg.decode_jpeg(content, "RGB", min_factor=denominator, **least)
    except (ValueError, KeyError):  # a KeyError where the header itself is broken
        return None
    raise ValueError(f"{width} x {height} px, more than {MAX_PIXELS / 1e6:.0f} megapixels")


def _read_by_pil(content: bytes) -> np.ndarray:
    if not content:
        raise ValueError("the file is empty")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # MAX_PIXELS is where PIL raises; the rest is told by errors
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith("I") or image.mode == "F":
                return _to_bytes(np.array(image))
            if image.mode == "P" and "transparency" in image.info:
                return np.array(image.convert("RGBA").convert("RGB"))
            return np.array(image.convert("RGB"))


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Gray of more than 8 bits as H x W x 3 uint8; raises ValueError where its range is unknown."""
    if np.issubdtype(values.dtype, np.floating):
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # also where there is a NaN
            raise ValueError(f"float pixels from {low:g} to {high:g}: they must lie in [0, 1]")
        gray = np.round(values * 255)
    elif values.dtype.itemsize == 2:
        gray = values // 257
    else:
        raise ValueError("integer pixels of more than 16 bits or with a sign: their range is unknown")
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=-1)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation; a view, nothing is copied."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def crop_and_resize(pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
    """The box of H x W x 3 uint8 pixels as size x size x 3, antialiased; raises ValueError where it does not fit."""
    if box.left + box.width > pixels.shape[1] or box.top + box.height > pixels.shape[0]:
        raise ValueError(f"is now {pixels.shape[1]} x {pixels.shape[0]} px, smaller than it was indexed")
    return resize_to(pixels[box.top : box.top + box.height, box.left : box.left + box.width], size, size)


def reduce_to(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """H x W x 3 uint8 made smaller, to be kept and resized again: what is finer than twice the new pixels is all there.

    A bilinear filter here would damp what the second one then shows: training would see other images than evaluation.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def resize_to(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """H x W x 3 uint8 resized, bilinear and antialiased, in uint8: 3-4 times as fast as PIL."""
    pixels = np.ascontiguousarray(pixels)
    if pixels.shape[:2] == (height, width):
        return pixels
    # Shapes are changed by NumPy: at each call torch lets go of the interpreter, and waits for it among other threads.
    batch = torch.from_numpy(pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2))
    # what F.interpolate calls in the end; its checks would take as long as a small resize, and hold the interpreter
    return torch.ops.aten._upsample_bilinear2d_aa(batch, [height, width], False).numpy()[0].transpose(1, 2, 0)
