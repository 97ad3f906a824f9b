"""Check one image of a data set: read and decode it once, report its fault or a digest of its content."""

import hashlib
import io
from pathlib import PurePath
from typing import NamedTuple

import simplejpeg

from toolkit.config.choices import GrayRange
from toolkit.data.images.decode import DAMAGE, WHOLE, read_pixels
from toolkit.data.images.formats import FORM_OF
from toolkit.data.images.gray import count_levels
from toolkit.data.images.header import START, Header, TooLargeError, read_header
from toolkit.data.images.preprocess import REMEDY, is_deep
from toolkit.data.sources.index import Index
from toolkit.data.sources.read import read_bytes
from toolkit.system.errors import BadSampleError

DIGEST_BYTES = 16
BAD = ("unreadable", "empty", "truncated", "damaged", "too large")  # kinds of faults that make an image unusable
ASTRAY = "astray bytes"  # before the pixels of a JPEG, all of which are read
FEW = "few levels"  # of gray, though the file has more


class ImageCheck(NamedTuple):
    """`kind` and `reason` of a fault, empty if there is none; `digest` of the content of a usable image."""

    size: int = 0  # bytes
    header: Header | None = None
    digest: bytes = b""
    kind: str = ""
    reason: str = ""


def examine(index: Index, i: int) -> ImageCheck:
    """Check image i; reads the file once."""
    try:
        content = read_bytes(index, i)
    except BadSampleError as error:
        return ImageCheck(kind="unreadable", reason=error.reason)
    if not content:
        return ImageCheck(kind="empty", reason="the file is empty")
    size, header = len(content), None
    try:
        header = read_header(io.BytesIO(content))
        kind, remark = _decode(content, header, index.gray)
    except TooLargeError as error:
        return ImageCheck(size, kind="too large", reason=str(error))
    except ValueError as error:
        kind = "damaged" if DAMAGE.match(str(error)) else "unreadable"
        return ImageCheck(size, header, kind="truncated" if _is_cut(content, str(error)) else kind, reason=str(error))
    if kind in BAD:
        return ImageCheck(size, header, kind=kind, reason=remark)
    digest = hashlib.sha256(content).digest()[:DIGEST_BYTES]
    if kind:
        return ImageCheck(size, header, digest, kind, remark)
    promised = FORM_OF.get(PurePath(index.names[i]).suffix.lower(), header.form)
    if promised != header.form:
        return ImageCheck(size, header, digest, "wrong type", f"the content is {header.form}, the name says {promised}")
    return ImageCheck(size, header, digest)


def _decode(content: bytes, header: Header, gray: GrayRange) -> tuple[str, str]:
    """Kind and reason of what is odd about an image that training would accept; empty if nothing is.

    Raises ValueError if training would not.
    """
    if is_deep(header.mode):
        levels = count_levels(content, gray)
        told = f"{levels.stored} levels of gray come out as {levels.mapped} ({gray}): {REMEDY}"
        return (FEW, told) if levels.few else ("", "")
    color = "CMYK" if header.mode == "CMYK" else "RGB"
    if header.form != "JPEG" or header.mode not in ("L", "RGB", "CMYK"):
        read_pixels(content)
        return "", ""
    try:
        simplejpeg.decode_jpeg(content, color, **WHOLE)
    except (ValueError, KeyError) as error:
        read_pixels(content)
        complaint = str(error)
    else:
        return "", ""
    if DAMAGE.match(complaint):
        return ASTRAY, f"{complaint}, but its pixels are whole"
    return ("damaged", complaint) if complaint.startswith("Corrupt JPEG data") else ("", "")


def _is_cut(content: bytes, reason: str) -> bool:
    """Whether an unreadable file was probably truncated."""
    if content[:4] == b"RIFF":  # a WebP header holds the file's length
        return int.from_bytes(content[4:8], "little") + 8 > len(content)
    if content.startswith(START) and not content.rstrip(b"\0").endswith(b"\xff\xd9"):
        return True
    return "truncated" in reason.lower()
