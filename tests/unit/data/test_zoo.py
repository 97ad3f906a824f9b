"""Every kind of odd or broken file: accepted with the right pixels, or refused with the reason."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from tests.conftest import PATIENCE_S, ROOT, index_of, write_image
from toolkit.data.images.augment import Augmenter
from toolkit.data.images.preprocess import ORIENTATION
from toolkit.data.loading.downscaled import open_downscaled
from toolkit.data.loading.reader import ImageReader
from toolkit.system.errors import BadSampleError


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def smooth(width: int = 40, height: int = 24) -> Image.Image:
    """A picture that survives JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """A PNG file from raw rows, each of which begins with its filter byte."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def found(folder: Path, name: str, content: bytes) -> np.ndarray | str:
    """The file's pixels upright, or the reason for which it is refused; alike whoever reads it."""
    (folder / name).write_bytes(content)
    index = index_of(folder, [name], [0])
    outcomes: list[np.ndarray | str] = []
    for remember in (False, True):
        try:
            outcomes.append(ImageReader(index, remember).whole(0).copy())
        except BadSampleError as error:
            outcomes.append(error.reason)
    assert np.array_equal(outcomes[0], outcomes[1])
    if isinstance(outcomes[0], np.ndarray):
        assert (index.height[0], index.width[0]) == outcomes[0].shape[:2]
    return outcomes[0]


def gray(*values: int) -> np.ndarray:
    """One row of gray pixels."""
    return np.repeat(np.array([values], dtype=np.uint8)[..., None], 3, axis=-1)


def row(*colors: tuple[int, int, int]) -> np.ndarray:
    return np.array([colors], dtype=np.uint8)


def gray_tiff(dtype: str, *values: float) -> bytes:
    return encoded(Image.fromarray(np.array([values], dtype=dtype)), "TIFF")


def solid(mode: str, color: tuple[int, ...], form: str, **options: Any) -> bytes:
    return encoded(Image.new(mode, (16, 16), color), form, **options)


def tiff(bits: int, photometric: int, row: bytes, width: int) -> bytes:
    """A TIFF file of one uncompressed row of gray pixels; photometric 0: 0 is white, 1: 0 is black."""
    version = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(row)}
    padded = row + b"\0" * (len(row) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in version.items())
    return b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + struct.pack("<H", len(version)) + entries + bytes(4)


def palette_of_two(**options: Any) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    return encoded(image, "PNG", **options)


def two_pixels(mode: str, first: tuple[int, ...], second: tuple[int, ...], form: str = "PNG") -> bytes:
    image = Image.new(mode, (2, 1), first)
    image.putpixel((1, 0), second)
    return encoded(image, form)


def animation(form: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], **({} if form == "GIF" else LOSSLESS))


