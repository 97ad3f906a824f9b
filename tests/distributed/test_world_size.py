"""The same command on one process, on two, and with accumulation: the same samples, rates, weights and scores.

float32, SGD, no dropout, a model without BatchNorm: nothing but the order of floating-point sums is left to differ.
"""

import json
import runpy
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import PATIENCE_S, ROOT
from tests.forkserver import run_ranks
from toolkit import Settings
from toolkit.data.sources import synthetic
from toolkit.models.inspection import plan_model

RECIPE = ROOT / "recipes" / "multiscale.py"
IMAGES, BATCH, STEPS = 130, 24, 20  # 5 steps an epoch; 10 images are left out of each, 21 val and 43 test images
ARCH = "test_vit"  # LayerNorm only
TUNED = ("--head-epochs", "1", "--layer-decay", "0.7", "--backbone-lr-scale", "0.8", "--unfreeze-from", "blocks.2")


@dataclass(frozen=True)
class Outcome:
    """A finished run, as its directory tells it."""

    directory: Path

    @cached_property
    def delivered(self) -> list[dict[str, Any]]:
        """What was delivered: one entry per micro-batch and rank."""
        return [json.loads(line) for line in (self.directory / "samples.jsonl").read_text().splitlines()]

    @cached_property
    def digests(self) -> list[dict[int, int]]:
        """Per step, over all ranks: id of each delivered image -> digest of its augmented pixels."""
        steps: dict[int, dict[int, int]] = defaultdict(dict)
        for entry in self.delivered:
            steps[entry["step"]].update(zip(entry["ids"], entry["digests"], strict=True))
        return [steps[step] for step in range(len(steps))]

    @cached_property
    def rates(self) -> list[set[float]]:
        """Per step: the learning rates that any rank or micro-batch saw."""
        steps: dict[int, set[float]] = defaultdict(set)
        for entry in self.delivered:
            steps[entry["step"]].add(entry["lr"])
        return [steps[step] for step in range(len(steps))]

    @cached_property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.directory / "summary.json").read_text())

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.directory / "checkpoints" / f"step-{STEPS:09d}" / "model.safetensors")

    def distance(self, other: "Outcome") -> float:
        """The largest difference of any weight."""
        assert self.weights.keys() == other.weights.keys()
        return max((tensor - other.weights[name]).abs().max().item() for name, tensor in self.weights.items())


def command(data: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--data-root", str(data), "--output-dir", str(output), "--log-with", "none", "--record-samples"),
        *("--arch", ARCH, "--scales", "16,32", "--epochs", "4", "--batch-size", str(BATCH)),
        *("--optimizer", "sgd", "--learning-rate", "0.05", "--no-amp"),
        *("--random-erasing", "0.3", "--mixup", "0.4", "--cutmix", "1"),
        *more,
    ]


