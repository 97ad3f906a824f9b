"""Decodes a file's bytes to a uint8 crop of a given size: simplejpeg for JPEG, PIL for the rest and for unusual JPEGs.

Orientation, colors, gray of more than 8 bits: by the rules of preprocess.py. A JPEG is rejected if libjpeg reports
missing or wrong data; PIL ignores these reports and would leave parts gray.
"""

import io
import re
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image

from toolkit.config.choices import GrayRange
from toolkit.data.images.header import (
    MAX_PIXELS,
    START,
    TooLargeError,
    open_image,
    reason_of,
    silence_libraries,
    tidied,
)
from toolkit.data.images.preprocess import (
    AS_STORED,
    MIRRORED,
    UNREADABLE,
    UPSIDE_DOWN,
    fitting,
    padded,
    to_rgb,
    upright,
)

SCALES = (4, 2)  # denominators of scaled JPEG decoding that save time; 3/8 ... 7/8 are slower than decoding in full
MARGIN = 2  # a scaled crop is at least this many times the target: 50 dB against the same crop decoded in full
# From this many times the target, halved chroma is repeated, not smoothed: 46 dB, and a sixth less decoding time.
CHROMA_MARGIN = 1
END = b"\xff\xd9"  # a JPEG's last marker
WHOLE = {"min_height": 1, "min_width": 1, "min_factor": 8}  # reads all of a JPEG, decodes it at 1/8
# libjpeg's messages for missing or wrong pixels. Extraneous bytes before the end marker may be padding: all pixels were
# read. Before any other marker they mean that the pixel data before it did not end where it should.
DAMAGE = re.compile(
    r"Premature end|Inconsistent progression|"
    r"Corrupt JPEG data: (premature|bad|found marker|\d+ extraneous bytes before marker (?!0xd9))"
)


class Box(NamedTuple):
    """A crop in px; the origin is the upper left corner. `pad`: whether it keeps its shape on a padded square."""

    left: int
    top: int
    width: int
    height: int
    pad: bool = False

    def at(self, size: int) -> tuple[int, int]:
        """Width and height in px at which it lies in a size x size square."""
        return fitting(self.width, self.height, size) if self.pad else (size, size)


def decode(
    content: bytes,
    box: Box | None = None,
    size: int | None = None,
    orientation: int = 1,
    gray: GrayRange = AS_STORED,
    scaled: bool = False,
) -> np.ndarray:
    """The box of an upright image as size x size x 3 uint8 RGB, antialiased; without box and size, the whole image.

    `orientation`: EXIF's, from the header. `gray`: how more than 8 bits become 8. `scaled`: decode a JPEG at 1/2 or 1/4
    if the box is then still at least twice the target. Raises ValueError with the reason.
    """
    if box is None or size is None:
        return upright(read_pixels(content, gray=gray)[0], orientation)
    width, height = box.at(size)
    enlarged = min(box.width / width, box.height / height)
    denominator = next((d for d in SCALES if scaled and enlarged >= MARGIN * d), 1)
    pixels, full = read_pixels(content, denominator, gray, rough_chroma=scaled and enlarged >= CHROMA_MARGIN)
    box = _as_stored(box, orientation, *full)
    if pixels.shape[:2] != full:
        box = _reduced(box, denominator)
    if orientation >= 5:
        width, height = height, width
    return padded(upright(_resized(pixels, box, width, height), orientation), size)


def _as_stored(box: Box, orientation: int, height: int, width: int) -> Box:
    """Map a box of the upright image to the stored image, height x width px; raises ValueError if it does not fit."""
    if orientation >= 5:
        height, width = width, height
    _must_fit(box, height, width)
    left = width - box.left - box.width if orientation in MIRRORED else box.left
    top = height - box.top - box.height if orientation in UPSIDE_DOWN else box.top
    if orientation >= 5:
        return Box(top, left, box.height, box.width)
    return Box(left, top, box.width, box.height)


def _reduced(box: Box, denominator: int) -> Box:
    """The same box in an image scaled by 1/denominator.

    Its edges are rounded, up as often as down. They move by at most a quarter of a target pixel, which leaves 41 dB
    against the exact box. PIL's resize of the exact box (49 dB) takes 3 to 6 times as long as torch's.
    """
    left, top = round(box.left / denominator), round(box.top / denominator)
    right, bottom = round((box.left + box.width) / denominator), round((box.top + box.height) / denominator)
    return Box(left, top, right - left, bottom - top)