def rotated() -> bytes:
    """Stored lying on its side: the camera was turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encoded(smooth(), "PNG", exif=exif)


LOSSLESS = {"lossless": True}
RED, SQUARE = (255, 0, 0), (16, 16, 3)
ACCEPTED = {
    "16-bit-gray.png": (png(4, 1, 16, 0, b"\0" + struct.pack(">4H", 0, 257, 32768, 65535)), gray(0, 1, 127, 255), 0),
    "16-bit-rgb.png": (png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 256, 32768, 65535)), row((1, 128, 255)), 0),
    "16-bit-gray.tif": (gray_tiff("uint16", 0, 514, 65535), gray(0, 2, 255), 0),
    "float.tif": (gray_tiff("float32", 0, 0.2, 0.9, 1), gray(0, 51, 230, 255), 0),
    "12-bit-gray.tif": (tiff(12, 1, b"\xff\xf8\x00\x00\x01\x00", 4), gray(255, 127, 0, 15), 0),
    "16-bit-white-is-zero.tif": (tiff(16, 0, struct.pack("<3H", 0, 257, 65535), 3), gray(255, 254, 0), 0),
    "8-bit-white-is-zero.tif": (tiff(8, 0, bytes((0, 1, 255)), 3), gray(255, 254, 0), 0),
    "palette.png": (palette_of_two(), row((10, 20, 30), (200, 100, 0)), 0),
    "palette-transparent.png": (palette_of_two(transparency=1), row((10, 20, 30), (200, 100, 0)), 0),
    "palette-half-transparent.png": (palette_of_two(transparency=b"\x80\x00"), row((10, 20, 30), (200, 100, 0)), 0),
    "gray-alpha.png": (two_pixels("LA", (7, 0), (9, 128)), gray(7, 9), 0),
    "rgba.png": (two_pixels("RGBA", (1, 2, 3, 0), (4, 5, 6, 255)), row((1, 2, 3), (4, 5, 6)), 0),
    "black-and-white.png": (two_pixels("1", 0, 1), gray(0, 255), 0),
    "cmyk.tif": (solid("CMYK", (0, 255, 255, 0), "TIFF"), np.full(SQUARE, RED), 0),
    "cmyk-adobe.jpg": (solid("CMYK", (0, 255, 255, 0), "JPEG", quality=95), np.full(SQUARE, RED), 3),
    "cmyk-adobe-black.jpg": (solid("CMYK", (0, 0, 0, 155), "JPEG", quality=95), np.full(SQUARE, 100), 3),
    "animated.gif": (animation("GIF"), np.full((4, 4, 3), RED), 0),
    "animated.png": (animation("PNG"), np.full((4, 4, 3), RED), 0),
    "animated.webp": (animation("WEBP"), np.full((4, 4, 3), RED), 0),
    "1x1.png": (png(1, 1, 8, 2, b"\0" + bytes((9, 8, 7))), row((9, 8, 7)), 0),
    "a-png-named.jpg": (two_pixels("RGB", (1, 2, 3), (4, 5, 6)), row((1, 2, 3), (4, 5, 6)), 0),
    "a-jpeg-named.png": (solid("RGB", (9, 99, 199), "JPEG", quality=95), np.full(SQUARE, (9, 99, 199)), 3),
    "exif-rotation-6.png": (rotated(), np.rot90(np.array(smooth()), -1), 0),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_odd_file_is_accepted_with_the_right_pixels(tmp_path: Path, name: str):
    content, expected, tolerance = ACCEPTED[name]
    pixels = found(tmp_path, name, content)
    assert isinstance(pixels, np.ndarray), pixels
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


def test_the_cmyk_files_are_inverted_as_adobe_writes_them():
    """That the case above is what it says."""
    content = ACCEPTED["cmyk-adobe.jpg"][0]
    assert b"Adobe" in content
    assert np.abs(simplejpeg.decode_jpeg(content, "CMYK").astype(int) - (255, 0, 0, 255)).max() <= 3


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_that_of_pil_when_it_is_progressive_or_rotated(tmp_path: Path, options: Any, orientation: int):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(smooth(), "JPEG", exif=exif, **options)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    pixels = found(tmp_path, "photo.jpg", content)
    assert pixels.shape == expected.shape == ((40, 24, 3) if orientation == 6 else (24, 40, 3))
    assert np.abs(pixels.astype(int) - expected).max() <= 2


def without_bytes(content: bytes, first: float, last: float) -> bytes:
    """A file that lacks the bytes between two shares of its length."""
    return content[: int(first * len(content))] + content[int(last * len(content)) :]


def noisy(**options: Any) -> bytes:
    """A JPEG most of which is its pixels: 300 x 200 px."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels).resize((300, 200)), "JPEG", quality=95, **options)