@pytest.fixture(scope="module")
def data(cache: Path) -> Path:
    return synthetic.prepare(32, IMAGES)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """The same recipe, run in four ways; one process each in this one, two through torchrun."""
    folder = tmp_path_factory.mktemp("runs")
    swapped = folder / "swapped-data"
    shutil.copytree(data, swapped)
    square, disc = (sorted((swapped / "train" / name).iterdir())[0] for name in ("square-checks", "disc-stripes"))
    shutil.copyfile(square, disc)
    main = runpy.run_path(str(RECIPE))["main"]
    assert main(command(data, folder / "one")) == 0
    assert main(command(data, folder / "accumulated", "--device-batch-size", str(BATCH // 4))) == 0
    assert main(command(swapped, folder / "swapped")) == 0
    assert main(command(data, folder / "tuned-one", *TUNED)) == 0
    for name, more in (("two", ()), ("tuned-two", TUNED)):
        done = run_ranks([str(RECIPE), *command(data, folder / name, *more)], timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr[-3000:]
    return {path.name: Outcome(path) for path in folder.iterdir() if path != swapped}


def test_one_process_delivers_every_step_whole_and_no_image_twice_an_epoch(runs: dict[str, Outcome]):
    steps = [entry["ids"] for entry in runs["one"].delivered]
    assert [entry["step"] for entry in runs["one"].delivered] == list(range(STEPS))
    assert {len(ids) for ids in steps} == {BATCH}
    for first in range(0, STEPS, 5):
        seen = [sample for ids in steps[first : first + 5] for sample in ids]
        assert len(set(seen)) == 5 * BATCH
        assert set(seen) <= set(range(IMAGES))


def test_two_processes_share_each_step_without_overlap(runs: dict[str, Outcome]):
    assert runs["two"].summary["processes"] == 2
    shares: dict[int, dict[int, set[int]]] = defaultdict(dict)
    for entry in runs["two"].delivered:
        assert len(entry["ids"]) == BATCH // 2
        shares[entry["step"]][entry["rank"]] = set(entry["ids"])
    assert sorted(shares) == list(range(STEPS))
    for of_rank in shares.values():
        assert sorted(of_rank) == [0, 1]
        assert len(of_rank[0] | of_rank[1]) == BATCH


def test_accumulation_delivers_each_step_in_four_parts(runs: dict[str, Outcome]):
    assert [entry["step"] for entry in runs["accumulated"].delivered] == [i // 4 for i in range(4 * STEPS)]
    assert {len(entry["ids"]) for entry in runs["accumulated"].delivered} == {BATCH // 4}


@pytest.mark.parametrize(("name", "processes"), [("one", 1), ("two", 2), ("accumulated", 1)])
def test_operations_are_those_of_one_device_when_a_step_is_shared(runs: dict[str, Outcome], name: str, processes: int):
    row = {column: float(runs[name].summary["final"][column]) for column in ("images_per_s", "tflops", "share_of_peak")}
    gmacs = plan_model(Settings(arch=ARCH), 10, (16, 32)).gmacs
    gflop = 6 * (gmacs[16] + gmacs[32])  # of an image: forward, and backward for inputs and weights
    assert row["tflops"] == pytest.approx(gflop * row["images_per_s"] / processes / 1000)
    assert 0 < row["share_of_peak"] < 1


@pytest.mark.parametrize("name", ["two", "accumulated"])
def test_each_step_sees_the_same_images_in_the_same_augmentation(runs: dict[str, Outcome], name: str):
    assert len(runs["one"].digests) == STEPS
    assert runs[name].digests == runs["one"].digests
    assert {tuple(entry["sizes"]) for entry in runs[name].delivered} == {(16, 32)}


@pytest.mark.parametrize("name", ["two", "accumulated"])
def test_the_learning_rate_is_the_same_at_each_step(runs: dict[str, Outcome], name: str):
    baseline = runs["one"].rates
    assert runs[name].rates == baseline
    assert {len(rates) for rates in baseline} == {1}
    trace = [rate for rates in baseline for rate in rates]
    # Warm-up over 1 of 4 epochs, at the middle of each of 5 steps; then a falling cosine.
    assert trace[:5] == pytest.approx([0.005, 0.015, 0.025, 0.035, 0.045])
    assert all(later < earlier for earlier, later in pairwise(trace[5:]))


@pytest.mark.parametrize("name", ["two", "accumulated"])
def test_weights_are_the_same_but_for_rounding(runs: dict[str, Outcome], name: str):
    assert not any("running_mean" in tensor for tensor in runs["one"].weights)  # no BatchNorm
    assert runs[name].distance(runs["one"]) < 1e-5


def test_weights_differ_when_one_sample_was_swapped(runs: dict[str, Outcome]):
    """The control: the same 20 steps, with one of 130 images replaced by one of another class."""
    pairs = zip(runs["swapped"].digests, runs["one"].digests, strict=True)
    changed = {sample for mine, theirs in pairs for sample in theirs if mine[sample] != theirs[sample]}
    assert len(changed) == 1
    assert runs["swapped"].distance(runs["one"]) > 1e-4


def test_a_part_that_learns_at_several_rates_after_the_head_learns_the_same(runs: dict[str, Outcome]):
    one, two = runs["tuned-one"], runs["tuned-two"]
    assert two.rates == one.rates
    assert two.distance(one) < 1e-5
    assert one.distance(runs["one"]) > 1e-3  # control
    first = load_file(one.directory / "checkpoints" / "step-000000005" / "model.safetensors")
    moved = {name.split(".")[1] for name, tensor in one.weights.items() if not torch.equal(tensor, first[name])}
    assert moved == {"blocks", "norm", "fc_norm", "head"} & {name.split(".")[1] for name in first}


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("name", ["two", "accumulated"])
def test_every_image_is_evaluated_once_when_processes_do_not_divide_them(
    runs: dict[str, Outcome], name: str, split: str
):
    baseline, scores = runs["one"].summary[split], runs[name].summary[split]
    assert baseline.keys() == scores.keys() == {"16px", "32px"}
    for spec, score in scores.items():
        assert score["images"] == {"val": 21, "test": 43}[split]
        for metric in ("top1", "top5", "balanced_accuracy", "macro_f1", "worst_class", "worst_class_accuracy"):
            assert score[metric] == baseline[spec][metric]
        assert score["ece"] == pytest.approx(baseline[spec]["ece"], abs=1e-4)
        assert score["loss"] == pytest.approx(baseline[spec]["loss"], abs=1e-4)
