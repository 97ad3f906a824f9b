"""A downscaled copy is the same images, smaller, written once and whole."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import index_of, paths_of
from toolkit.data.loading.downscaled import downscaled_side, is_worthwhile, open_downscaled
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.index import ALONE, Index
from toolkit.system.errors import BadSampleError

SIZES = ((120, 90), (60, 200), (30, 20), (64, 64))  # width, height; the third is smaller than the tier
SIDE = 32


def picture(width: int, height: int) -> Image.Image:
    """Smooth waves of color, as photographs are smooth."""
    x, y = np.arange(width)[None, :, None], np.arange(height)[:, None, None]
    waves = 128 + 100 * np.sin(x / np.array([9, 14, 20]) + y / np.array([16, 11, 7]))
    return Image.fromarray(waves.astype(np.uint8))


def write_pictures(root: Path, count: int = len(SIZES)) -> Index:
    root.mkdir(exist_ok=True)
    names = [f"{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        picture(*SIZES[i % len(SIZES)]).save(root / name)
    return index_of(root, names, [i % 2 for i in range(count)])


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return write_pictures(tmp_path / "images")


def written(cache: Path) -> dict[Path, int]:
    """Files of all tiers and when they were written."""
    return {path: path.stat().st_mtime_ns for path in (cache / "tiers").glob("*/*")}


def test_the_shorter_side_is_that_of_the_tier_when_the_original_is_larger(index: Index, tmp_path: Path):
    tier = open_downscaled(index, SIDE, tmp_path)
    # 120 x 90: 32 / 90 of 120 is 42.7; 60 x 200: 32 / 60 of 200 is 106.7; 30 x 20 stays as it is
    assert list(zip(tier.width.tolist(), tier.height.tolist(), strict=True)) == [
        (43, 32),
        (32, 107),
        (30, 20),
        (32, 32),
    ]
    pixels = ImageReader(tier)
    assert [pixels.whole(i).shape for i in range(4)] == [(32, 43, 3), (107, 32, 3), (20, 30, 3), (32, 32, 3)]


def test_labels_and_names_are_the_originals_when_a_tier_is_opened(index: Index, tmp_path: Path):
    tier = open_downscaled(index, SIDE, tmp_path)
    assert (tier.labels.tolist(), list(tier.names)) == ([0, 1, 0, 1], ["0.png", "1.png", "2.png", "3.png"])


def test_pixels_are_close_to_the_original_when_both_have_half_the_size_of_the_tier(index: Index, tmp_path: Path):
    pixels = ImageReader(open_downscaled(index, SIDE, tmp_path))
    for i, (width, height) in enumerate(SIZES):
        found = Image.fromarray(pixels.whole(i))
        used = found.width // 2, found.height // 2  # the size that a tier is for
        expected = picture(width, height).resize(used, Image.Resampling.BILINEAR)
        errors = np.array(found.resize(used, Image.Resampling.BILINEAR), dtype=float) - np.array(expected)
        assert 10 * np.log10(255**2 / np.mean(errors**2)) > 32  # a picture of few pixels and strong colors


def test_a_tier_is_another_when_a_file_was_written_again_at_the_same_length(tmp_path: Path):
    for shade in (10, 200):
        Image.new("RGB", (64, 64), (shade, shade, shade)).save(tmp_path / "0.bmp")
        os.utime(tmp_path / "0.bmp", ns=(shade, shade))
        pixels = ImageReader(open_downscaled(index_of(tmp_path, ["0.bmp"], [0]), SIDE, tmp_path / "cache"))
        assert abs(int(pixels.whole(0).mean()) - shade) <= 1


def test_a_tier_is_written_once_when_it_is_opened_again(index: Index, tmp_path: Path):
    first = open_downscaled(index, SIDE, tmp_path)
    files = written(tmp_path)
    for path in paths_of(index):
        path.unlink()  # nothing is read again
    again = open_downscaled(index, SIDE, tmp_path)
    assert written(tmp_path) == files
    assert np.array_equal(ImageReader(again).whole(1), ImageReader(first).whole(1))


def test_a_tier_is_another_when_its_side_or_its_images_differ(index: Index, tmp_path: Path):
    open_downscaled(index, SIDE, tmp_path)
    assert len(written(tmp_path)) == 2
    open_downscaled(index, 24, tmp_path)
    assert len(written(tmp_path)) == 4
    open_downscaled(index.take(np.array([0, 1])), SIDE, tmp_path)
    assert len(written(tmp_path)) == 6


def test_an_unreadable_image_keeps_its_number_when_a_tier_is_written(index: Index, tmp_path: Path):
    paths_of(index)[1].write_bytes(b"no image")
    tier = open_downscaled(index, SIDE, tmp_path)
    assert tier.width.tolist() == [43, SIZES[1][0], 30, 32]
    assert tier.container.tolist() == [0, ALONE, 0, 0]  # it stays the original, which says why
    with pytest.raises(BadSampleError, match=r"^1\.png: cannot be read as an image"):
        ImageReader(tier).whole(1)
    assert ImageReader(tier).whole(2).shape == (20, 30, 3)


@pytest.mark.parametrize("damage", [lambda path: os.truncate(path, 900), Path.unlink], ids=["cut", "removed"])
def test_a_tier_is_written_again_when_its_images_are_not_whole(index: Index, tmp_path: Path, damage):
    open_downscaled(index, SIDE, tmp_path)
    (path,) = (tmp_path / "tiers").glob("*/images.bin")
    whole = path.read_bytes()
    damage(path)
    tier = open_downscaled(index, SIDE, tmp_path)
    assert path.read_bytes() == whole
    assert ImageReader(tier).whole(3).shape == (32, 32, 3)


WRITE = """
import sys
from pathlib import Path
from tests.unit.data.test_downscaled import SIDE, index_of
from toolkit.data.loading.downscaled import open_downscaled
root = Path(sys.argv[1])
names = sorted((path.name for path in root.iterdir()), key=lambda name: int(name[:-4]))
open_downscaled(index_of(root, names, [0] * len(names)), SIDE, root.parent)
"""


@pytest.mark.slow
def test_no_half_tier_is_left_when_the_writer_is_killed(tmp_path: Path):
    index = write_pictures(tmp_path / "images", 3000)
    with subprocess.Popen(
        [sys.executable, "-c", WRITE, str(tmp_path / "images")], cwd=Path(__file__).parents[3]
    ) as process:
        while process.poll() is None and not any(path.stat().st_size for path in tmp_path.glob("tiers/.tmp-*/*")):
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -9  # control: it had not ended
    assert list(tmp_path.glob("tiers/.tmp-*/images.bin"))
    assert not list(tmp_path.glob("tiers/[!.]*/images.bin"))
    tier = open_downscaled(index, SIDE, tmp_path)
    assert ImageReader(tier).whole(2999).shape == (32, 32, 3)
    assert not list(tmp_path.glob("tiers/.tmp-*"))


def test_a_tier_is_wide_enough_for_every_crop_when_the_smallest_is_small():
    assert downscaled_side(64, 0.35) == 128  # twice the size
    assert downscaled_side(64, 0.04) == 320  # a crop of 4% has a fifth of the side


@pytest.mark.parametrize(("side", "expected"), [(31, True), (32, True), (33, False)])
def test_a_tier_is_worthwhile_when_most_images_are_twice_as_large(tmp_path: Path, side: int, expected: bool):
    for name, size in (("a.png", (64, 80)), ("b.png", (64, 64)), ("c.png", (10, 10))):
        picture(*size).save(tmp_path / name)
    assert is_worthwhile(index_of(tmp_path, ["a.png", "b.png", "c.png"], [0, 1, 0]), side) == expected
