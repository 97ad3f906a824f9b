"""From a file's bytes to a uint8 crop of a given size: simplejpeg for JPEG, PIL for the rest and for odd JPEGs.

Rules: EXIF orientation is applied. Gray is repeated; palettes are looked up; CMYK is converted; alpha is dropped, the
colors under it stay. Gray of 9 to 16 bits is scaled to 8; float pixels must lie in [0, 1]; longer or signed integers,
whose range nobody knows, are refused. Of an animation the first frame counts. A JPEG of which libjpeg says that data is
missing or wrong is refused: PIL, which does not listen to it, would leave parts gray.
"""

import io
import re
import warnings
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from toolkit.data.images.header import MAX_PIXELS, UNREADABLE, TooLargeError, open_image, reason_of

MIRRORED, UPSIDE_DOWN = (2, 3, 6, 7), (3, 4, 7, 8)  # EXIF orientations, after the transposition of 5 ... 8
SCALES = (4, 2)  # denominators of scaled JPEG decoding that pay; 3/8 ... 7/8 are slower than decoding in full
MARGIN = 2  # a scaled crop stays at least so many times the target: 50 dB against the same crop decoded in full
CHROMA_MARGIN = 1  # from there on halved chroma is repeated, not smoothed: 46 dB, for a sixth of the time of decoding
END = b"\xff\xd9"  # a JPEG's last marker
WHOLE = {"min_height": 1, "min_width": 1, "min_factor": 8}  # all of a JPEG is read, an 8th of it is drawn
# libjpeg's words for pixels that are missing or wrong. Bytes left over before the end marker may be padding: all pixels
# were read. Before any other marker they say that the pixels in front of it did not end where they should.
DAMAGE = re.compile(
    r"Premature end|Inconsistent progression|"
    r"Corrupt JPEG data: (premature|bad|found marker|\d+ extraneous bytes before marker (?!0xd9))"
)


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
    if box is None or size is None:
        return upright(read_pixels(content)[0], orientation)
    enlarged = min(box.width, box.height) / size
    denominator = next((d for d in SCALES if scaled and enlarged >= MARGIN * d), 1)
    pixels, full = read_pixels(content, denominator, rough_chroma=scaled and enlarged >= CHROMA_MARGIN)
    box = _as_stored(box, orientation, *full)
    if pixels.shape[:2] != full:
        box = _reduced(box, denominator)
    return upright(_resized(pixels, box, size), orientation)


def _as_stored(box: Box, orientation: int, height: int, width: int) -> Box:
    """An upright image's box in the image as stored, height x width px; raises ValueError where it does not fit."""
    if orientation >= 5:
        height, width = width, height
    _must_fit(box, height, width)
    left = width - box.left - box.width if orientation in MIRRORED else box.left
    top = height - box.top - box.height if orientation in UPSIDE_DOWN else box.top
    if orientation >= 5:
        return Box(top, left, box.height, box.width)
    return Box(left, top, box.width, box.height)


def _reduced(box: Box, denominator: int) -> Box:
    """The same box in an image of 1/denominator the size.

    Its edges are rounded, as often up as down: they move by a quarter of the target's pixel at most, which leaves 41 dB
    against the box itself. PIL's resize of the box as it is (49 dB) takes 3 to 6 times as long as torch's.
    """
    left, top = round(box.left / denominator), round(box.top / denominator)
    right, bottom = round((box.left + box.width) / denominator), round((box.top + box.height) / denominator)
    return Box(left, top, right - left, bottom - top)


def read_pixels(content: bytes, denominator: int = 1, rough_chroma: bool = False) -> tuple[np.ndarray, tuple[int, int]]:
    """The image as stored, H x W x 3 uint8 RGB, and its height and width in full.

    A JPEG is drawn at 1/denominator of that, rounded up. Raises ValueError with the reason.
    """
    try:
        if content[:3] == b"\xff\xd8\xff":
            drawn = _read_jpeg(content, denominator, rough_chroma)
            if drawn is not None:
                return drawn
        pixels = _read_by_pil(content)
    except UNREADABLE as error:
        raise ValueError(reason_of(error)) from None
    return pixels, pixels.shape[:2]


