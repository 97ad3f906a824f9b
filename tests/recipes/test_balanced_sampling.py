"""Balanced sampling as a user trains with it: how often each image comes, how it is changed, and exact resumes."""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import PATIENCE_S, ROOT, recipe, write_image, write_manifest
from tests.forkserver import run_ranks
from toolkit import Settings, SingleScale, train

RECIPE = ROOT / "recipes" / "single_scale.py"
SIZES = {"ant": 44, "bee": 15, "cat": 5}  # training images: 64, so 4 steps of 16 an epoch
EPOCHS, STEPS, MIDDLE = 3, 12, 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of noise in the color of the class, an image no larger than another."""
    root, seed = tmp_path_factory.mktemp("uneven"), 0
    for name, count in SIZES.items():
        for split, images in (("train", count), ("val", 4), ("test", 4)):
            for i in range(images):
                write_image(root / split / name / f"{i}.png", (26, 24), seed := seed + 1)
    return root


def command(data: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--data-root", str(data), "--output-dir", str(output), "--log-with", "none", "--record-samples"),
        *("--arch", "test_vit", "--img-size", "16", "--epochs", str(EPOCHS), "--batch-size", "16", "--no-amp"),
        *("--optimizer", "sgd", "--learning-rate", "0.05", "--num-workers", "1", "--crop-scale", "0.5"),
        *("--random-erasing", "0.5", "--mixup", "0.4", "--cutmix", "1", "--seed", "2", *more),
    ]


BALANCED = ("--sampling", "balanced")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("balanced") / "run"
    assert recipe("single_scale")(command(data, output, *BALANCED)) == 0
    return output


def delivered(run: Path) -> list[dict[str, Any]]:
    """The lines of samples.jsonl, by step, rank and micro-batch."""
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return sorted(lines, key=lambda line: (line["step"], line["rank"]))


def joined(run: Path) -> dict[int, tuple[list[int], list[int], list[int]]]:
    """Of each step the images, their checksums and how they are mixed, whichever process they went to."""
    steps: dict[int, tuple[list[int], list[int], list[int]]] = defaultdict(lambda: ([], [], []))
    for line in delivered(run):
        for part, name in zip(steps[line["step"]], ("ids", "digests", "mixing"), strict=True):
            part.extend(line[name])
    return dict(steps)


def by_epoch(run: Path) -> list[list[tuple[int, int]]]:
    """Id and checksum of every image, epoch by epoch."""
    epochs: list[list[tuple[int, int]]] = [[] for _ in range(EPOCHS)]
    for step, (ids, digests, _) in joined(run).items():
        epochs[step * EPOCHS // STEPS] += zip(ids, digests, strict=True)
    return epochs


def different(first: Path, second: Path) -> list[str]:
    """Names of the final tensors that are not the same, bit for bit."""
    names = [f"checkpoints/step-{STEPS:09d}/{part}.safetensors" for part in ("model", "optimizer")]
    mine, theirs = (
        {f"{name}: {key}": tensor for name in names for key, tensor in load_file(run / name).items()}
        for run in (first, second)
    )
    assert mine.keys() == theirs.keys()
    return [name for name, tensor in mine.items() if not torch.equal(tensor, theirs[name])]


def test_every_class_comes_equally_often_and_the_images_of_one_evenly(run: Path):
    label = np.repeat(np.arange(3), [*SIZES.values()])  # in the order of the names
    for epoch in by_epoch(run):
        counts = Counter(image for image, _ in epoch)
        assert sum(counts.values()) == 64
        for kind, size in enumerate(SIZES.values()):
            times = [counts[image] for image in np.flatnonzero(label == kind).tolist()]
            assert sum(times) in (21, 22)
            assert {*times} <= {21 // size, 21 // size + 1, 22 // size + 1}


def test_an_image_that_comes_again_is_changed_anew(run: Path):
    """The control is in the images themselves: each of them comes both ways, as it is and changed."""
    for epoch in by_epoch(run):
        changed: dict[int, set[int]] = defaultdict(set)
        times = Counter(image for image, _ in epoch)
        for image, digest in epoch:
            changed[image].add(digest)
        rare = [image for image in times if image >= 59]
        assert len(rare) == 5
        assert all(times[image] >= 4 and len(changed[image]) == times[image] for image in rare)


def test_the_plan_and_the_config_say_so(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    more = (*BALANCED, "--sampling-power", "0.5", "--class-weights", "effective", "--dry-run")
    assert recipe("single_scale")(command(data, tmp_path / "run", *more)) == 0
    told = capsys.readouterr().out
    assert "sampling  balanced, power 0.5: on average an image of 'cat', the rarest class (5 image(s)), comes" in told
    assert "warning   --class-weights effective and --sampling balanced both favor rare classes" in told
    assert recipe("single_scale")(command(data, tmp_path / "run", "--dry-run")) == 0
    assert "sampling" not in capsys.readouterr().out


def interrupted(whole: Path, output: Path) -> Path:
    """A copy of a finished run as it was in the middle of its second epoch."""
    shutil.copytree(whole, output)
    (output / "summary.json").unlink()
    for folder in (output / "checkpoints").iterdir():
        if folder.name > f"step-{MIDDLE:09d}":
            shutil.rmtree(folder)
    return output


@pytest.fixture(scope="module")
def saved_within(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, with checkpoints within epochs."""
    output = tmp_path_factory.mktemp("within") / "run"
    more = ("--save-every-steps", "2", "--keep", "9")
    assert recipe("single_scale")(command(data, output, *BALANCED, *more)) == 0
    return output


