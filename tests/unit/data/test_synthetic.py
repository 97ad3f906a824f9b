"""The built-in data: real files, the same for the same seed."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import paths_of
from toolkit import Settings
from toolkit.data.sources import synthetic
from toolkit.data.sources.splits import open_splits
from toolkit.data.sources.synthetic import CLASSES
from toolkit.system import files


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    synthetic.write(folder, 24, 90, seed=1)
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
    synthetic.write(tmp_path / "again", 24, 90, seed=1)
    synthetic.write(tmp_path / "other", 24, 90, seed=2)
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
    half = files.cache_dir() / f".tmp-{folder.name}" / "train" / "half"
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
    assert first.is_relative_to(files.cache_dir())
    with Image.open(first) as image:
        assert image.size == (16, 16)


def test_built_in_images_have_the_size_asked_for_when_it_is_given():
    splits = open_splits(Settings(synthetic_count=60, synthetic_size=20), 16)
    with Image.open(paths_of(splits.train)[0]) as image:
        assert image.size == (20, 20)
    assert set(splits.train.width.tolist()) == set(splits.val.height.tolist()) == {20}
