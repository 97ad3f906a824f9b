"""The built-in data: real files, the same for the same seed."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.conftest import paths_of
from toolkit import InputError, Settings
from toolkit.config.data_roots import BUILT_IN
from toolkit.data.sources import characters, synthetic
from toolkit.data.sources.shapes import CLASSES
from toolkit.data.sources.splits import open_splits
from toolkit.system import places


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    synthetic.write(folder, 24, synthetic.split_counts(90, 10), seed=1)
    return folder


def test_there_are_ten_classes_of_five_shapes_and_two_textures_when_listed():
    assert len(CLASSES) == len(set(CLASSES)) == 10
    assert len({name.split("-")[0] for name in CLASSES}) == 5
    assert {name.split("-")[1] for name in CLASSES} == {"stripes", "checks"}


def test_classes_are_balanced_in_every_split_when_files_are_written(written: Path):
    counts = Counter(tuple(name.split("/")[:2]) for name in contents(written))
    assert {split: sum(n for key, n in counts.items() if key[0] == split) for split in ("train", "val", "test")} == {
        "train": 90,
        "val": 15,
        "test": 30,
    }
    assert set(counts) == {(split, name) for split in ("train", "val", "test") for name in CLASSES}
    assert {n for (split, _), n in counts.items() if split == "train"} == {9}
    assert {n for (split, _), n in counts.items() if split == "test"} == {3}
    assert {n for (split, _), n in counts.items() if split == "val"} == {1, 2}


def test_files_are_rgb_jpegs_of_the_native_size_when_written(written: Path):
    for path in written.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (24, 24))


def test_images_are_distinct_when_written(written: Path):
    assert len(set(contents(written).values())) == 135


def test_bytes_are_the_same_when_the_seed_is_and_others_when_it_is_not(written: Path, tmp_path: Path):
    counts = synthetic.split_counts(90, 10)
    synthetic.write(tmp_path / "again", 24, counts, seed=1)
    synthetic.write(tmp_path / "other", 24, counts, seed=2)
    assert contents(tmp_path / "again") == contents(written)
    other = contents(tmp_path / "other")
    assert set(other) == set(contents(written))
    assert not set(other.values()) & set(contents(written).values())


def test_data_is_drawn_once_when_asked_for_again(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    folder = synthetic.prepare(16, 30)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}
    assert synthetic.prepare(16, 30) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")} == times
    assert len({synthetic.prepare(16, 30), synthetic.prepare(20, 30), synthetic.prepare(16, 40)}) == 3


def test_data_is_whole_when_an_earlier_process_was_killed_while_drawing(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "one"))
    folder = synthetic.prepare(16, 30)
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "two"))
    half = places.cache_dir() / f".tmp-{folder.name}" / "train" / "half"
    half.mkdir(parents=True)
    (half / "0.jpg").write_bytes(b"half")
    again = synthetic.prepare(16, 30)
    assert contents(again) == contents(folder)
    assert not half.parent.parent.exists()


def test_built_in_data_goes_the_way_of_any_folder_when_opened():
    splits = open_splits(Settings(synthetic_count=60), 16)
    assert (len(splits.train), len(splits.val)) == (60, 10)
    assert splits.test is not None
    assert len(splits.test) == 20
    assert splits.classes == tuple(sorted(CLASSES))
    first = paths_of(splits.train)[0]
    assert first.is_relative_to(places.cache_dir())
    with Image.open(first) as image:
        assert image.size == (16, 16)


def test_built_in_images_have_the_size_asked_for_when_it_is_given():
    splits = open_splits(Settings(synthetic_count=60, synthetic_size=20), 16)
    with Image.open(paths_of(splits.train)[0]) as image:
        assert image.size == (20, 20)
    assert set(splits.train.width.tolist()) == set(splits.val.height.tolist()) == {20}


def test_characters_have_64_classes_of_any_size_and_count_when_drawn(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    splits = open_splits(Settings(data_root="characters", synthetic_count=64, synthetic_size=20), 16)
    assert (len(splits.train), len(splits.val), len(splits.classes)) == (64, 64, 64)
    assert splits.source == "built-in characters, 20 px"
    assert set(splits.train.width.tolist()) == {20}
    assert Counter(splits.train.labels.tolist()) == dict.fromkeys(range(64), 1)
    few = open_splits(Settings(data_root="characters", synthetic_count=40, synthetic_classes=12), 16)
    assert (len(few.classes), few.classes[:2]) == (12, ("00-0041", "01-0042"))  # A and B


def test_characters_are_the_same_bytes_when_drawn_again_and_others_with_another_seed(tmp_path: Path):
    counts = {"train": 8, "val": 4, "test": 4}
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        synthetic.write(tmp_path / name, 24, counts, seed, "characters", 4)
    assert contents(tmp_path / "one") == contents(tmp_path / "again")
    assert not set(contents(tmp_path / "one").values()) & set(contents(tmp_path / "other").values())


def stencils(known: str) -> np.ndarray:
    """Fonts x characters x 20 x 20: each character upright, enlarged to fill a square of 20 px."""
    drawn = []
    for font in characters._fonts(80):
        for character in known:
            page = Image.new("L", (160, 160))
            ImageDraw.Draw(page).text((80, 80), character, fill=255, font=font, anchor="mm")
            box = page.getbbox()
            assert box, (font.path, character)
            side = max(box[2] - box[0], box[3] - box[1])
            square = Image.new("L", (side, side))
            square.paste(page.crop(box), ((side - box[2] + box[0]) // 2, (side - box[3] + box[1]) // 2))
            drawn.append(np.asarray(square.resize((20, 20), Image.Resampling.BOX)) / 255)
    return np.array(drawn).reshape(-1, len(known), 20, 20)


def nearest(known: str) -> float:
    """The smallest mean difference between two characters of one font."""
    found = stencils(known)
    apart = np.abs(found[:, :, None] - found[:, None]).mean((3, 4))
    return float((apart + np.eye(len(known))).min())


def test_every_font_tells_the_64_characters_apart_at_20_px_and_not_the_further_ones():
    assert nearest(characters.CHARACTERS) > 0.025
    assert nearest(characters.CHARACTERS + "l") < 0.02  # the control: in some fonts l is an I


@pytest.mark.parametrize(
    ("root", "classes", "words"),
    [
        ("characters", 1, "--synthetic-classes 1: --data-root characters has 2 to 79"),
        ("characters", 80, "--synthetic-classes 80: .*2 to 79"),
        ("synthetic", 12, "--synthetic-classes 12: --data-root synthetic has 10"),
    ],
)
def test_a_number_of_classes_is_refused_with_the_rule_when_there_are_not_as_many(root: str, classes: int, words: str):
    with pytest.raises(InputError, match=words):
        open_splits(Settings(data_root=root, synthetic_classes=classes, synthetic_count=20), 16)


def test_characters_are_neither_mirrored_nor_cropped_unless_asked():
    assert {root: (Settings(data_root=root).hflip, Settings(data_root=root).crop_scale) for root in BUILT_IN} == {
        "synthetic": (True, 1.0),
        "characters": (False, 1.0),
    }
    assert Settings(data_root="characters", hflip=True).hflip
