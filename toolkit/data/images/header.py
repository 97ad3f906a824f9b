"""Reads the header of an image file, without decoding any pixel: size, orientation, format."""

import re
import struct
import warnings
from functools import cache
from typing import IO, NamedTuple

from PIL import Image

from toolkit.system.errors import first_line

# The only formats tried: other formats of PIL run programs (EPS calls Ghostscript) or need plugins.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
ORIENTATION = 0x0112  # the EXIF tag
XMP = b"http://ns.adobe.com/xap/1.0/\0"
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
MAX_PIXELS = 2 * 89_478_485  # PIL's limit for decompression bombs, applied to every format
FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers of segments that hold the size
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})  # JPEG markers without a length
MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # of a JPEG, by its number of components
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


class TooLargeError(ValueError):
    """The header gives more pixels than allowed; raised before memory is allocated for them."""


class Header(NamedTuple):
    """Size in px in upright orientation; `orientation`: EXIF's, 1 ... 8; `form` and `mode`: PIL's names."""

    width: int
    height: int
    orientation: int
    form: str
    mode: str
    progressive: bool = False


def read_header(stream: IO[bytes]) -> Header:
    """Read the header, and no more than needed, from the start of an image file; raises ValueError with the reason.

    Raises OSError only if the storage fails, not because of the image.
    """
    start = stream.read(3)
    if not start:
        raise ValueError("the file is empty")
    stream.seek(0)
    try:
        header = _read_jpeg(stream) if start == b"\xff\xd8\xff" else _read_other(stream)
    except Image.DecompressionBombError as error:
        raise TooLargeError(reason_of(error)) from None
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(reason_of(error)) from None
    if header.width * header.height > MAX_PIXELS:
        raise TooLargeError(f"{header.width} x {header.height} px, more than {MAX_PIXELS / 1e6:.0f} megapixels")
    if header.orientation >= 5:
        return header._replace(width=header.height, height=header.width)
    return header


def reason_of(error: Exception) -> str:
    """The message of an exception as one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "the content is no image in a known format"
    return first_line(error)


def open_image(stream: IO[bytes]) -> Image.Image:
    """Image.open, restricted to FORMATS."""
    return Image.open(stream, formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(form for form in FORMATS if form in Image.OPEN)  # AVIF needs Pillow 11.3


def _orientation(exif: Image.Exif) -> int | None:
    """The EXIF orientation; None if there is none, 1 if it is invalid."""
    value = exif.get(ORIENTATION)
    return value if value is None or value in range(1, 9) else 1


def _orientations_of_segment(content: bytes) -> tuple[int | None, int | None]:
    """Orientation in the EXIF and in the XMP data of a JPEG segment; None for each if it has none."""
    if content.startswith(XMP):
        match = XMP_ORIENTATION.search(content)
        return None, int(match[1]) if match else None
    if content.startswith(b"Exif\0\0"):
        exif = Image.Exif()
        try:
            exif.load(content)
            return _orientation(exif), None
        except UNREADABLE:
            pass
    return None, None


def _read_jpeg(stream: IO[bytes]) -> Header:
    """Walk the segments up to the frame header: about 20 us, against 100 us for PIL's full parse."""
    stream.seek(2)
    by_exif = by_xmp = None
    while True:
        marker = stream.read(2)
        while marker[-1:] == b"\xff" and len(marker) == 2:  # fill bytes
            marker = b"\xff" + stream.read(1)
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] in (0xD9, 0xDA):
            raise ValueError("JPEG without a frame header")
        code = marker[1]
        if code in BARE_MARKERS:
            continue
        length = int.from_bytes(stream.read(2)) - 2
        if code in FRAME_HEADERS:
            frame = stream.read(6)
            if len(frame) < 6:
                raise ValueError("JPEG without a frame header")
            height, width, components = struct.unpack(">xHHB", frame)
            if not width or not height:
                raise ValueError("JPEG of no width or height")
            return Header(
                width, height, by_exif or by_xmp or 1, "JPEG", MODES.get(components, "?"), code in PROGRESSIVE
            )
        if code == 0xE1:
            found = _orientations_of_segment(stream.read(max(0, length)))
            by_exif, by_xmp = by_exif or found[0], by_xmp or found[1]
        else:
            stream.seek(max(0, length), 1)


def _read_other(stream: IO[bytes]) -> Header:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # faults raise errors; MAX_PIXELS limits the size
        with open_image(stream) as image:
            orientation = None if image.format == "TIFF" else _orientation_at_the_start(image)  # PIL turns TIFF upright
            return Header(*image.size, orientation or 1, image.format or "?", image.mode)


def _orientation_at_the_start(image: Image.Image) -> int | None:
    """Orientation from EXIF, else from XMP; only from data before the pixels."""
    try:
        return _orientation(Image.Image.getexif(image))  # PNG's own getexif would decode the pixels
    except UNREADABLE:
        return None