END = b"\xff\xd9"
PHOTO, DRAWING = encoded(smooth(), "JPEG"), encoded(smooth(), "PNG")
NOISE, PROGRESSIVE, RESTARTS = noisy(), noisy(progressive=True), noisy(restart_marker_rows=1)
CMYK = encoded(Image.open(io.BytesIO(NOISE)).convert("CMYK"), "JPEG", quality=95)
REFUSED = {
    "zero-byte.jpg": (b"", "the file is empty"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "the content is no image in a known format"),
    "cut-in-its-header.jpg": (PHOTO[:100], "JPEG without a frame header"),
    "cut.jpg": (PHOTO[:-40], "image file is truncated: Premature end of JPEG file"),
    "cut-and-ended.jpg": (without_bytes(NOISE, 0.3, 1) + END, "Corrupt JPEG data: premature end of data segment"),
    "cut-and-ended-cmyk.jpg": (without_bytes(CMYK, 0.3, 1) + END, "Corrupt JPEG data: premature end of data segment"),
    "cut-and-ended-progressive.jpg": (without_bytes(PROGRESSIVE, 0.9, 1) + END, "Corrupt JPEG data: premature end"),
    "cut-and-filled-up.jpg": (without_bytes(NOISE, 0.5, 1) + bytes(4 * len(NOISE)), "image file is truncated"),
    "hole.jpg": (without_bytes(NOISE, 0.5, 0.6), "Corrupt JPEG data: premature end of data segment"),
    "left-over-before-a-restart.jpg": (RESTARTS.replace(b"\xff\xd3", b"junk\xff\xd3", 1), "bytes before marker 0xd3"),
    "left-over-before-a-scan.jpg": (
        b"junk\xff\xda".join(PROGRESSIVE.rsplit(b"\xff\xda", 1)),
        "bytes before marker 0xda",
    ),
    "postscript.png": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "no image in a known",
    ),
    "hdf5.png": (b"\x89HDF\r\n\x1a\n" + bytes(99), "no image in a known format"),
    "texture.png": (encoded(smooth(), "DDS"), "no image in a known format"),
    "cut.png": (DRAWING[:100], "image file is truncated"),
    "float.tif": (gray_tiff("float32", 0, 1.5), "float pixels from 0 to 1.5: they must lie in [0, 1]"),
    "negative-float.tif": (gray_tiff("float32", -1, 0.5), "float pixels from -1 to 0.5: they must lie in [0, 1]"),
    "nan.tif": (gray_tiff("float32", np.nan, 0.5), "float pixels from nan to nan: they must lie in [0, 1]"),
    "32-bit.tif": (gray_tiff("int32", 0, 200), "integer pixels of more than 16 bits or with a sign"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_file_is_refused_with_its_name_and_the_reason(tmp_path: Path, name: str):
    content, reason = REFUSED[name]
    told = found(tmp_path, name, content)
    assert reason in told
    with pytest.raises(BadSampleError) as caught:
        ImageReader(index_of(tmp_path, [name], [0])).whole(0)
    assert str(caught.value) == f"{name}: cannot be read as an image: {told}"
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [
        NOISE.removesuffix(END),
        PROGRESSIVE.removesuffix(END),
        NOISE + b"appended",
        NOISE + bytes(5000),
        NOISE.removesuffix(END) + bytes(20) + END,
        NOISE.replace(b"JFIF\0\x01\x01", b"JFIF\0\0\0"),
        NOISE.replace(b"\xff\xdb", b"junk\xff\xdb"),
    ],
    ids=["no end", "no end, progressive", "text after", "zeros after", "zeros at the end", "JFIF 0.0", "junk before"],
)
def test_a_jpeg_is_accepted_when_libjpeg_complains_of_nothing_that_shows(tmp_path: Path, content: bytes):
    whole = found(tmp_path, "whole.jpg", PROGRESSIVE if content.startswith(PROGRESSIVE[:-2]) else NOISE)
    pixels = found(tmp_path, "odd.jpg", content)
    assert isinstance(pixels, np.ndarray), pixels
    assert np.abs(pixels.astype(int) - whole).max() <= 2  # PIL's


