"""How images become square: what --fit shows of them, in evaluation, in training, and from every cache."""

import io
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.conftest import index_of
from tests.unit.data.test_zoo import ORIENTATION, encoded, smooth
from toolkit import Settings
from toolkit.config.choices import Fit
from toolkit.data.images.augment import Augmenter, seen_box
from toolkit.data.images.decode import Box, crop_and_resize, decode
from toolkit.data.images.preprocess import MEAN_COLOR, Preprocess
from toolkit.data.loading.batches import EvalBatchBuilder, load
from toolkit.data.loading.cache import CacheChoice, open_readers
from toolkit.data.loading.pipeline import make_augmenter
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.index import Index
from toolkit.tools.export_uint8 import Uint8Input

FITS = get_args(Fit)
WHOLE = ("pad", "squash")
SHAPES = [(64, 48), (48, 64), (65, 48), (37, 64), (64, 64), (300, 7), (7, 300), (90, 1), (1, 90), (1, 1), (5, 3)]


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def drawn(fit: Fit, width: int, height: int, crop_scale: float = 0.35, count: int = 400) -> list[Box]:
    """The boxes of so many images of one size in training."""
    sides = np.full(count, width), np.full(count, height)
    return Augmenter(crop_scale, False, 5, fit=fit).draw(0, np.arange(count), *sides, 1.0)[0]


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_a_padded_image_lies_whole_in_the_middle_of_the_mean_color(width: int, height: int):
    pixels, size = noise(width, height), 32
    found = crop_and_resize(pixels, seen_box(width, height, "pad"), size)
    scale = size / max(width, height)
    inside = max(1, round(width * scale + 1e-9)), max(1, round(height * scale + 1e-9))  # px
    left, top = ((size - side) // 2 for side in inside)
    expected = Image.new("RGB", (size, size), MEAN_COLOR)
    expected.paste(Image.fromarray(pixels).resize(inside, Image.Resampling.BILINEAR), (left, top))
    assert np.abs(found.astype(int) - np.array(expected)).max() <= 1  # PIL rounds otherwise
    border = np.ones((size, size), dtype=bool)
    border[top : top + inside[1], left : left + inside[0]] = False
    assert (found[border] == MEAN_COLOR).all()
    assert max(inside) == size


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_a_squashed_image_fills_the_square(width: int, height: int):
    pixels = noise(width, height)
    found = crop_and_resize(pixels, seen_box(width, height, "squash"), 32)
    expected = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(found.astype(int) - np.array(expected)).max() <= 1


def test_the_mean_color_normalizes_to_about_0():
    pixels = Preprocess(1, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).normalize(np.uint8([[MEAN_COLOR]]))
    assert np.abs(pixels).max() < 0.01


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_training_without_crops_has_the_pixels_of_evaluation(form: str, turned: int, fit: Fit, tmp_path: Path):
    """The sides leave an odd number of pixels to pad, which must not change sides where an image is turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = turned
    full = {"subsampling": 0} if form == "JPEG" else {}  # training repeats halved chroma, evaluation smooths it
    (tmp_path / "photo").write_bytes(encoded(smooth(52, 33), form, exif=exif, **full))
    index = replace(index_of(tmp_path, ["photo"], [0]), fit=fit)
    (box,), _ = Augmenter(1.0, False, 0, fit=fit).draw(0, np.array([0]), index.width, index.height, 1.0)
    reader = ImageReader(index)
    trained = reader.crop(0, box, 33).astype(int)
    evaluated = load(EvalBatchBuilder(reader, (33,)), np.array([0])).images[33][0].permute(1, 2, 0).numpy()
    # A mirrored file is resized before it is turned, which rounds otherwise.
    assert np.abs(trained - evaluated).max() <= 1
    assert np.array_equal((trained == MEAN_COLOR).all(-1), (evaluated == MEAN_COLOR).all(-1))


@pytest.mark.parametrize("fit", WHOLE)
@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_a_box_of_training_lies_inside_the_image(width: int, height: int, fit: Fit):
    for box in drawn(fit, width, height):
        assert box.pad == (fit == "pad")
        assert min(box.left, box.top) >= 0
        assert 1 <= box.width <= width - box.left
        assert 1 <= box.height <= height - box.top


@pytest.mark.parametrize("fit", WHOLE)
def test_boxes_have_the_images_own_shape_more_or_less_and_reach_every_border(fit: Fit):
    boxes = drawn(fit, 1600, 900, count=2000)
    areas = np.array([box.width * box.height for box in boxes]) / (1600 * 900)
    ratios = np.array([box.width / box.height for box in boxes]) / (16 / 9)
    assert 0.34 <= areas.min() < 0.37
    assert 0.95 < areas.max() <= 1
    assert 0.74 <= ratios.min() < 0.78
    assert 1.28 < ratios.max() <= 1.35
    assert min(box.left for box in boxes) == 0
    assert max(box.left + box.width for box in boxes) == 1600
    cropped = drawn("crop", 1600, 900, count=2000)  # control: of the image's height at most 4/3
    assert max(box.width for box in cropped) <= 1200 < max(box.width for box in boxes)


@pytest.mark.parametrize("fit", WHOLE)
def test_a_box_is_the_whole_image_when_nothing_is_cropped(fit: Fit):
    assert {*drawn(fit, 64, 37, crop_scale=1.0)} == {Box(0, 0, 64, 37, fit == "pad")} == {seen_box(64, 37, fit)}


def decibels(found: np.ndarray, expected: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(1e-9, np.mean((found.astype(float) - expected) ** 2)))


@pytest.mark.parametrize(
    ("width", "height", "fit", "scaled"),
    [
        (512, 384, "pad", True),  # 8 px for each of the 64
        (512, 40, "pad", True),
        (40, 512, "pad", True),
        (512, 384, "squash", True),  # 6 px or more
        (512, 40, "squash", False),  # less than one px of height
        (250, 250, "pad", False),  # below 4
        (250, 250, "squash", False),
    ],
)
def test_a_jpeg_is_decoded_at_a_fraction_only_where_that_shows_as_much(width: int, height: int, fit: Fit, scaled: bool):
    content, box = encoded(smooth(width, height), "JPEG", subsampling=0), seen_box(width, height, fit)
    found, exact = decode(content, box, 64, scaled=True), decode(content, box, 64)
    assert np.array_equal(found, exact) != scaled
    assert decibels(found, exact) > 40


def photographs(folder: Path) -> Index:
    """Pictures of 4:3 and 3:4, whose left or upper border is red."""
    folder.mkdir()
    for i in range(6):
        pixels = np.array(smooth(*((320, 240) if i % 2 else (240, 320))))
        pixels[: 40 if i % 2 == 0 else None, : 40 if i % 2 else None] = (250, 20, 20)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return index_of(folder, [f"{i}.png" for i in range(6)], [0] * 6)


@pytest.mark.parametrize("kind", ["ram", "disk", "off"])
@pytest.mark.parametrize("fit", FITS)
def test_every_cache_shows_what_the_files_do(kind, fit: Fit, tmp_path: Path):
    settings, size = Settings(data_root="photos", fit=fit, crop_scale=0.5, hflip=False), 32
    originals = photographs(tmp_path / "photos").seen_by(settings)
    (reader,) = open_readers(CacheChoice(kind, (None if kind == "off" else 2 * size,), 0.0), originals, tmp_path)
    augmenter = make_augmenter(settings, None)
    for epoch, regularization in enumerate((0.0, 1.0, 1.0)):
        for i in range(6):
            views = []
            for index, images in ((originals, ImageReader(originals)), (reader.index, reader)):
                sides = index.width[i : i + 1], index.height[i : i + 1]
                (box,), _ = augmenter.draw(epoch, np.array([i]), *sides, regularization)
                views.append(images.crop(i, box, size))
            # A crop's sides are rounded in px of the copy, so that a padded one may take a row more or less.
            assert decibels(*views) > (20 if fit == "pad" and regularization else 28), (epoch, i)
            red = [((view[..., 0] > 200) & (view[..., 1] < 80)).mean() for view in views]
            assert red[0] == pytest.approx(red[1], abs=0.04)
            if regularization == 0:
                assert (red[0] > 0.06) == (fit != "crop")  # the square in the middle leaves out most of the border


class Pixels(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels


@pytest.mark.parametrize("fit", FITS)
def test_the_graph_that_takes_an_image_has_the_pixels_of_preprocessing(fit: Fit):
    for size in (16, 33):
        graph, prepare = Uint8Input(Pixels(), size, (0,) * 3, (1 / 255,) * 3, fit), Preprocess(size, (), (), fit=fit)
        for width, height in [*SHAPES, *((side + 5, side) for side in range(1, 70, 3))]:
            image, file = noise(width, height), io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            found = graph(torch.from_numpy(image))[0].permute(1, 2, 0).numpy()
            assert np.abs(found - prepare.square(file.getvalue())).max() < 1e-3, (size, width, height)
