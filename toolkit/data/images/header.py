"""Reads the header of an image file, without decoding any pixel: size, orientation, format."""

import contextlib
import ctypes
import io
import logging
import re
import struct
import warnings
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

from PIL import Image

from toolkit.data.images.formats import stranger
from toolkit.data.images.preprocess import UNREADABLE, orientation_of, readable_formats, valid_orientation
from toolkit.system.errors import first_line

START = b"\xff\xd8"  # of a JPEG
XMP = b"http://ns.adobe.com/xap/1.0/\0"
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
MAX_PIXELS = 2 * 89_478_485  # PIL's limit for decompression bombs, applied to every format
FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers of segments that hold the size
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})  # JPEG markers without a length
MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # of a JPEG, by its number of components
MOST_ASTRAY = 1 << 20  # bytes before a marker that are passed over
KEPT = frozenset({0xE0, 0xEE})  # application segments that say how colors are stored: JFIF's and Adobe's
PIL_MODULES = re.compile(r"PIL\.")


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
    start = stream.read(len(START))
    if not start:
        raise ValueError("the file is empty")
    stream.seek(0)
    try:
        header = _read_jpeg(stream) if start == START else _read_other(stream)
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
    """Image.open, see `silence_libraries`; raises ValueError naming a known format that is not read."""
    silence_libraries()
    try:
        return Image.open(stream, formats=readable_formats())
    except Image.UnidentifiedImageError:
        stream.seek(0)
        if what := stranger(stream.read(32)):
            raise ValueError(what) from None
        raise


def silence_libraries() -> None:
    """Keep what PIL warns of and logs, and libtiff prints, from the screen: it names no file.

    Faults raise errors, which do, and MAX_PIXELS limits the size. `warnings.catch_warnings` is none for threads, which
    decode at the same time.
    """
    if not any(kind == "ignore" and module == PIL_MODULES for kind, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=PIL_MODULES.pattern)
    _silence_logs()


@cache
def _silence_logs() -> None:
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):  # no Linux, or a PIL without libtiff
        mapped = Path("/proc/self/maps").read_text()
        for path in {line.split(maxsplit=5)[-1] for line in mapped.splitlines() if "/libtiff" in line}:
            ctypes.CDLL(path).TIFFSetErrorHandler(None)


def _orientations_of_segment(content: bytes) -> tuple[int | None, int | None]:
    """Orientation in the EXIF and in the XMP data of a JPEG segment; None for each if it has none."""
    if content.startswith(XMP):
        match = XMP_ORIENTATION.search(content)
        return None, int(match[1]) if match else None
    if content.startswith(b"Exif\0\0"):
        exif = Image.Exif()
        silence_libraries()
        try:
            exif.load(content)
            return valid_orientation(exif), None
        except UNREADABLE:
            pass
    return None, None


def _read_jpeg(stream: IO[bytes]) -> Header:
    """Walk the segments up to the frame header: about 20 us, against 100 us for PIL's full parse."""
    stream.seek(len(START))
    by_exif = by_xmp = None
    while True:
        code = _next_marker(stream)
        if code in (None, 0xD9, 0xDA):
            raise ValueError("JPEG without a frame header")
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


def _next_marker(stream: IO[bytes]) -> int | None:
    """The code of the next JPEG marker, as libjpeg finds it: bytes that are astray are passed over; None at the end."""
    for _ in range(MOST_ASTRAY):
        byte = stream.read(1)
        while byte == b"\xff":  # more of them are fill bytes
            byte = stream.read(1)
            if byte not in (b"\xff", b"\0"):
                return byte[0] if byte else None
        if not byte:
            return None
    return None


def tidied(content: bytes) -> bytes:
    """A JPEG without what may be astray or broken before its pixels and is not needed for them.

    That is bytes before a marker, and application segments such as a color profile. The same bytes if it has no pixels.
    """
    stream, kept = io.BytesIO(content), [START]
    stream.seek(len(START))
    while (code := _next_marker(stream)) not in (None, 0xD9):
        length = b"" if code in BARE_MARKERS else stream.read(2)
        if code == 0xDA:
            return b"".join([*kept, b"\xff\xda", length, content[stream.tell() :]])
        segment = stream.read(max(0, int.from_bytes(length) - 2)) if length else b""
        if code not in range(0xE0, 0xF0) or code in KEPT:
            kept.append(bytes((0xFF, code)) + length + segment)
    return content


def _read_other(stream: IO[bytes]) -> Header:
    with open_image(stream) as image:
        return Header(*image.size, orientation_of(image) or 1, image.format or "?", image.mode)