def test_it_is_continued_bit_for_bit_from_the_middle_of_an_epoch(
    saved_within: Path, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    resumed = interrupted(saved_within, tmp_path / "resumed")
    more = ("--save-every-steps", "2", "--keep", "9")
    assert recipe("single_scale")(command(data, resumed, *BALANCED, *more)) == 0
    assert f"continuing from {resumed / 'checkpoints' / f'step-{MIDDLE:09d}'}" in capsys.readouterr().out
    assert different(resumed, run) == []
    assert delivered(resumed) == delivered(run)


def test_another_sampling_is_another_run(run: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    assert recipe("single_scale")(command(data, run, *BALANCED, "--sampling-power", "0.5")) == 2
    assert "--sampling-power 1, now 0.5" in capsys.readouterr().err.replace("1.0", "1")
    assert recipe("single_scale")(command(data, run)) == 2
    assert "--sampling balanced, now plain" in capsys.readouterr().err


@pytest.fixture(scope="module")
def pair(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trained in two processes, and again from the first checkpoint on; each in two micro-batches a step."""
    folder = tmp_path_factory.mktemp("pair")
    more = (*BALANCED, "--device-batch-size", "4", "--save-every-steps", "2", "--keep", "9")

    def train_two(output: Path) -> None:
        done = run_ranks([str(RECIPE), *command(data, output, *more)], timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr[-3000:]

    train_two(folder / "two")
    train_two(interrupted(folder / "two", folder / "resumed"))
    return {name: folder / name for name in ("two", "resumed")}


@pytest.mark.slow
def test_two_processes_see_what_one_sees_and_learn_the_same(pair: dict[str, Path], run: Path):
    assert {line["rank"] for line in delivered(pair["two"])} == {0, 1}
    assert joined(pair["two"]) == joined(run)
    one, two = (load_file(place / f"checkpoints/step-{STEPS:09d}/model.safetensors") for place in (run, pair["two"]))
    assert max(float((tensor - two[name]).abs().max()) for name, tensor in one.items()) < 1e-5


@pytest.mark.slow
def test_two_processes_continue_bit_for_bit(pair: dict[str, Path]):
    assert different(pair["resumed"], pair["two"]) == []
    assert joined(pair["resumed"]) == joined(pair["two"])


@pytest.mark.slow
def test_plain_sampling_ends_elsewhere(data: Path, run: Path, tmp_path: Path):
    """The control of the comparisons above."""
    assert recipe("single_scale")(command(data, tmp_path / "run")) == 0
    assert different(tmp_path / "run", run)
    assert joined(tmp_path / "run") != joined(run)


def test_of_several_labels_the_rarest_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [(f"{i}.png", "sky|sea" if i < 4 else "" if i < 8 else "sky") for i in range(40)]
    write_manifest(tmp_path / "data", "train", rows)
    write_manifest(tmp_path / "data", "val", [("v0.png", "sky"), ("v1.png", "sea")])
    output = tmp_path / "run"
    assert recipe("single_scale")(command(tmp_path / "data", output, *BALANCED, "--task", "multilabel")) == 0
    assert "an image of 'sea', the rarest class (4 image(s)), comes" in capsys.readouterr().out
    counts = Counter(image for ids, _, _ in joined(output).values() for image in ids)
    sea, sky, neither = ([counts[i] / EPOCHS for i in part] for part in (range(4), range(8, 40), range(4, 8)))
    assert min(sea) > 3 > 1 >= max(sky)  # 5 and 0.56 on average, of which a fifth is left out
    assert max(neither) <= 1


class Drawing:
    """A data set of Python whose images are drawn at random, 2 of 3 labels rare."""

    targets = (0,) * 20 + (1,) * 2 + (2,) * 2

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        pixels = np.random.randint(0, 255, (16, 16, 3)).astype(np.uint8)
        return Image.fromarray(pixels), self.targets[i]


def noisy(pixels: np.ndarray) -> np.ndarray:
    return np.where(np.random.random(pixels.shape) < 0.1, 255 - pixels, pixels).astype(np.uint8)


def steady(pixels: np.ndarray) -> np.ndarray:
    return pixels


@pytest.mark.parametrize(
    ("data", "transform"), [(Drawing, steady), (None, noisy)], ids=["data of Python", "transform of the user's own"]
)
def test_what_draws_for_itself_draws_anew_for_an_image_that_comes_again(
    data: Callable[[], Any] | None, transform: Callable[[np.ndarray], np.ndarray], tmp_path: Path
):
    root = tmp_path / "images"
    if data is None:
        labels = "a" * 20 + "b" * 2 + "c" * 2
        for split in ("train", "val"):
            write_manifest(root, split, [(f"{split}{i}.png", label) for i, label in enumerate(labels)])
    chosen = Settings(
        **({"data_root": str(root)} if data is None else {}),
        crop_scale=1,
        hflip=False,
        sampling="balanced",
        arch="test_vit",
        batch_size=24,
        epochs=1,
        num_workers=1,
        log_with="none",
        record_samples=True,
        output_dir=tmp_path / "run",
    )
    train(chosen, SingleScale(16), data=data and {"train": data(), "val": data()}, transform=transform)
    (line,) = delivered(tmp_path / "run")
    assert len(line["ids"]) == 24
    assert len({*line["ids"]}) < 16
    assert len({*line["digests"]}) == 24


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--sampling-power", "0.5"), "--sampling-power 0.5 would be ignored: it needs --sampling balanced"),
        ((*BALANCED, "--sampling-power", "0"), "--sampling-power 0: must be above 0"),
        ((*BALANCED, "--sampling-power", "1.5"), "--sampling-power 1.5: must be 1 or less"),
        (("--sampling", "balance"), "--sampling balance: must be one of 'plain' or 'balanced'"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
):
    assert recipe("single_scale")(command(data, tmp_path / "run", *words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "run").exists()
