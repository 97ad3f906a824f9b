"""A transform of the user's own is exact, is never used in evaluation, and is tried before anything is written."""

import functools
import hashlib
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_data
import own_transform
import pytest
import torch
import yaml
from own_data import DATA
from own_transform import TORCHVISION, blocks, start
from PIL import Image
from runs import cut_off, delivered, different, kill, results
from torch import nn
from torchvision.transforms import v2

from tests.conftest import PATIENCE_S, recipe, write_folders
from tests.forkserver import run_ranks
from toolkit import InputError, Progressive, Settings, Simultaneous, SingleScale, train
from toolkit.data.images.augment import Augmenter
from toolkit.data.images.transform import Transform, make_transform, transform_name
from toolkit.runs import saved_predictions
from toolkit.training.parts import make_parts

STEPS = 8  # an epoch
TRANSFORMS = {"torchvision": TORCHVISION, "a function": blocks}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    run = tmp_path_factory.mktemp("transform") / "run"
    start(run, transform="own_transform:TORCHVISION")
    return run


def kill_in_the_second_epoch(_: Path, run: Path) -> None:
    kill(Path(own_transform.__file__), run, STEPS * 3 // 2)


CUT = [pytest.param(cut_off, id="cut off"), pytest.param(kill_in_the_second_epoch, id="killed", marks=pytest.mark.slow)]


@pytest.mark.parametrize("interrupt", CUT)
def test_an_interrupted_run_goes_on_to_the_same_end_with_another_number_of_workers(
    whole: Path, interrupt: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
):
    run = Path("run")
    interrupt(whole, run)
    start(run, transform="own_transform:TORCHVISION", num_workers=1)
    out = capsys.readouterr().out
    assert "continuing from run/checkpoints/step-0000000" in out
    assert "not bit-exact" not in out
    assert different(run, whole) == []
    assert delivered(run) == delivered(whole)
    assert results(run) == results(whole)


@pytest.mark.slow
def test_two_processes_go_on_exactly(tmp_path: Path):
    for run in ("two", "again"):
        if run == "again":
            cut_off(tmp_path / "two", tmp_path / "again")
        done = run_ranks([own_transform.__file__, str(tmp_path / run)], timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr[-3000:]
    assert different(tmp_path / "two", tmp_path / "again") == []


def test_a_run_records_its_transform_which_its_evaluation_does_not_need(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert yaml.safe_load((whole / "config.yaml").read_text())["transform"] == "own_transform:TORCHVISION"
    monkeypatch.setattr(own_transform, "TORCHVISION", None)
    assert recipe("evaluate")([str(whole), "--split", "test", "--output-dir", "evaluation"]) == 0
    now, then = (saved_predictions.read(place / "predictions", "test") for place in (Path("evaluation"), whole))
    assert now is not None
    assert then is not None
    assert np.array_equal(now.table.predicted, then.table.predicted)
    np.testing.assert_allclose(now.table.values, then.table.values, atol=1e-5)  # other batches, other last bits
    assert recipe("report")([str(whole)]) == 0
    capsys.readouterr()
    words = ["--config", str(whole / "config.yaml"), "--img-size", "24", "--output-dir", "again"]
    assert recipe("single_scale")(words) == 2
    assert "--transform own_transform:TORCHVISION: own_transform has no TORCHVISION" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_takes_a_function(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "once_named.py").write_text("from own_transform import TORCHVISION as turned\n")
    words = [
        "--synthetic-size",
        "32",
        "--synthetic-count",
        "96",
        "--batch-size",
        "12",
        "--epochs",
        "3",
        "--log-with",
        "none",
    ]
    words += ["--img-size", "24", "--num-workers", "1", "--transform", "once_named:turned", "--output-dir", "run"]
    assert recipe("single_scale")(words) == 0
    assert different(Path("run"), whole) == []
    assert "transform once_named:turned" in capsys.readouterr().out
    Path("config.yaml").write_text("transform: never_named:f\n")
    Path("never_named.py").write_text("raise SystemExit('imported')\n")
    assert recipe("single_scale")(["--config", "config.yaml", "--img-size", "24", "--output-dir", "never"]) == 2
    assert "--transform never_named:f: give that flag again to allow running it" in capsys.readouterr().err


def test_another_transform_on_a_resume_is_refused(whole: Path):
    cut_off(whole, Path("run"))
    for transform in (None, blocks):
        with pytest.raises(InputError, match="run was trained with --transform own_transform:TORCHVISION"):
            start(Path("run"), transform=transform)


def test_a_transform_is_part_of_what_is_learned_and_its_file_of_what_a_run_is():
    settings, parts = make_parts(Settings(log_with="none"), SingleScale(24), transform=blocks)
    assert settings.transform == "own_transform:blocks"
    assert [*parts.own_code()] == ["own_transform"]
    assert make_parts(Settings(log_with="none"), SingleScale(24))[1].own_code() == {}
    (module, digest), *more = make_parts(Settings(log_with="none"), SingleScale(24), data=DATA)[1].own_code().items()
    assert (module, more) == ("own_data", [])
    assert digest == hashlib.sha256(Path(own_data.__file__).read_bytes()).hexdigest()
    assert make_parts(settings, SingleScale(24))[1].transform == parts.transform  # its module is imported


def test_a_partial_is_of_the_module_of_its_function():
    twice = functools.partial(functools.partial(blocks))
    made = make_parts(Settings(log_with="none"), SingleScale(24), transform=twice)[1]
    assert [*made.own_code()] == ["own_transform"]


def rotation(degrees: float) -> Any:
    return v2.RandomRotation(degrees)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (blocks, "own_transform:blocks"),
        (rotation(5), r"an object of torchvision\.transforms\.v2\._geometry\.RandomRotation \([0-9a-f]{8}\)"),
        (lambda pixels: pixels, r"a function test_own_transform\.<lambda>"),
    ],
)
def test_a_transform_that_was_passed_has_a_name(function: Any, named: str):
    assert re.fullmatch(named, transform_name(function))


def test_objects_that_are_made_otherwise_have_other_names():
    assert transform_name(rotation(5)) == transform_name(rotation(5))
    assert transform_name(rotation(5)) != transform_name(rotation(6))


# Pixels


def gradient(size: int) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size] * 255 // (size - 1)
    return np.stack([x, y, (x + y) // 2], -1).astype(np.uint8)


@pytest.mark.parametrize("function", TRANSFORMS.values(), ids=TRANSFORMS)
def test_an_image_is_a_function_of_seed_epoch_and_number_only(function: Any):
    who = Augmenter(1.0, False, 3, transform=Transform("mine", function))
    assert who.holds_interpreter
    first = [who.change(gradient(32), 1, sample, 1.0) for sample in range(20)]
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    again = [who.change(gradient(32), 1, sample, 0.0) for sample in reversed(range(20))]  # not scaled by the phase
    assert all(map(np.array_equal, first, reversed(again)))
    for other in (Augmenter(1.0, False, 4, transform=who.transform), who):
        others = [other.change(gradient(32), 1 + (other is who), sample, 1.0) for sample in range(20)]
        assert sum(map(np.array_equal, first, others)) < 4  # control: another seed, another epoch


def test_it_comes_before_the_built_in_augmentation_which_stays_as_it_was():
    plain = Augmenter(1.0, False, 3, rand_augment=5, color_jitter=0.3, random_erasing=0.5)
    mine = Augmenter(1.0, False, 3, 5, 0.3, 0.5, Transform("mine", lambda pixels: 255 - pixels))
    for sample in range(10):
        expected = plain.change(255 - gradient(32), 0, sample, 1.0)
        assert np.array_equal(mine.change(gradient(32), 0, sample, 1.0), expected)


def test_pixels_are_not_changed_in_place():
    pixels = gradient(32)
    Transform("mine", blocks).apply(pixels, 0, 0, 0)
    assert np.array_equal(pixels, gradient(32))


def test_torchvision_gets_a_tensor_and_gives_an_array():
    flip = Transform("mine", v2.RandomHorizontalFlip(p=1.0))
    assert np.array_equal(flip.apply(gradient(32), 0, 0, 0), gradient(32)[:, ::-1])


@pytest.mark.slow
def test_cached_images_are_trained_on_as_files_are():
    write_folders(Path("photos"), {"train": 24, "val": 6}, size=(24, 24))  # a crop is the whole image: the cache's own
    own = {"data_root": "photos", "arch": "test_resnet", "synthetic_size": None, "synthetic_count": None}
    runs = [Path(cache) for cache in ("ram", "off")]
    for run in runs:
        start(run, transform=blocks, cache=run.name, crop_scale=1.0, hflip=False, **own)
    assert different(*runs) == []


def test_albumentations_draws_from_its_own_generators_and_is_exact_all_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer one
    albumentations = pytest.importorskip("albumentations")
    pipeline = albumentations.Compose([albumentations.Rotate(p=0.7), albumentations.GaussNoise(p=0.7)])
    mine = Transform(transform_name(pipeline), pipeline)
    assert mine.name.startswith("an object of albumentations.core.composition.Compose (")
    first = [mine.apply(gradient(32), 0, 0, sample) for sample in range(10)]
    again = [mine.apply(gradient(32), 0, 0, sample) for sample in reversed(range(10))]
    assert all(map(np.array_equal, first, reversed(again)))
    assert len({image.tobytes() for image in first}) > 5
    for workers, run in ((1, "one"), (2, "two")):
        start(Path(run), transform=pipeline, num_workers=workers, epochs=1)
    assert different(Path("one"), Path("two")) == []
    with pytest.raises(InputError, match=r"differs at 24 px for the same seed.*give albumentations' object itself"):
        start(Path("inside"), transform=lambda pixels: pipeline(image=pixels)["image"])


# What cannot work


class Counts:
    """Keeps a state."""

    calls = 0

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.calls += 1
        return pixels + np.uint8(self.calls)


def fails_below_20_px(pixels: np.ndarray) -> np.ndarray:
    assert len(pixels) >= 20, "too small"
    return pixels


def own_generator(pixels: np.ndarray) -> np.ndarray:
    return pixels + np.random.default_rng().integers(0, 9, dtype=np.uint8)


class Half(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, ::2, ::2]


BAD = {
    "another shape": (
        lambda p: p[:8],
        "must return uint8 of shape (24, 24, 3), as it was given, not uint8 of shape (8, 24, 3)",
    ),
    "another type": (
        lambda p: p / 255,
        "must return uint8 of shape (24, 24, 3), as it was given, not float64 of shape",
    ),
    "a PIL image": (Image.fromarray, "must return uint8 of shape (24, 24, 3), as it was given, not Image"),
    "nothing": (lambda p: None, "as it was given, not NoneType"),
    "a tensor of half the size": (Half(), "as it was given, not uint8 of shape (12, 12, 3)"),
    "a float tensor": (v2.ToDtype(torch.float32, scale=True), "as it was given, not float32 of shape (24, 24, 3)"),
    "an error": (lambda p: {}["x"], "failed on an array of shape (24, 24, 3): KeyError: 'x'"),
    "a state": (Counts(), "differs at 24 px for the same seed: it must draw from Python's, NumPy's and torch's"),
    "a generator of its own": (own_generator, "differs at 24 px for the same seed"),
    "no function": (3, "must be a function of an image, not a int"),
    "no form": ("blocks", "--transform blocks: must be of the form module:function"),
    "no module": ("nowhere:f", "--transform nowhere:f: nowhere: cannot be imported: ModuleNotFoundError"),
    "no such function": ("own_transform:block", "own_transform has no block; did you mean blocks?"),
}


@pytest.mark.parametrize(("transform", "told"), BAD.values(), ids=BAD)
def test_a_transform_that_cannot_work_is_refused_in_one_line_before_anything_is_written(transform: Any, told: str):
    with pytest.raises(InputError) as caught:
        start(Path("run"), transform=transform)
    assert str(caught.value).startswith("--transform ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("strategy", "works"),
    [
        (SingleScale(16), False),
        (Progressive((16, 24)), False),
        (Progressive((16, 24), ramp=True), False),
        (Simultaneous((16, 24)), True),
        (SingleScale(24, eval_scales=(16, 24)), True),
    ],
    ids=str,
)
def test_it_is_tried_at_the_largest_size_of_each_step(strategy: Any, works: bool):
    settings = Settings(
        synthetic_size=32, synthetic_count=96, batch_size=24, epochs=2, log_with="none", num_workers=1, output_dir="run"
    )
    if works:
        train(settings, strategy, transform=fails_below_20_px)
    else:
        with pytest.raises(
            InputError, match=r"failed on an array of shape \(1[26], 1[26], 3\): AssertionError: too small"
        ):
            train(settings, strategy, transform=fails_below_20_px)


def test_settings_that_contradict_it_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(InputError, match="--num-workers 0: a transform is called in worker processes"):
        start(Path("run"), transform=blocks, num_workers=0)
    with pytest.raises(InputError, match="--transform own_transform:TORCHVISION would be ignored"):
        make_transform("own_transform:TORCHVISION", blocks)
    with pytest.raises(InputError, match=r"an object of a\.B \(0a1b2c3d\): pass it again as transform="):
        make_transform("an object of a.B (0a1b2c3d)", None)
    assert recipe("single_scale")(["--transform", "own_transform:blocks", "--num-workers", "0"]) == 2
    assert "--num-workers 0: --rand-augment, --color-jitter and --transform draw from global" in capsys.readouterr().err


def fails_in_the_middle(pixels: np.ndarray) -> np.ndarray:
    if torch.rand(()) < 0.02:
        raise ValueError("an odd image")
    return pixels


def test_one_that_fails_later_ends_the_run_in_one_line():
    with pytest.raises(
        InputError, match=r"--transform test_own_transform:fails_in_the_middle: failed on .*: an odd image"
    ):
        start(Path("run"), transform=fails_in_the_middle)
