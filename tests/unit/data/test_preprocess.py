"""The preprocessing that exports hold gives the pixels of evaluation, whatever the file."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import index_of
from tests.unit.data.test_zoo import ACCEPTED, ORIENTATION, encoded, smooth
from toolkit.config.choices import Fit, GrayRange
from toolkit.data.images import preprocess, views
from toolkit.data.images.formats import FORMATS
from toolkit.data.images.preprocess import Preprocess
from toolkit.data.loading.batches import EvalBatchBuilder, load
from toolkit.data.loading.reader import ImageReader

SIDES = [*range(1, 24), 31, 33, 62, 63, 125, 126, 200, 257]
PLAIN = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def evaluated(
    folder: Path, files: dict[str, bytes], size: int, gray: GrayRange = "16bit", fit: Fit = "crop"
) -> list[np.ndarray]:
    """Each file as evaluation gives it to the network, S x S x 3 uint8."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    index = replace(index_of(folder, [*files], [0] * len(files)), gray=gray, fit=fit)
    batch = load(EvalBatchBuilder(ImageReader(index), (size,)), np.arange(len(files)))
    return [*batch.images[size].permute(0, 2, 3, 1).numpy()]


def noise(width: int, height: int) -> Image.Image:
    """Black and white at full contrast, where a shift by half a pixel changes most."""
    draws = np.random.default_rng(width * 1000 + height).integers(0, 2, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(draws * 255)


@pytest.mark.parametrize("fit", get_args(Fit))
@pytest.mark.parametrize("size", [16, 33, 64])
def test_pixels_are_those_of_evaluation_when_sides_are_odd_and_differ(size: int, fit: Fit, tmp_path: Path):
    apart = {"crop": lambda side: range(8)}.get(fit, lambda side: (0, 1, 2, side // 3, 3 * side))
    shapes = [(side, side + more) for side in SIDES for more in apart(side)]
    files = {}
    for i, (side, longer) in enumerate(shapes):
        width, height = (side, longer) if i % 2 else (longer, side)
        files[f"{width}x{height}-{i}.png"] = encoded(noise(width, height), "PNG")
    prepare, found = Preprocess(size, **PLAIN, fit=fit), evaluated(tmp_path, files, size, fit=fit)
    different = [
        name
        for (name, content), pixels in zip(files.items(), found, strict=True)
        if not np.array_equal(prepare.square(content), pixels)
    ]
    assert different == []


def photos() -> dict[str, bytes]:
    """JPEGs of every chroma subsampling, progressive, gray and CMYK, and every orientation."""
    picture = smooth(125, 90)
    files = {f"{n}.jpg": encoded(picture, "JPEG", quality=60 + 10 * n, subsampling=n) for n in range(3)}
    files["progressive.jpg"] = encoded(picture, "JPEG", progressive=True)
    files["gray.jpg"] = encoded(picture.convert("L"), "JPEG")
    files["cmyk.jpg"] = encoded(picture.convert("CMYK"), "JPEG")
    for turned in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = turned
        for form in ("JPEG", "PNG", "WEBP"):
            files[f"turned-{turned}.{form.lower()}"] = encoded(picture, form, exif=exif)
    return files


@pytest.mark.parametrize("fit", get_args(Fit))
def test_pixels_are_those_of_evaluation_when_files_are_of_many_kinds(fit: Fit, tmp_path: Path):
    files = {**{name: content for name, (content, *_) in ACCEPTED.items()}, **photos()}
    prepare = Preprocess(33, **PLAIN, fit=fit)
    for (name, content), pixels in zip(files.items(), evaluated(tmp_path, files, 33, fit=fit), strict=True):
        assert np.array_equal(prepare.square(content), pixels), name


@pytest.mark.parametrize("gray", ["16bit", "minmax", "percentile"])
def test_deep_gray_is_mapped_as_in_the_training(gray: GrayRange, tmp_path: Path):
    values = np.random.default_rng(0).integers(900, 4096, (63, 70), dtype=np.uint16)
    files = {f"deep.{form}": encoded(Image.fromarray(values), form) for form in ("png", "tiff")}
    found = evaluated(tmp_path, files, 32, gray)
    for content, pixels in zip(files.values(), found, strict=True):
        assert np.array_equal(Preprocess(32, **PLAIN, gray=gray).square(content), pixels)
    assert (found[0].max() > 200) == (gray != "16bit")  # control: the range matters


def test_normalized_pixels_are_those_of_evaluation_but_for_rounding():
    square = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    batch = torch.from_numpy(square).permute(2, 0, 1)[None]
    expected = views.normalize(batch, *map(torch.tensor, PLAIN.values())).numpy()
    pixels = Preprocess(64, **PLAIN).normalize(square)
    assert (pixels.dtype, pixels.shape) == (np.float32, (1, 3, 64, 64))
    assert np.abs(pixels - expected).max() <= 1e-6


BROKEN = {
    "text": b"hello, I am no image",
    "empty": b"",
    "a truncated JPEG": encoded(smooth(), "JPEG")[:300],
    "a truncated PNG": encoded(noise(20, 20), "PNG")[:200],
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_image_is_refused_with_one_line(content: bytes):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        Preprocess(16, **PLAIN)(content)


ALONE = """
import sys
from preprocess import Preprocess
prepare = Preprocess.load(sys.argv[1])
print(prepare.size, prepare(open("photo.png", "rb").read()).shape)
print(*{"toolkit", "torch", "timm", "simplejpeg"} & {*sys.modules})
"""


def test_the_file_works_alone_with_numpy_and_pillow(tmp_path: Path):
    shutil.copy(preprocess.__file__, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"preprocess": {"size": 16, **PLAIN, "gray": "minmax"}}))
    smooth().save(tmp_path / "photo.png")
    (tmp_path / "main.py").write_text(ALONE)
    command = [sys.executable, "main.py", "."]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["16 (1, 3, 16, 16)", ""], done.stderr


def test_its_formats_are_those_that_have_endings():
    assert {*preprocess.FORMATS} == {*FORMATS}
    with Image.open(io.BytesIO(encoded(smooth(), "PNG")), formats=preprocess.readable_formats()) as image:
        assert image.format == "PNG"
