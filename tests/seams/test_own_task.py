"""A task of several labels an image, from outside the package: trained with data sets and without a validation split,
stopped, continued bit for bit, on two processes too; evaluated, predicted, exported, reported.
"""

import csv
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, SLOW, TORCHRUN, recipe, write_image
from toolkit import InputError, Settings, Simultaneous, SingleScale, SourceOptions, Task, train
from toolkit.config.tables import TABLES
from toolkit.data.images.preprocess import Preprocess
from toolkit.data.images.views import normalize
from toolkit.models.classification import Classification
from toolkit.tools.benchmark import benchmark
from toolkit.tools.card_code import result_line
from toolkit.tools.compare import compare
from toolkit.tools.evaluate import evaluate
from toolkit.tools.export import export
from toolkit.tools.export_images import measure_gap, read_check_images
from toolkit.tools.export_model import describe
from toolkit.tools.loaded_run import load_run
from toolkit.tools.predict import predict
from toolkit.tools.run_data import own_splits
from toolkit.training.parts import make_parts
from toolkit.training.plan_text import _reopening

sys.path.insert(0, str(ROOT / "tests" / "contract"))
from tags import BoundTags, Tags

pytestmark = pytest.mark.pages
NAMES = ("red", "green", "blue")
SIZES = (16, 24)


class Colors:
    """Images that hold up to three colors; the first `count` of an endless row."""

    classes = NAMES

    def __init__(self, count: int, start: int = 0) -> None:
        self.start = start
        self.targets = np.array([self.labels(start + i) for i in range(count)])

    @staticmethod
    def labels(i: int) -> list[int]:
        return [i & 1, i >> 1 & 1, i >> 2 & 1]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.start + i)
        image = rng.integers(0, 60, (28, 28, 3), dtype=np.uint8)
        for color in np.flatnonzero(self.targets[i]):
            image[..., color] += 150
        return image, self.targets[i]


DATA = {"train": Colors(96), "val": Colors(24, 96), "test": Colors(24, 120)}
STRATEGY = Simultaneous(SIZES, consistency_weight=0.5)


def settings(output: Path, **more) -> Settings:
    usual = {"batch_size": 16, "epochs": 6, "num_workers": 1, "log_with": "none", "mixup": 0.2, "learning_rate": 0.01}
    return Settings(arch="test_resnet", output_dir=output, **{**usual, **more})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tags") / "run"
    train(settings(output), STRATEGY, task=Tags(), data=DATA)
    return output


def test_its_metrics_select_and_are_recorded(run: Path):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["select_by"] == "exact"
    assert summary["best_exact"] == summary["val"]["24px"]["exact"] > 60
    assert {*summary["val"]["24px"]} == {"exact", "loss", "images", "norm_from", "unreadable"}
    with (run / "predictions" / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows[:4]] == ["0|0|0", "1|0|0", "0|1|0", "1|1|0"]
    assert {"24px/p_red", "24px/p_green", "24px/p_blue", "24px/p_all"} <= {*rows[0]}

    page = (run / "report.html").read_text()
    assert "all right" in page
    assert "top-1" not in page


