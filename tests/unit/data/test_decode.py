"""From any image file to RGB bytes, or to an error that names it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Transpose

from tests.conftest import index_of
from toolkit import InputError
from toolkit.data.images.decode import Box, crop_and_resize, decode
from toolkit.data.loading.reader import ImageReader


def picture(width: int = 40, height: int = 24) -> np.ndarray:
    """A smooth colored picture, H x W x 3, that survives JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(folder: Path, content: bytes, name: str = "image") -> np.ndarray:
    (folder / name).write_bytes(content)
    return ImageReader(index_of(folder, [name], [0])).whole(0)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF"])
def test_pixels_are_exact_when_the_format_is_lossless(tmp_path: Path, form: str):
    image = Image.fromarray(picture())
    if form == "GIF":
        image = image.quantize(64)
    assert np.array_equal(decoded(tmp_path, encoded(image, form)), np.array(image.convert("RGB")))


def test_pixels_are_those_of_pil_when_it_is_a_jpeg(tmp_path: Path):
    content = encoded(Image.fromarray(picture()), "JPEG", quality=90, subsampling=0)
    expected = np.array(Image.open(io.BytesIO(content))).astype(int)
    assert np.abs(decoded(tmp_path, content).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_gray_is_repeated_when_there_is_one_channel(tmp_path: Path, form: str):
    gray = picture()[..., 0]
    found = decoded(tmp_path, encoded(Image.fromarray(gray), form))
    assert found.shape == (24, 40, 3)
    assert np.array_equal(found[..., 0], found[..., 1])
    assert np.array_equal(found[..., 0], found[..., 2])
    assert np.abs(found[..., 0].astype(int) - gray).max() <= (0 if form == "PNG" else 4)


def test_black_and_white_becomes_0_and_255_when_there_is_one_bit(tmp_path: Path):
    image = Image.fromarray(picture()[..., 0]).convert("1")
    assert set(np.unique(decoded(tmp_path, encoded(image, "PNG"))).tolist()) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_when_there_is_some(tmp_path: Path, mode: str):
    image = Image.fromarray(picture()).convert(mode)
    image.putalpha(Image.fromarray(picture()[..., 1]))
    expected = np.array(image)[..., :3] if mode == "RGBA" else np.repeat(np.array(image)[..., :1], 3, -1)
    assert np.array_equal(decoded(tmp_path, encoded(image, "PNG")), expected)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(16))])
def test_a_palette_is_looked_up_when_it_has_transparency_or_not(tmp_path: Path, transparency):
    image = Image.fromarray(picture()).quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    palette = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    assert np.array_equal(decoded(tmp_path, encoded(image, "PNG", **options)), palette[np.array(image)])


def test_cmyk_is_converted_when_a_jpeg_has_four_channels(tmp_path: Path):
    content = encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95)
    found = decoded(tmp_path, content)
    assert found.shape == (24, 40, 3)
    assert np.abs(found.astype(int) - picture()).mean() < 6


def test_the_content_counts_when_the_name_says_otherwise(tmp_path: Path):
    content = encoded(Image.fromarray(picture()), "PNG")
    assert np.array_equal(decoded(tmp_path, content, "image.jpg"), picture())


def decoded_or_refused(folder: Path, content: bytes) -> np.ndarray | str:
    """The pixels, or what the error says."""
    try:
        return decoded(folder, content, "cut")
    except InputError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL says twice what is wrong with a TIFF file
