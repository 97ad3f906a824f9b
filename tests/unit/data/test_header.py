"""Size, orientation and format from the first bytes of a file, against PIL."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from toolkit.data.images.decode import decode
from toolkit.data.images.header import read_header
from toolkit.data.images.preprocess import ORIENTATION

ASYMMETRIC = np.zeros((20, 32, 3), dtype=np.uint8)
ASYMMETRIC[:8, :8] = (250, 20, 20)
ASYMMETRIC[12:, 24:] = (20, 250, 20)


def encoded(form: str, orientation: int | None = None, mode: str = "RGB", **options) -> bytes:
    image, buffer = Image.fromarray(ASYMMETRIC).convert(mode), io.BytesIO()
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_stands_upright_as_pil_turns_it_when_it_has_an_orientation(form: str, orientation: int):
    content = encoded(form, orientation, **({"lossless": True} if form == "WEBP" else {}))
    header = read_header(io.BytesIO(content))
    with Image.open(io.BytesIO(content)) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert (header.height, header.width) == expected.shape[:2]
    found = decode(content, orientation=header.orientation)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= (4 if form == "JPEG" else 0)


def sideways() -> bytes:
    """EXIF that says 6."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif.tobytes()


def jpeg_with_xmp(says: bytes, **options) -> bytes:
    return encoded("JPEG", xmp=b'<x:xmpmeta><rdf:Description xmlns:tiff="t" ' + says + b"</x:xmpmeta>", **options)


def png_with_a_text(key: str, text: str) -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt(key, text) if key.startswith("XML") else texts.add_text(key, text, zip=True)
    return encoded("PNG", pnginfo=texts)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (jpeg_with_xmp(b'tiff:Orientation="6"/>'), 6),
        (jpeg_with_xmp(b"><tiff:Orientation>6</tiff:Orientation></rdf:Description>"), 6),
        (jpeg_with_xmp(b'tiff:Orientation="6"/>', orientation=3), 3),  # EXIF goes first
        (jpeg_with_xmp(b'tiff:Orientation="9"/>'), 1),
        (jpeg_with_xmp(b"/>"), 1),
        (png_with_a_text("Raw profile type exif", f"\nexif\n{len(sideways()):8}\n{sideways().hex()}\n"), 6),
        (png_with_a_text("Raw profile type exif", "\nexif\n       9\nno hex at all\n"), 1),
        (png_with_a_text("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>'), 6),
    ],
)
def test_the_orientation_is_found_when_it_stands_elsewhere_than_usual(content: bytes, expected: int):
    header = read_header(io.BytesIO(content))
    assert header.orientation == expected
    assert (header.width, header.height) == ((20, 32) if expected == 6 else (32, 20))


def test_a_png_is_not_read_to_its_end_when_it_has_no_orientation():
    content = encoded("PNG")
    stream = io.BytesIO(content[: content.index(b"IDAT") + 4])  # a decoder would find no pixels
    assert read_header(stream)[:3] == (32, 20, 1)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_image_stays_as_it_is_when_its_orientation_makes_no_sense(orientation: int):
    assert read_header(io.BytesIO(encoded("JPEG", orientation)))[:3] == (32, 20, 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_form_and_mode_are_told_when_it_is_a_jpeg(mode: str, progressive: bool):
    header = read_header(io.BytesIO(encoded("JPEG", mode=mode, progressive=progressive)))
    assert header == (32, 20, 1, "JPEG", mode, progressive)


def test_segments_before_the_frame_are_skipped_when_they_are_large():
    content = encoded("JPEG")
    comment = b"\xff\xfe" + (60000).to_bytes(2) + bytes(59998)
    assert read_header(io.BytesIO(content[:2] + 3 * comment + b"\xff\xff\xff" + content[3:]))[:2] == (32, 20)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\xff\xd8\xff", "without a frame header"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "without a frame header"),
        (encoded("JPEG")[:40], "without a frame header"),
        (b"<html></html>", "no image in a known format"),
        (b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x00\x00\x20\x03", "no width or height"),
        (b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03", "65535 x 65535 px, more than 179 megapixels"),
    ],
)
def test_content_is_refused_with_the_reason_when_it_is_no_image(content: bytes, words: str):
    with pytest.raises(ValueError, match=words):
        read_header(io.BytesIO(content))


def test_no_more_is_read_than_the_start_when_it_is_a_jpeg():
    content = encoded("JPEG") + bytes(10_000_000)
    stream = io.BytesIO(content)
    read_header(stream)
    assert stream.tell() < 2000
