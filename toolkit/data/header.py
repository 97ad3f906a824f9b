"""What an image file says of itself before any pixel is decoded: size, orientation, format."""

import struct
import warnings
from typing import IO, NamedTuple

from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag
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
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, Image.UnidentifiedImageError):
        return "the content is no image in a known format"
    return text or type(error).__name__


def _orientation(exif: bytes) -> int:
    """EXIF's orientation; 1 where it says nothing that makes sense."""
    try:
        block = Image.Exif()
        block.load(exif)
        value = block.get(ORIENTATION, 1)
    except UNREADABLE:
        return 1
    return value if value in range(1, 9) else 1


def _read_jpeg(stream: IO[bytes]) -> Header:
    """Walk the segments up to the frame header: some 20 us, against 100 us for PIL's whole parse."""
    stream.seek(2)
    orientation = 1
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
            return Header(width, height, orientation, "JPEG", MODES.get(components, "?"), code in PROGRESSIVE)
        if code == 0xE1:
            content = stream.read(max(0, length))
            if content.startswith(b"Exif\0\0"):
                orientation = _orientation(content)
        else:
            stream.seek(max(0, length), 1)


def _read_other(stream: IO[bytes]) -> Header:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong is told by the error; our limit stands above
        with Image.open(stream) as image:
            exif = image.info.get("exif")  # asking PIL for more would decode a PNG
            stored = exif if image.format != "TIFF" else None  # PIL itself turns TIFF upright
            return Header(*image.size, _orientation(stored) if stored else 1, image.format or "?", image.mode)
