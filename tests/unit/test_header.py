"""Size, orientation and format from the first bytes of a file, against PIL."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from toolkit.data.decode import decode
from toolkit.data.header import ORIENTATION, read_header

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