@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_a_file_is_refused_with_its_name_when_it_was_cut_short_anywhere(tmp_path: Path, form: str):
    content = encoded(Image.fromarray(picture()), form)
    whole = decoded(tmp_path, content)
    for length in range(0, len(content), max(1, len(content) // 50)):
        found = decoded_or_refused(tmp_path, content[:length])
        if isinstance(found, str):
            assert found.startswith("cut: ")
            assert len(found.splitlines()) == 1
        else:  # only what carries no pixels may be missing
            assert np.array_equal(found, whole)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8\xff", b"<html>not found</html>", b"\xff\xd8\xff" + bytes(500), b"\x89PNG\r\n\x1a\n"]
)
def test_a_file_is_refused_with_its_name_when_it_is_no_image(tmp_path: Path, content: bytes):
    with pytest.raises(InputError, match=r"broken\.jpg: cannot be read as an image"):
        decoded(tmp_path, content, "broken.jpg")


def test_a_file_is_refused_with_its_name_when_it_vanished(tmp_path: Path):
    with pytest.raises(InputError, match=r"gone\.png"):
        ImageReader(index_of(tmp_path, ["gone.png"], [0])).whole(0)


def test_a_crop_is_cut_and_shrunk_as_pil_does_when_a_box_is_given():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    found = crop_and_resize(pixels, Box(left=10, top=5, width=50, height=40), 16)
    expected = Image.fromarray(pixels).crop((10, 5, 60, 45)).resize((16, 16), Image.Resampling.BILINEAR)
    assert found.shape == (16, 16, 3)
    assert np.abs(found.astype(int) - np.array(expected)).max() <= 1


def test_a_crop_is_the_pixels_themselves_when_it_has_the_size_asked_for():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    found = crop_and_resize(pixels, Box(left=10, top=5, width=32, height=32), 32)
    assert np.array_equal(found, pixels[5:37, 10:42])


TO_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
FROM_UPRIGHT = {**TO_UPRIGHT, 6: Transpose.ROTATE_90, 8: Transpose.ROTATE_270}
SIZE = 12


def turned(image: Image.Image, turns: dict[int, Transpose], orientation: int) -> Image.Image:
    return image if orientation == 1 else image.transpose(turns[orientation])


def detailed(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Noise of all wavelengths from 8 px on, the longer the stronger, as in photographs."""
    layers = [
        np.asarray(
            Image.fromarray(rng.normal(size=(-(-height // n) + 1, -(-width // n) + 1)) * n).resize((width, height))
        )
        for n in (8, 16, 32, 64)
    ]
    gray = np.clip(128 + sum(layers), 0, 255)
    return Image.fromarray(np.stack([gray, gray[::-1], gray[:, ::-1]], axis=-1).astype(np.uint8))


def rounded_as_stored(box: Box, upright: Image.Image, orientation: int, unit: int) -> tuple[int, ...]:
    """Left, top, right, bottom of the box in the stored image, to the nearest multiples of `unit` px."""
    mask = Image.new("L", upright.size)
    mask.paste(255, (box.left, box.top, box.left + box.width, box.top + box.height))
    stored = turned(mask, FROM_UPRIGHT, orientation)
    edges = stored.getbbox()
    assert edges is not None
    return tuple(min(unit * round(edge / unit), side) for edge, side in zip(edges, 2 * stored.size, strict=True))


def decibels(found: np.ndarray, expected: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((found.astype(float) - expected) ** 2))


@pytest.mark.parametrize("unit", [2, 4])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_is_that_of_the_whole_image_when_it_is_decoded_at_a_fraction(orientation: int, unit: int):
    rng = np.random.default_rng(orientation)
    same, exact, moved = [], [], []
    for _ in range(12):
        width, height = (int(side) for side in rng.integers(26 * unit, 40 * unit, 2))
        upright = detailed(width, height, rng)
        content = encoded(turned(upright, FROM_UPRIGHT, orientation), "JPEG", quality=95)
        w, h = (int(rng.integers(2 * SIZE * unit, side - 2 * unit + 1)) for side in (width, height))
        w = min(w, 4 * SIZE * unit - 1)  # or an even smaller fraction would do
        box = Box(int(rng.integers(width - w - 2 * unit + 1)), int(rng.integers(height - h - 2 * unit + 1)), w, h)
        found = decode(content, box, SIZE, orientation, scaled=True)
        seen = Image.open(io.BytesIO(content)).crop(rounded_as_stored(box, upright, orientation, unit))
        expected = np.array(turned(seen.resize((SIZE, SIZE), Image.Resampling.BILINEAR), TO_UPRIGHT, orientation))
        same.append(decibels(found, expected))
        exact.append(decibels(found, decode(content, box, SIZE, orientation)))
        for aside in (box._replace(left=box.left + 2 * unit), box._replace(top=box.top + 2 * unit)):  # the control
            moved.append(decibels(decode(content, aside, SIZE, orientation, scaled=True), expected))
    assert min(same) > 36 > max(moved)  # least where the image's last, partial block is in it
    assert np.mean(exact) > 35  # the edges are rounded
