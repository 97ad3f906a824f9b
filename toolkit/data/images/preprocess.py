"""From an image file to the input of the network, with the pixels that the run was evaluated on.

Needs only NumPy and Pillow. An export holds a copy of this file beside config.json:

    prepare = Preprocess.load("FOLDER")
    pixels = prepare(Path("photo.jpg").read_bytes())  # 1 x 3 x S x S float32; ValueError if it is no image

EXIF orientation is applied. Gray is repeated to three channels, palettes are expanded, CMYK is converted to RGB. Alpha
is dropped; the colors under it are kept. Gray of more than 8 bits is mapped to 8 bits. The first frame of an animation
is used. Then the largest centered square is resized in uint8, bilinear and antialiased; or the whole image is, so that
it fits into the square, the rest of which has the mean color of ImageNet (fit: pad), or fills it (fit: squash).
"""

import contextlib
import importlib
import io
import json
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

# The only formats tried, by PIL's names: others run programs (EPS calls Ghostscript) or hold no plain images. AVIF
# needs Pillow 11.3, HEIF pillow-heif. TGA is last: it has no signature, so that other content could pass for it.
FORMATS = (
    *("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "QOI", "PCX", "SGI", "SUN", "HEIF"),
    "TGA",
)
ORIENTATION = 0x0112  # the EXIF tag
MIRRORED, UPSIDE_DOWN = (2, 3, 6, 7), (3, 4, 7, 8)  # EXIF orientations; applied after transposing 5 ... 8
# Errors that PIL raises on invalid or truncated images; found by flipping bits in files of every format.
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    ArithmeticError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
AS_STORED: Final = "16bit"  # the default of --range
PERCENTILES = (0.5, 99.5)
REMEDY = "training with --range minmax or percentile maps each image by its own"
# ImageNet's mean, which normalizes to about 0; the same for all models, so that images do not depend on the model.
MEAN_COLOR = (124, 116, 104)
MOST_BITS, MOST_WEIGHT = 22, 2**15  # weights of a resize are integers below 2^15, with at most 22 fractional bits


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of one model.

    `size`: of its images, px; `mean` and `std`: 3 values each, for pixels in [0, 1]; `gray`: how gray of more than 8
    bits becomes 8, as --range of the training; `fit`: how images become square, as --fit of the training.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gray: str = AS_STORED
    fit: str = "crop"

    @classmethod
    def load(cls, folder: str | Path) -> "Preprocess":
        """The preprocessing of the export in a folder."""
        return cls(**json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["preprocess"])

    def __call__(self, content: bytes) -> np.ndarray:
        """1 x 3 x S x S float32 from the bytes of an image file; raises ValueError if they are no image."""
        return self.normalize(self.square(content))

    def square(self, content: bytes) -> np.ndarray:
        """S x S x 3 uint8 from the bytes of an image file; raises ValueError if they are no image."""
        pixels = read(content, self.gray)
        left, top, width, height = part(pixels.shape[1], pixels.shape[0], self.fit)
        pixels = pixels[top : top + height, left : left + width]
        if self.fit == "pad":
            return padded(resize(pixels, *fitting(width, height, self.size)), self.size)
        return resize(pixels, self.size, self.size)

    def normalize(self, square: np.ndarray) -> np.ndarray:
        """1 x 3 x S x S float32 from S x S x 3 uint8."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        pixels = square.astype(np.float32) * (1 / (255 * std)) - mean / std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def read(content: bytes, gray: str = AS_STORED) -> np.ndarray:
    """The upright image of a file, H x W x 3 uint8 RGB; raises ValueError if it cannot be read."""
    try:
        with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            turned = orientation_of(image) or 1
            return upright(to_rgb(image, gray), turned)
    except Image.UnidentifiedImageError:
        raise ValueError("the content is no image in a known format") from None
    except UNREADABLE as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


@cache
def readable_formats() -> tuple[str, ...]:
    """Those of FORMATS that are read here."""
    Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(form for form in FORMATS if form in Image.OPEN)


def orientation_of(image: Image.Image) -> int | None:
    """Orientation from EXIF, else from XMP; only from data before the pixels. None if there is none, 1 if invalid."""
    if image.format == "TIFF":  # PIL turns it upright
        return None
    try:
        return valid_orientation(Image.Image.getexif(image))  # PNG's own getexif would decode the pixels
    except UNREADABLE:
        return None


def valid_orientation(exif: Image.Exif) -> int | None:
    """The EXIF orientation; None if there is none, 1 if it is invalid."""
    value = exif.get(ORIENTATION)
    return value if value is None or value in range(1, 9) else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation; returns a view, without a copy."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in MIRRORED:
        pixels = pixels[:, ::-1]
    if orientation in UPSIDE_DOWN:
        pixels = pixels[::-1]
    return pixels


def to_rgb(image: Image.Image, gray: str = AS_STORED) -> np.ndarray:
    """The pixels of a PIL image as stored, H x W x 3 uint8 RGB; raises ValueError, or the errors of PIL."""
    if is_deep(image.mode):
        return np.repeat(to_bytes(image, gray)[..., None], 3, axis=-1)
    if image.mode == "P" and "transparency" in image.info:
        return np.array(image.convert("RGBA").convert("RGB"))
    return np.array(image.convert("RGB"))


def is_deep(mode: str) -> bool:
    """Whether PIL's mode is one of gray of more than 8 bits."""
    return mode.startswith("I") or mode == "F"


def to_bytes(image: Image.Image, gray: str) -> np.ndarray:
    """H x W uint8 of an image in such a mode; raises ValueError if its range is unknown, or the errors of PIL."""
    values = np.array(image)
    mapped = _by_type(values, image) if gray == AS_STORED else _by_own_range(values, gray)
    return 255 - mapped if _white_is_zero(image) else mapped


def _by_type(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """65535 becomes 255; in a TIFF, the most that its bits hold; of float pixels, 1."""
    if np.issubdtype(values.dtype, np.floating):
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # also true for a NaN
            raise ValueError(f"float pixels from {low:g} to {high:g}: they must lie in [0, 1]; {REMEDY}")
        return np.round(values * 255).astype(np.uint8)
    if values.dtype.itemsize == 2 or image.format == "PPM":  # PIL scales a PPM up to 16 bits
        return (values.astype(np.uint32) * 255 // (2 ** _bits(image) - 1)).astype(np.uint8)
    raise ValueError(f"integer pixels of more than 16 bits or with a sign: their range is unknown; {REMEDY}")


def _by_own_range(values: np.ndarray, gray: str) -> np.ndarray:
    """The range of the image's own pixels becomes 0 ... 255; black if all are the same."""
    if not np.isfinite(values).all():
        raise ValueError("float pixels that are infinite or not a number")
    exact = values.astype(np.float64)
    low, high = np.percentile(exact, PERCENTILES) if gray == "percentile" else (exact.min(), exact.max())
    shares = (exact - low) / (high - low) if high > low else np.zeros_like(exact)
    return np.rint(255 * shares.clip(0, 1)).astype(np.uint8)


def _bits(image: Image.Image) -> int:
    """Bits per pixel of an image that PIL reads into 16 bits; PIL scales up all formats but TIFF."""
    return int(image.tag_v2.get(BITSPERSAMPLE, (16,))[0]) if isinstance(image, TiffImageFile) else 16


def _white_is_zero(image: Image.Image) -> bool:
    """Whether the caller has to invert black and white; PIL itself inverts only images of 8 bits."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def part(width: int, height: int, fit: str) -> tuple[int, int, int, int]:
    """Left, top, width and height of what a fit shows of an image: the largest centered square, or all of it."""
    if fit != "crop":
        return 0, 0, width, height
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def fitting(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height at which an image of this shape just fits into size x size, in whole pixels, at least 1."""
    longer = max(width, height)
    across, down = (max(1, (2 * side * size + longer) // (2 * longer)) for side in (width, height))
    return across, down


def padded(pixels: np.ndarray, size: int) -> np.ndarray:
    """The pixels in the middle of a size x size square of the mean color; themselves if they fill it."""
    height, width = pixels.shape[:2]
    if height == width == size:
        return pixels
    square = np.empty((size, size, 3), np.uint8)
    square[...] = MEAN_COLOR
    left, top = (size - width) // 2, (size - height) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """H x W x 3 uint8 pixels at another size: columns, then rows. Equal to PyTorch's resize of uint8 to the bit."""
    return _resize_rows(_resize_rows(pixels.swapaxes(0, 1), width).swapaxes(0, 1), height)


def _resize_rows(pixels: np.ndarray, size: int) -> np.ndarray:
    """Each of `size` rows is a weighted mean of those around its center, in integers."""
    if len(pixels) == size:
        return pixels
    scale = len(pixels) / size
    reach = max(scale, 1.0)  # px on either side of a center
    centers = scale * (np.arange(size) + 0.5)
    first = np.maximum(np.floor(centers - reach + 0.5), 0).astype(int)
    end = np.minimum(np.floor(centers + reach + 0.5), len(pixels)).astype(int)
    parts = []
    for center, a, b in zip(centers, first, end, strict=True):
        triangle = np.maximum(0, 1 - np.abs((np.arange(a, b) - center + 0.5) * (1 / reach)))
        parts.append(triangle / triangle.sum())
    largest = max(part.max() for part in parts)
    # As many fractional bits as the largest weight allows.
    bits = sum(np.floor(0.5 + largest * 2.0 ** (n + 1)) < MOST_WEIGHT for n in range(MOST_BITS))
    rows = np.empty((size, *pixels.shape[1:]), np.uint8)
    for row, part, a, b in zip(rows, parts, first, end, strict=True):
        total = np.tensordot(np.floor(part * 2.0**bits + 0.5), pixels[a:b], 1)  # exact: far below 2^53
        row[...] = np.minimum((total + 2.0 ** (bits - 1)) // 2.0**bits, 255)
    return rows