def _read_jpeg(content: bytes, denominator: int, rough_chroma: bool) -> tuple[np.ndarray, tuple[int, int]] | None:
    """What read_pixels says; None where simplejpeg cannot, PIL then has the last word."""
    try:
        return _by_simplejpeg(content, denominator, rough_chroma)
    except TooLargeError:
        raise
    except KeyError:  # where the header itself is broken
        return None
    except ValueError as error:
        complaint = str(error)
    if complaint.startswith("Premature end") and not content.endswith(END):
        try:
            return _by_simplejpeg(content + END, denominator, rough_chroma)  # nothing else may be missing
        except ValueError:
            raise ValueError(f"image file is truncated: {complaint}") from None
    if DAMAGE.match(complaint):
        raise ValueError(complaint)
    return None


def _by_simplejpeg(content: bytes, denominator: int, rough_chroma: bool) -> tuple[np.ndarray, tuple[int, int]] | None:
    """None where the colors are PIL's matter. Raises ValueError or KeyError at any fault."""
    height, width, colors, _ = simplejpeg.decode_jpeg_header(content, strict=False)
    if height * width > MAX_PIXELS:
        raise TooLargeError(f"{width} x {height} px, more than {MAX_PIXELS / 1e6:.0f} megapixels")
    if colors in ("CMYK", "YCCK"):
        simplejpeg.decode_jpeg(content, "CMYK", **WHOLE)  # for what it says of damage
        return None
    least = {"min_height": -(-height // denominator), "min_width": -(-width // denominator)}
    pixels = simplejpeg.decode_jpeg(content, "RGB", fastupsample=rough_chroma, min_factor=denominator, **least)
    return pixels, (height, width)


def _read_by_pil(content: bytes) -> np.ndarray:
    if not content:
        raise ValueError("the file is empty")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # MAX_PIXELS is where PIL raises; the rest is told by errors
        with open_image(io.BytesIO(content)) as image:
            if image.mode.startswith("I") or image.mode == "F":
                gray = _to_bytes(np.array(image), _bits(image))
                return np.repeat((255 - gray if _white_is_zero(image) else gray)[..., None], 3, axis=-1)
            if image.mode == "P" and "transparency" in image.info:
                return np.array(image.convert("RGBA").convert("RGB"))
            return np.array(image.convert("RGB"))


def _bits(image: Image.Image) -> int:
    """Of a pixel that PIL reads into 16; other formats than TIFF are scaled up by PIL."""
    return int(image.tag_v2.get(BITSPERSAMPLE, (16,))[0]) if isinstance(image, TiffImageFile) else 16


def _white_is_zero(image: Image.Image) -> bool:
    """Whether PIL left it to us to turn black to white; what has 8 bits it turns itself."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _to_bytes(values: np.ndarray, bits: int) -> np.ndarray:
    """Gray of more than 8 bits as uint8; raises ValueError where its range is unknown."""
    if np.issubdtype(values.dtype, np.floating):
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # also where there is a NaN
            raise ValueError(f"float pixels from {low:g} to {high:g}: they must lie in [0, 1]")
        return np.round(values * 255).astype(np.uint8)
    if values.dtype.itemsize == 2:
        return (values.astype(np.uint32) * 255 // (2**bits - 1)).astype(np.uint8)
    raise ValueError("integer pixels of more than 16 bits or with a sign: their range is unknown")


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation; a view, nothing is copied."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in MIRRORED:
        pixels = pixels[:, ::-1]
    if orientation in UPSIDE_DOWN:
        pixels = pixels[::-1]
    return pixels


def crop_and_resize(pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
    """The box of H x W x 3 uint8 pixels as size x size x 3, antialiased; raises ValueError where it does not fit."""
    _must_fit(box, *pixels.shape[:2])
    return _resized(pixels, box, size)


def _must_fit(box: Box, height: int, width: int) -> None:
    if box.left + box.width > width or box.top + box.height > height:
        raise ValueError(f"is now {width} x {height} px, smaller than it was indexed")


def _resized(pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
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