def test_a_damaged_jpeg_would_be_gray_when_pil_had_the_last_word():
    """That the refused ones are what they are meant to be."""
    for name in ("cut-and-ended.jpg", "cut-and-ended-cmyk.jpg", "cut-and-filled-up.jpg", "hole.jpg"):
        whole = by_pil(CMYK if "cmyk" in name else NOISE)
        pixels = by_pil(REFUSED[name][0])
        assert pixels is not None
        assert np.abs(pixels.astype(int) - whole)[150:].mean() > 20


def by_pil(content: bytes) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:
        return None


@pytest.mark.filterwarnings(r"ignore:::PIL\..*")  # of the reference
@pytest.mark.parametrize(
    "form",
    [
        *("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"),
        pytest.param("AVIF", marks=pytest.mark.skipif("AVIF" not in Image.SAVE, reason="this PIL has no AVIF")),
    ],
)
def test_a_file_with_a_flipped_byte_is_refused_or_decoded_as_pil_does(tmp_path: Path, form: str):
    content = encoded(smooth(20, 12).quantize(16) if form == "GIF" else smooth(20, 12), form)
    outcomes = []
    for place in range(0, len(content), max(1, len(content) // 150)):
        flipped = bytearray(content)
        flipped[place] ^= 0xFF
        ours, reference = found(tmp_path, "flipped", bytes(flipped)), by_pil(bytes(flipped))
        if isinstance(ours, np.ndarray):
            assert reference is not None
            assert ours.shape == reference.shape
            assert np.abs(ours.astype(int) - reference).max() <= 2
        outcomes.append(isinstance(ours, np.ndarray))
    assert len(set(outcomes)) == 2  # some of the one and some of the other


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from tests.conftest import index_of, write_image
from toolkit.data.loading.reader import ImageReader
from toolkit.system.errors import BadSampleError

def peak_mb():
    # not getrusage: a process that was just started has its parent's peak there
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024

folder = Path(sys.argv[1])
ImageReader(index_of(folder, [write_image(folder / "warm-up.png").name], [0])).whole(0)
before = peak_mb()
for name in sys.argv[2:]:
    try:
        ImageReader(index_of(folder, [name], [0])).whole(0)
    except BadSampleError as error:
        print(error.reason)
print(peak_mb() - before)
np.ones(400_000_000, dtype=np.uint8)
print(peak_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_small_file_of_400_megapixels_is_refused_without_taking_memory(tmp_path: Path):
    """20,000 x 20,000 black pixels of 1 bit: 49 KB, and 1.2 GB when decoded; a quarter of the rows takes 12 KB."""
    sizes = {"whole.png": 20_000, "quarter.png": 5_000}
    for name, rows in sizes.items():
        content = png(20_000, 20_000, 1, 0, bytes(2501 * rows))
        assert len(content) < 2.5 * rows
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", MEASURED, str(tmp_path), *sizes]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    *reasons, grown_mb, control_mb = done.stdout.splitlines()
    assert len(reasons) == 2
    assert all("400000000 pixels" in reason for reason in reasons)
    assert float(grown_mb) < 100
    assert float(control_mb) > 300  # that the measure sees memory


def test_an_unreadable_image_keeps_its_reason_when_the_others_come_from_a_tier(tmp_path: Path):
    for i in range(3):
        write_image(tmp_path / f"{i}.png", (64, 48), seed=i)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:1000])
    index = index_of(tmp_path, ["0.png", "1.png", "2.png"], [0, 1, 0])
    tier = open_downscaled(index, 12, tmp_path.parent / "tiers")
    assert tier.width.tolist() == [16, 64, 16]
    box = Augmenter(1.0, False, 0).draw(0, np.array([1]), tier.width[1:2], tier.height[1:2], 1.0)[0][0]
    with pytest.raises(BadSampleError, match=r"1\.png: cannot be read as an image: image file is truncated"):
        ImageReader(tier).crop(1, box, 8)
    write_image(tmp_path / "1.png", (64, 48), seed=1)  # it was the storage, and it is there again
    assert np.array_equal(ImageReader(tier).crop(1, box, 8), ImageReader(index).crop(1, box, 8))
