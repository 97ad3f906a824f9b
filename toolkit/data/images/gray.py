"""Gray of more than 8 bits as 8 bits: 16-bit and longer integers, floats."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from toolkit.config.choices import GrayRange
from toolkit.data.images.header import UNREADABLE, open_image, reason_of

AS_STORED: GrayRange = "16bit"
PERCENTILES = (0.5, 99.5)
FEW_LEVELS = 32
REMEDY = "training with --range minmax or percentile maps each image by its own"


def is_deep(mode: str) -> bool:
    """Whether PIL's mode is one of gray of more than 8 bits."""
    return mode.startswith("I") or mode == "F"


def to_bytes(image: Image.Image, gray: GrayRange) -> np.ndarray:
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


def _by_own_range(values: np.ndarray, gray: GrayRange) -> np.ndarray:
    """The range of the image's own pixels becomes 0 ... 255; black if all are the same."""
    if not np.isfinite(values).all():
        raise ValueError("float pixels that are infinite or not a number")
    exact = values.astype(np.float64)
    low, high = np.percentile(exact, PERCENTILES) if gray == "percentile" else (exact.min(), exact.max())
    shares = (exact - low) / (high - low) if high > low else np.zeros_like(exact)
    return np.rint(255 * shares.clip(0, 1)).astype(np.uint8)


def mapping_code(gray: GrayRange) -> str:
    """The same for readers of a model card: text and Python code; empty for the plain rule."""
    if gray == AS_STORED:
        return ""
    low, high = PERCENTILES if gray == "percentile" else (0, 100)
    return (
        "\n\nGray of more than 8 bits (PIL's modes I, I;16 and F) was mapped to 8 bits by each image's own range "
        f"(--range {gray}), which `convert('RGB')` does not do. Before it, such an image needs\n\n```python\n"
        "values = numpy.asarray(image, dtype='float64')\n"
        f"low, high = numpy.percentile(values, ({low}, {high}))\n"
        "shares = ((values - low) / max(high - low, 1e-300)).clip(0, 1)\n"
        "image = Image.fromarray(numpy.rint(255 * shares).astype('uint8'))\n```"
    )


def _bits(image: Image.Image) -> int:
    """Bits per pixel of an image that PIL reads into 16 bits; PIL scales up all formats but TIFF."""
    return int(image.tag_v2.get(BITSPERSAMPLE, (16,))[0]) if isinstance(image, TiffImageFile) else 16


def _white_is_zero(image: Image.Image) -> bool:
    """Whether the caller has to invert black and white; PIL itself inverts only images of 8 bits."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


class Levels(NamedTuple):
    """How many different values of gray an image has as stored, and as mapped to 8 bits."""

    stored: int
    mapped: int

    @property
    def few(self) -> bool:
        """Whether the mapping made most of them alike."""
        return self.mapped < min(FEW_LEVELS, self.stored)


def count_levels(content: bytes, gray: GrayRange) -> Levels:
    """The levels of an image with gray of more than 8 bits; raises ValueError with the reason."""
    try:
        with open_image(io.BytesIO(content)) as image:
            return Levels(len(np.unique(np.array(image))), len(np.unique(to_bytes(image, gray))))
    except UNREADABLE as error:
        raise ValueError(reason_of(error)) from None
