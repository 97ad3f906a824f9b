"""What an image file says of itself before any pixel is decoded: size, orientation, format."""

import re
import struct
import warnings
from functools import cache
from typing import IO, NamedTuple

from PIL import Image

from toolkit.system.errors import first_line

# What is tried, and nothing else: others of PIL's formats run programs (EPS calls Ghostscript) or wait for plugins.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
ORIENTATION = 0x0112  # the EXIF tag
XMP = b"http://ns.adobe.com/xap/1.0/\0"
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
MAX_PIXELS = 2 * 89_478_485  # PIL's limit for decompression bombs, applied to every format
FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that carry the size
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})  # without a length
MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # of JPEG, by the number of components
# What PIL raises on content that is no image, or half of one; found by flipping bits of files of every format.
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
    """More pixels than any image may have: found out from the header, before memory is taken for them."""


class Header(NamedTuple):
    """Size in px as seen upright; `orientation` is EXIF's, 1 ... 8; `form` and `mode` are PIL's names."""

    width: int
    height: int
    orientation: int
    form: str
    mode: str
    progressive: bool = False


def read_header(stream: IO[bytes]) -> Header:
    """Read no more than needed from the start of an image file; raises ValueError with the reason.

    OSError is left to storage that fails: it says nothing about the image.
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
    """One line of an exception's text."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "the content is no image in a known format"
    return first_line(error)


def open_image(stream: IO[bytes]) -> Image.Image:
    """Image.open, of FORMATS only."""
    return Image.open(stream, formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(form for form in FORMATS if form in Image.OPEN)  # AVIF came with Pillow 11.3


def _orientation(exif: Image.Exif) -> int | None:
    """None where EXIF does not tell it, 1 where it makes no sense."""
    value = exif.get(ORIENTATION)
    return value if value is None or value in range(1, 9) else 1


def _told_by_segment(content: bytes) -> tuple[int | None, int | None]:
    """Orientation by the EXIF and by the XMP of a JPEG's segment; None where it does not tell."""
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
    """Walk the segments up to the frame header: some 20 us, against 100 us for PIL's whole parse."""
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
            told = _told_by_segment(stream.read(max(0, length)))
            by_exif, by_xmp = by_exif or told[0], by_xmp or told[1]
        else:
            stream.seek(max(0, length), 1)


def _read_other(stream: IO[bytes]) -> Header:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong is told by the error; our limit stands above
        with open_image(stream) as image:
            orientation = None if image.format == "TIFF" else _told_at_the_start(image)  # PIL turns TIFF upright
            return Header(*image.size, orientation or 1, image.format or "?", image.mode)


def _told_at_the_start(image: Image.Image) -> int | None:
    """Orientation by EXIF, else by XMP, as far as they stand before the pixels."""
    try:
        return _orientation(Image.Image.getexif(image))  # a PNG's own would decode it
    except UNREADABLE:
        return None