SCRIPT = """
import argparse
import sys
from pathlib import Path

sys.path[:0] = PATHS
from test_own_task import DATA, STRATEGY, Tags, settings, train

parser = argparse.ArgumentParser()
parser.add_argument("--output-dir", type=Path)
parser.add_argument("--save-every-steps", type=int)
given, _ = parser.parse_known_args()
more = {"save_every_steps": given.save_every_steps, "record_samples": True, "keep": 10}
train(settings(given.output_dir, **more), STRATEGY, task=Tags(), data=DATA)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [(sys.executable,), pytest.param(TORCHRUN, marks=SLOW)], ids=["alone", "two processes"]
)
def test_killed_and_continued_it_ends_bit_for_bit_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: tuple[str, ...]
):
    paths = [str(Path(__file__).parent), str(ROOT)]
    (tmp_path / "script.py").write_text(SCRIPT.replace("PATHS", repr(paths)))
    monkeypatch.chdir(tmp_path)
    trial = ["--steps", "15", "--kills", "1", "--save-every-steps", "5", "--"]
    assert recipe("verify_resume")([*trial, *launcher, "script.py"]) == 0


def test_it_is_evaluated_predicted_and_exported(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    summary = json.loads((run / "summary.json").read_text())
    report = evaluate(run, data={"test": DATA["test"]}, output_dir=tmp_path / "evaluation")
    assert report.evaluations["test"].scores["24px"]["exact"] == summary["test"]["24px"]["exact"]
    with pytest.raises(InputError, match="--cascade: evaluate measures its top-1, which Tags does not have"):
        evaluate(run, data={"test": DATA["test"]}, cascade=SIZES)
    other = shutil.copytree(run, tmp_path / "other")
    with pytest.raises(InputError, match="its task is not classification"):
        compare(run, other)
    predict(run, (), data=DATA["test"], output=str(tmp_path / "rows.csv"), cascade=SIZES)
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    right = [
        row["label"] == "|".join(np.array(NAMES)[labels > 0])
        for row, labels in zip(rows, DATA["test"].targets, strict=True)
    ]
    assert np.mean(right) > 0.5
    exported = export(run, data=DATA, formats=("safetensors",), output_dir=tmp_path / "export")
    assert exported.differences["safetensors"] < 1e-4
    assert exported.by_card.images == exported.by_card.same == 32  # as the task answers: several classes or none
    card = (tmp_path / "export" / "README.md").read_text()
    assert "all right" in card
    assert "probabilities = model(pixels).sigmoid()[0]" in card
    assert "anything else gets one of them" not in card


class Thirds(BoundTags):
    def probabilities(self, averaged):
        return averaged.sigmoid() / 3


@dataclass(frozen=True)
class TagsInThirds(Tags):
    def bind(self, class_counts, device):
        return Thirds(len(class_counts), smoothing=0.0, weights=None)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (Classification(), "probabilities = model(pixels).softmax(1)[0]"),
        (Classification(loss="bce"), "probabilities = model(pixels).sigmoid()[0]"),
        (
            TagsInThirds(),
            "logits = model(pixels)  # N x C, classes as in class_map.json; TagsInThirds says",
        ),
    ],
)
def test_a_model_card_makes_probabilities_as_the_task_does(run: Path, tmp_path: Path, task: Task, told: str):
    loaded = replace(load_run(run), task=task)
    assert told in result_line(loaded)
    exported = describe(loaded, 24)
    prepare = Preprocess(24, exported.mean, exported.std)
    pixels = read_check_images(own_splits(load_run(run), data=DATA), exported, prepare).ours[:2]
    other = 255 - pixels
    gap = measure_gap(loaded, pixels, normalize(other, loaded.mean, loaded.std))
    with torch.no_grad():
        logits = [loaded.model(normalize(x, loaded.mean, loaded.std))[0] for x in (pixels, other)]
    bound = task.bind(np.ones(3), torch.device("cpu"))
    first, second = (bound.probabilities(bound.average([x])) for x in logits)
    assert gap.probability == pytest.approx((first - second).abs().max().item(), abs=1e-5)


class ColorSource:
    def recognizes(self, data_root: str) -> bool:
        return data_root == "colors:"

    def read(self, data_root: str, options: SourceOptions) -> Any:
        return DATA


def test_its_steps_are_benchmarked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TABLES["source"], "colors", ColorSource)
    given = settings(tmp_path / "run", data_root="colors:", task="tags:Tags", mixup=0.0)
    report = benchmark(given, SingleScale(16), precisions=["float32"], batch_sizes=[4], steps=1)
    assert report.cases[0].images_per_s > 0


def test_images_with_one_label_each_are_refused_in_one_line(run: Path, tmp_path: Path):
    for place in (f"{split}/{name}" for split in DATA for name in sorted(NAMES)):
        write_image(tmp_path / "folders" / place / "a.png")

    class Named(list):  # type: ignore[type-arg]
        classes = NAMES

    one_label = Named((DATA["test"][i][0], i % 3) for i in range(6))
    for given in (
        {"data_root": str(tmp_path / "folders" / "val")},
        {"data": {"test": one_label}},
        {"data": {"train": one_label, "val": one_label}},
    ):
        with pytest.raises(InputError, match=r"^(--data-root .*|data): \w+: labels of shape .*: tags are N x 3$"):
            evaluate(run, output_dir=tmp_path / "out", **given)


def test_rows_of_labels_are_refused_by_a_run_with_one_label_each(tmp_path: Path):
    data = {split: [(DATA["test"][i][0], i % 3) for i in range(12)] for split in ("train", "val")}
    train(settings(tmp_path / "run", epochs=1, batch_size=4), STRATEGY, data=data)
    rows = [(image, row) for image, row in (DATA["test"][i] for i in range(6))]
    with pytest.raises(InputError, match=r"^data: test: labels of shape \(3,\).*wants one whole number per image$"):
        evaluate(tmp_path / "run", data={"test": rows}, output_dir=tmp_path / "out")


def test_a_shell_opens_it_when_the_module_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image = write_image(tmp_path / "a.png")
    assert recipe("predict")([str(run), str(image), "--output", str(tmp_path / "a.csv"), "--import", "tags"]) == 0


def test_a_class_of_a_script_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch):
    chosen = Settings(arch="test_resnet", log_with="none")
    _, parts = make_parts(chosen, STRATEGY, task=Tags())
    assert _reopening(parts) == []
    monkeypatch.setattr(Tags, "__module__", "__main__")
    told = "Tags is defined in the script that trains: `toolkit evaluate` and others cannot open this run from a shell"
    assert _reopening(parts) == [f"reopen    {told}; move it into a module"]


def test_without_a_validation_split_images_are_held_out(tmp_path: Path):
    summary = train(settings(tmp_path / "run", epochs=1), STRATEGY, task=Tags(), data={"train": DATA["train"]})
    assert summary["val"]["24px"]["images"] == 10


def test_labels_of_another_kind_are_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(InputError, match=r"labels of shape \(3,\).*the task wants one whole number per image"):
        train(settings(tmp_path / "run"), STRATEGY, data=DATA)
    assert not (tmp_path / "run").exists()
