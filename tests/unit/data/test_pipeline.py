"""Each phase draws from the cheapest source that the settings, the data and the memory allow."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import index_of, write_folders, write_image
from toolkit import InputError, Settings
from toolkit.data.loading.cache import choose_cache
from toolkit.data.loading.pipeline import check_readable, open_pipeline
from toolkit.data.loading.reader import Memory
from toolkit.data.sources.index import ALONE, Index, Names, Splits
from toolkit.data.sources.splits import open_splits
from toolkit.strategies import Progressive, SingleScale
from toolkit.strategies.base import Phase

SMALL, LARGE, LARGEST = (Phase(i, 1, 1, (size,), 4) for i, size in enumerate((16, 64, 224)))


def index_of_size(count: int, width: int, height: int) -> Index:
    """An index of images that nobody reads."""
    alike = {"width": width, "height": height, "orientation": 1, "container": ALONE, "offset": 0, "length": 1}
    columns = {name: np.full(count, value, dtype=np.int64) for name, value in alike.items()}
    return Index("/data", Names.of(map(str, range(count))), (), labels=np.arange(count) % 2, **columns)


def splits_of(count: int, width: int, height: int) -> Splits:
    return Splits(index_of_size(count, width, height), index_of_size(2, 10, 10), None, ("cat", "dog"), "made up")


def settings_of(**values) -> Settings:
    return Settings(data_root="/data", log_with="none", **values)


# 1000 images of 100 x 100 px and 2 of 10 x 10 take 3 * (1000 * 10,000 + 2 * 100) = 30,000,600 bytes; for 16 px, 32 do:
# 3 * (1000 * 1,024 + 2 * 100) = 3,072,600 bytes; both together 33,072,600.
@pytest.mark.parametrize(
    ("choice", "bound_gb", "phases", "expected"),
    [
        ("auto", 0.0330726, (SMALL, LARGE), "ram"),  # to the byte
        ("auto", 0.0330725, (SMALL, LARGE), "disk"),  # 32 px serve 16; the original's 100 are more than twice that
        ("auto", 0.0300006, (LARGE,), "ram"),
        ("auto", 0.0300005, (LARGE,), "off"),  # 128 px would be larger than the original
        ("auto", 0.0030726, (SMALL,), "ram"),
        ("auto", 0.0030725, (SMALL,), "disk"),
        ("ram", 4.0, (SMALL,), "ram"),
        ("disk", 4.0, (LARGE,), "disk"),
        ("off", 4.0, (SMALL,), "off"),
    ],
)
def test_the_cache_is_chosen_by_settings_and_data_when_it_is_left_open(choice, bound_gb, phases, expected):
    settings = settings_of(cache=choice, cache_gb=bound_gb)
    assert choose_cache(settings, splits_of(1000, 100, 100), phases, 1).kind == expected


@pytest.mark.parametrize(("cache", "sides"), [("off", (None, None)), ("disk", (32, None)), ("ram", (32, None))])
def test_a_phase_reads_the_originals_where_nothing_is_cached(cache: str, sides: tuple[int | None, ...]):
    assert choose_cache(settings_of(cache=cache), splits_of(1000, 100, 100), (SMALL, LARGE), 1).sides == sides


def test_a_cache_in_memory_is_refused_with_the_arithmetic_when_it_exceeds_the_bound():
    with pytest.raises(InputError, match=r"--cache ram: .* take 0\.6 GB .* more than --cache-gb 0\.5"):
        choose_cache(settings_of(cache="ram", cache_gb=0.5), splits_of(1000, 500, 400), (LARGEST,), 1)


# 0.6 GB are 80% of 0.75 GB.
@pytest.mark.parametrize(
    ("free_gb", "phases", "expected"),
    [(0.76, (LARGEST,), "ram"), (0.74, (LARGEST,), "off"), (0.74, (LARGEST, LARGE), "disk")],
)
def test_another_cache_is_taken_when_images_would_fit_their_bound_but_not_the_memory(free_gb, phases, expected):
    assert choose_cache(settings_of(cache_gb=1), splits_of(1000, 500, 400), phases, free_gb).kind == expected


def test_a_cache_in_memory_is_refused_when_it_was_asked_for_and_does_not_fit():
    settings, splits = settings_of(cache="ram", cache_gb=1), splits_of(1000, 500, 400)
    assert choose_cache(settings, splits, (LARGEST,), 0.76).kind == "ram"  # control
    with pytest.raises(InputError, match=r"--cache ram: 0\.6 GB .* in each .* its 0\.7 GB of free memory"):
        choose_cache(settings, splits, (LARGEST,), 0.74)


def opened(tmp_path: Path, cache: str, scales: tuple[int, ...]):
    """The feed of a progressive run over photographs of 100 x 80 px, and its phases."""
    for split, count in (("train", 4), ("val", 1)):
        for name in ("cat", "dog"):
            for i in range(count):
                write_image(tmp_path / "data" / split / name / f"{i}.png", (100, 80), seed=i)
    settings = Settings(
        data_root=str(tmp_path / "data"), batch_size=4, epochs=3, cache=cache, cache_dir=tmp_path / "cache"
    )
    strategy = Progressive(scales)
    splits = open_splits(settings, scales[-1])
    phases = tuple(Phase(i, 1, 2, (size,), 4) for i, size in enumerate(scales))
    choice = choose_cache(settings, splits, phases, 1)
    return open_pipeline(settings, strategy, splits, choice, 0), choice.describe(phases)


def sides(pipeline) -> list[int]:
    """The height of the images that each phase draws from, px."""
    return [int(source.index.height[0]) for source in pipeline.sources]


def test_each_phase_has_the_tier_that_suits_it_when_tiers_are_cached(tmp_path: Path):
    pipeline, words = opened(tmp_path, "disk", (8, 20, 64))
    assert sides(pipeline) == [16, 40, 80]  # twice the size; 128 px would be more than there is
    assert words == "downscaled copies on disk: 16 px for phase 0, 40 px for phase 1"


def test_all_phases_share_one_source_when_nothing_is_cached(tmp_path: Path):
    pipeline, words = opened(tmp_path, "off", (8, 20, 64))
    assert sides(pipeline) == [80, 80, 80]
    assert len({id(source) for source in pipeline.sources}) == 1
    assert words == "nothing cached"


def test_memory_holds_the_size_that_suits_each_phase_when_images_are_much_larger(tmp_path: Path):
    pipeline, words = opened(tmp_path, "ram", (8, 20, 64))
    assert sides(pipeline) == [16, 40, 80]
    small = pipeline.sources[1].whole(0)
    expected = Image.fromarray(pipeline.sources[2].whole(0)).resize((50, 40), Image.Resampling.LANCZOS)
    assert np.array_equal(small, np.array(expected))
    # 8 images of 20 x 16, 50 x 40 and 100 x 80 px, and 2 of 100 x 80: 3 * (8 * (320 + 2000 + 8000) + 16,000) bytes
    assert words == "decoded images kept in memory, 0.0003 GB per process, 16 px for phase 0, 40 px for phase 1"


@pytest.mark.parametrize("cache", ["ram", "disk", "off"])
def test_only_memory_serves_images_whose_files_are_gone_when_it_met_them(tmp_path: Path, cache: str):
    pipeline, _ = opened(tmp_path, cache, (64, 80))
    val = pipeline.evaluated["val"]
    before = val.whole(0).copy()
    for path in tmp_path.glob("data/*/*/*.png"):
        path.unlink()
    if cache == "ram":
        assert np.array_equal(val.whole(0), before)
    else:
        with pytest.raises(InputError, match="No such file"):
            val.whole(0)


def test_memory_takes_the_decoded_bytes_and_hands_back_what_was_put_when_it_is_filled():
    index = index_of_size(3, 5, 4)
    memory, pixels = Memory(index), np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert sum(memory.slot(i).nbytes for i in range(3)) == index.decoded_bytes == 180
    assert memory.get(1) is None
    memory.put(1, pixels)
    assert np.array_equal(memory.get(1), pixels)
    assert memory.get(0) is None  # control: neighbors are untouched
    assert not memory.slot(0).any()
    assert not memory.slot(2).any()


def test_the_first_unreadable_image_is_named_with_their_number_when_there_are_several(tmp_path: Path):
    root = write_folders(tmp_path / "data", {"train": 3, "val": 2})
    settings = Settings(data_root=str(root), cache_dir=tmp_path / "cache")
    check_readable(open_splits(settings, 32))  # control
    for name in ("train/cat/1.png", "train/dog/2.png", "val/dog/0.png"):
        (root / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"^train/cat/1\.png: .* the file is empty \(and 2 more\); `toolkit scan`"):
        check_readable(open_splits(settings, 32))


def test_the_number_is_left_out_when_one_image_is_unreadable(tmp_path: Path):
    write_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"<html>")
    index = index_of(tmp_path, ["a.png", "b.png"], [0, 1])
    with pytest.raises(InputError, match=r"^b\.png: .*no image in a known format; `toolkit scan` lists all"):
        check_readable(Splits(index, index.take(np.array([0])), None, ("cat", "dog"), "made up"))


def test_the_evaluated_splits_are_those_that_there_are_when_a_feed_is_opened(tmp_path: Path):
    root = write_folders(tmp_path / "data", {"train": 3, "val": 2, "test": 1})
    settings = Settings(data_root=str(root), cache_dir=tmp_path / "cache", cache="off", batch_size=2)
    splits = open_splits(settings, 16)
    pipeline = open_pipeline(settings, SingleScale(16), splits, choose_cache(settings, splits, (SMALL,), 1), 0)
    assert {name: len(source.index) for name, source in pipeline.evaluated.items()} == {"val": 4, "test": 2}