def read_pixels(
    content: bytes, denominator: int = 1, gray: GrayRange = AS_STORED, rough_chroma: bool = False
) -> tuple[np.ndarray, tuple[int, int]]:
    """The image as stored, H x W x 3 uint8 RGB, and its full height and width.

    A JPEG is decoded at 1/denominator of that size, rounded up. Raises ValueError with the reason.
    """
    try:
        if content.startswith(START):
            try:
                drawn = _read_jpeg(content, denominator, rough_chroma)
            except TooLargeError:
                raise
            except ValueError:  # perhaps all that is wrong stands before the pixels
                content = tidied(content)
                drawn = _read_jpeg(content, denominator, rough_chroma)
            if drawn is not None:
                return drawn
        pixels = _read_by_pil(content, gray)
    except UNREADABLE as error:
        raise ValueError(reason_of(error)) from None
    return pixels, pixels.shape[:2]


def _read_jpeg(content: bytes, denominator: int, rough_chroma: bool) -> tuple[np.ndarray, tuple[int, int]] | None:
    """`read_pixels` of a JPEG; None if simplejpeg cannot decode it and PIL has to try."""
    try:
        return _by_simplejpeg(content, denominator, rough_chroma)
    except TooLargeError:
        raise
    except KeyError:  # the header itself is broken
        return None
    except ValueError as error:
        complaint = str(error)
    if complaint.startswith("Premature end") and not content.endswith(END):
        try:
            return _by_simplejpeg(content + END, denominator, rough_chroma)  # works if nothing else is missing
        except ValueError:
            raise ValueError(f"image file is truncated: {complaint}") from None
    if DAMAGE.match(complaint):
        raise ValueError(complaint)
    return None


def _by_simplejpeg(content: bytes, denominator: int, rough_chroma: bool) -> tuple[np.ndarray, tuple[int, int]] | None:
    """`read_pixels` by simplejpeg; None if PIL must convert the colors. Raises ValueError or KeyError on any fault."""
    height, width, colors, _ = simplejpeg.decode_jpeg_header(content, strict=False)
    if height * width > MAX_PIXELS:
        raise TooLargeError(f"{width} x {height} px, more than {MAX_PIXELS / 1e6:.0f} megapixels")
    if colors in ("CMYK", "YCCK"):
        simplejpeg.decode_jpeg(content, "CMYK", **WHOLE)  # raises if data is damaged
        return None
    least = {"min_height": -(-height // denominator), "min_width": -(-width // denominator)}
    pixels = simplejpeg.decode_jpeg(content, "RGB", fastupsample=rough_chroma, min_factor=denominator, **least)
    return pixels, (height, width)


def _read_by_pil(content: bytes, gray: GrayRange) -> np.ndarray:
    if not content:
        raise ValueError("the file is empty")
    with open_image(io.BytesIO(content)) as image:
        return from_pil(image, gray)


def from_pil(image: Image.Image, gray: GrayRange = AS_STORED) -> np.ndarray:
    """The pixels of a PIL image, H x W x 3 uint8 RGB; raises the errors of PIL, or ValueError."""
    silence_libraries()
    return to_rgb(image, gray)


def crop_and_resize(pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
    """The box of H x W x 3 uint8 pixels as size x size x 3, antialiased; raises ValueError if it does not fit."""
    _must_fit(box, *pixels.shape[:2])
    return padded(_resized(pixels, box, *box.at(size)), size)


def _must_fit(box: Box, height: int, width: int) -> None:
    if box.left + box.width > width or box.top + box.height > height:
        raise ValueError(f"is now {width} x {height} px, smaller than it was indexed")


def _resized(pixels: np.ndarray, box: Box, width: int, height: int) -> np.ndarray:
    return resize_to(pixels[box.top : box.top + box.height, box.left : box.left + box.width], height, width)


def reduce_to(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Downscale H x W x 3 uint8 pixels that are kept and resized again; the filter is Lanczos, to keep fine detail.

    A bilinear filter here would weaken detail that the second resize keeps: training images would differ from those of
    evaluation.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def resize_to(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize H x W x 3 uint8 pixels in uint8, bilinear and antialiased: 3-4 times as fast as PIL."""
    pixels = np.ascontiguousarray(pixels)
    if pixels.shape[:2] == (height, width):
        return pixels
    # NumPy changes the shapes: torch releases the interpreter lock at each call, and then waits for it.
    batch = torch.from_numpy(pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2))
    # F.interpolate ends in this call. Its checks would take as long as a small resize, and hold the interpreter lock.
    return torch.ops.aten._upsample_bilinear2d_aa(batch, [height, width], False).numpy()[0].transpose(1, 2, 0)
