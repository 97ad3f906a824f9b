"""Several labels an image, as a user trains, resumes, evaluates, predicts and exports them."""

import csv
import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from tests.conftest import PATIENCE_S, ROOT, TIMES, recipe, write_folders
from tests.forkserver import run_ranks
from toolkit import load
from toolkit.runs.directory import RunDirectory

pytestmark = pytest.mark.pages
NAMES = ("red", "green", "blue")
MULTISCALE = ROOT / "recipes" / "multiscale.py"
STEPS = 18


def draw(path: Path, colors: set[str], seed: int) -> None:
    """An image of noise that holds some colors, none of them bright: a quarter of their labels is hard to see."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (28, 28, 3), dtype=np.uint8)
    for color in colors:
        pixels[..., NAMES.index(color)] += rng.choice(np.array([5, 60, 90, 120], dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colors")
    for seed, (split, count) in enumerate({"train": 96, "val": 40, "test": 41}.items()):
        rng, lines = np.random.default_rng(seed), ["filepath,label"]
        for i in range(count):
            colors = {name for name, on in zip(NAMES, rng.random(3) < (0.5, 0.35, 0.2), strict=True) if on}
            draw(root / split / f"{i}.png", colors, 1000 * seed + i)
            lines.append(f"{split}/{i}.png,{'|'.join(sorted(colors, reverse=True))}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def command(data: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--data-root", str(data), "--task", "multilabel", "--arch", "test_resnet", "--scales", "16,24"),
        *(
            "--output-dir",
            str(output),
            "--log-with",
            "none",
            "--epochs",
            "3",
            "--batch-size",
            "16",
            "--num-workers",
            "1",
        ),
        *("--learning-rate", "0.01", "--crop-scale", "1", "--mixup", "0.2", "--consistency-share", "0.3"),
        *("--dropout-rate", "0.1", "--no-amp", *more),
    ]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("multilabel") / "run"
    assert recipe("multiscale")(command(data, output)) == 0
    return output


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def saved(folder: Path, split: str, spec: str = "24px") -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities of the classes, as predictions/SPLIT.csv holds them."""
    with (folder / "predictions" / f"{split}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = np.array([[int(part) for part in row["label"].split("|")] for row in rows])
    return labels, np.array([[float(row[f"{spec}/p_{name}"]) for name in sorted(NAMES)] for row in rows])


def thresholds(run: Path) -> list[float]:
    """Those of the best model."""
    return RunDirectory(run).summary()["chosen"]["thresholds"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_metrics_are_scikit_learns_on_the_same_predictions(run: Path, split: str):
    labels, p = saved(run, split)
    found = summary(run)[split]["24px"]
    assert 40 < found["map"] < 100
    assert found["map"] == pytest.approx(100 * average_precision_score(labels, p, average="macro"), abs=1e-6)
    predicted = p > np.array(thresholds(run))
    for average in ("micro", "macro"):
        assert found[f"{average}_f1"] == pytest.approx(100 * f1_score(labels, predicted, average=average), abs=1e-6)


@pytest.mark.parametrize("split", ["val", "test"])
def test_rankings_are_scikit_learns_and_the_worst_class_is_named(run: Path, split: str):
    labels, p = saved(run, split)
    found = summary(run)[split]["24px"]
    precisions = {name: average_precision_score(labels[:, i], p[:, i]) for i, name in enumerate(sorted(NAMES))}
    assert found["auroc"] == pytest.approx(100 * roc_auc_score(labels, p, average="macro"), abs=1e-6)
    assert found["micro_auroc"] == pytest.approx(100 * roc_auc_score(labels, p, average="micro"), abs=1e-6)
    assert found["worst_class_ap"] == pytest.approx(100 * min(precisions.values()), abs=1e-6)
    assert found["worst_class"] == min(precisions, key=precisions.__getitem__)
    page = (run / "report.html").read_text().partition("<h2>Each class</h2>")[2].partition("</section>")[0]
    if split == "val":
        worst_first = sorted(precisions, key=precisions.__getitem__)
        assert sorted(NAMES, key=lambda name: page.index(f"<th>{name}</th>")) == worst_first
        assert "lowest average precision first" in page


def test_it_selects_by_auroc_and_evaluate_has_intervals(data: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert recipe("multiscale")(command(data, run, "--select-by", "auroc")) == 0
    told = summary(run)
    assert told["best_auroc"] == told["val"]["24px"]["auroc"] == max(row["24px/auroc"] for row in epochs(run))
    assert recipe("evaluate")([str(run), "--bootstrap", "100"]) == 0
    values = json.loads((run / "evaluation" / "evaluation.json").read_text())["splits"]["test"]["24px"]
    names = {"map", "micro_f1", "macro_f1", "loss", "worst_class_ap", "auroc", "micro_auroc"}
    assert {*values["intervals"]} == names
    for name, (low, high) in values["intervals"].items():
        assert low <= values[name] <= high
        assert values[name] == pytest.approx(told["test"]["24px"][name], abs=1e-4)


def test_the_best_model_is_that_of_the_highest_map_with_thresholds_of_its_validation(run: Path):
    told = summary(run)
    assert told["select_by"] == "map"
    assert told["best_map"] == told["val"]["24px"]["map"] == max(row["24px/map"] for row in epochs(run))
    row = next(row for row in epochs(run) if row["24px/map"] == told["best_map"])
    assert row["24px/macro_f1"] == told["val"]["24px"]["macro_f1"]
    labels, p = saved(run, "val")
    half = f1_score(labels, p > 0.5, average="macro")
    assert told["val"]["24px"]["macro_f1"] >= 100 * half
    assert len(thresholds(run)) == 3
    page = (run / "report.html").read_text()
    assert "mAP" in page
    assert "top-1" not in page


def epochs(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.columns().items() if name not in TIMES}
        for row in RunDirectory(run).metrics()
    ]


def differing(first: Path, second: Path) -> list[str]:
    """Names of the final tensors that are not the same, bit for bit."""
    names = [f"checkpoints/step-{STEPS:09d}/{part}.safetensors" for part in ("model", "optimizer")]
    both = [
        {
            f"{name}: {key}": tensor
            for name in (*names, "best/model.safetensors")
            for key, tensor in load_file(run / name).items()
        }
        for run in (first, second)
    ]
    assert both[0].keys() == both[1].keys()
    return [name for name, tensor in both[0].items() if not torch.equal(tensor, both[1][name])]


def interrupted(whole: Path, output: Path) -> Path:
    """A copy of a finished run as it was after its second epoch."""
    shutil.copytree(whole, output)
    (output / "summary.json").unlink()
    shutil.rmtree(max((output / "checkpoints").iterdir()))
    return output


def test_it_is_continued_bit_for_bit(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    resumed = interrupted(run, tmp_path / "resumed")
    assert recipe("multiscale")(command(data, resumed)) == 0
    assert "continuing from" in capsys.readouterr().out
    assert differing(resumed, run) == []
    assert epochs(resumed) == epochs(run)
    for name in ("val", "test", "chosen", "best_epoch", "best_map"):
        assert summary(resumed)[name] == summary(run)[name]


@pytest.mark.slow
def test_another_seed_ends_elsewhere(run: Path, data: Path, tmp_path: Path):
    """The control of the comparison above."""
    assert recipe("multiscale")(command(data, tmp_path / "other", "--seed", "1")) == 0
    assert differing(tmp_path / "other", run)
    assert epochs(tmp_path / "other") != epochs(run)


@pytest.fixture(scope="module")
def pair(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model without BatchNorm, trained in one process, in two, and in two that continued from the second epoch."""
    folder = tmp_path_factory.mktemp("pair")
    more = ("--arch", "test_vit", "--scales", "16,32", "--optimizer", "sgd", "--dropout-rate", "0")
    main = runpy.run_path(str(MULTISCALE))["main"]
    assert main(command(data, folder / "one", *more)) == 0

    def train_two(output: Path) -> None:
        done = run_ranks([str(MULTISCALE), *command(data, output, *more)], timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr[-3000:]

    train_two(folder / "two")
    train_two(interrupted(folder / "two", folder / "resumed"))
    return {name: folder / name for name in ("one", "two", "resumed")}


@pytest.mark.slow
def test_one_and_two_processes_train_the_same(pair: dict[str, Path]):
    one, two = (summary(pair[name]) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for split in ("val", "test"):
        for name in ("map", "micro_f1", "macro_f1", "loss"):
            assert two[split]["32px"][name] == pytest.approx(one[split]["32px"][name], abs=1e-3)
    np.testing.assert_allclose(thresholds(pair["two"]), thresholds(pair["one"]), atol=1e-4)


@pytest.mark.slow
def test_two_processes_continue_bit_for_bit(pair: dict[str, Path]):
    assert differing(pair["resumed"], pair["two"]) == []
    assert epochs(pair["resumed"]) == epochs(pair["two"])
    assert thresholds(pair["resumed"]) == thresholds(pair["two"])


@pytest.mark.slow
def test_two_processes_evaluate_the_same(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [str(run), "--output-dir"]
    assert recipe("evaluate")([*words, str(tmp_path / "one")]) == 0
    assert re.search(r"^ *mAP +[0-9.]+%", capsys.readouterr().out, re.MULTILINE)
    done = run_ranks([str(ROOT / "recipes" / "evaluate.py"), *words, str(tmp_path / "two")], timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text())["splits"] for name in ("one", "two"))
    for split in ("val", "test"):
        intervals, others = (found[split]["24px"].pop("intervals") for found in (one, two))
        for name, ends in intervals.items():
            assert others[name] == pytest.approx(ends, abs=1e-4)
        for name, value in one[split]["24px"].items():
            assert two[split]["24px"][name] == pytest.approx(value, abs=1e-6)
            assert summary(run)[split]["24px"][name] == pytest.approx(value, abs=1e-6)


def test_several_labels_are_predicted_by_the_thresholds(run: Path, data: Path, tmp_path: Path):
    assert recipe("predict")([str(run), str(data / "test"), "--output", str(tmp_path / "rows.csv")]) == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    _, p = saved(run, "test")
    predicted = [
        "|".join(name for name, on in zip(sorted(NAMES), row > np.array(thresholds(run)), strict=True) if on)
        for row in p
    ]
    assert [rows[f"{i}.png"]["label"] for i in range(len(p))] == predicted
    for i, of_classes in enumerate(p):
        row, ranked = rows[f"{i}.png"], np.argsort(-of_classes)
        assert [row[f"label_{place}"] for place in range(1, len(NAMES) + 1)] == [sorted(NAMES)[j] for j in ranked]
        told = [
            q if name in row["label"].split("|") else 1 - q for name, q in zip(sorted(NAMES), of_classes, strict=True)
        ]
        assert float(row["probability"]) == pytest.approx(min(told), abs=1e-5)
    assert {label.count("|") for label in predicted} >= {0, 1}
    plain = load(run)(data / "test" / "0.png")
    np.testing.assert_allclose(plain[0].numpy(), p[0], atol=1e-5)


def test_the_export_keeps_the_thresholds(run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "export"
    assert recipe("export")([str(run), "--formats", "safetensors", "--output-dir", str(output)]) == 0
    assert json.loads((output / "config.json").read_text())["thresholds"] == thresholds(run)
    card = (output / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("photo.jpg", str(data / "test" / "0.png"))
    monkeypatch.chdir(output)
    monkeypatch.syspath_prepend(str(output))
    told: dict[str, Any] = {}
    exec(code, told)
    _, p = saved(run, "test")
    assert told["predicted"] == np.flatnonzero(p[0] > np.array(thresholds(run))).tolist()


def test_a_confusion_needs_one_class_an_image(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, words, told in (
        ("evaluate", (str(run), "--cascade", "16,24"), "--cascade: evaluate measures its top-1, which MultiLabel"),
        (
            "multiscale",
            ("--task", "multilabel", "--select-by", "top1"),
            "--select-by top1: --task multilabel measures map, ",
        ),
    ):
        assert recipe(name)(words) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--task-kwargs", "thresholds=1"), "--task-kwargs thresholds=1: a threshold must be above 0 and below 1"),
        (("--task-kwargs", "thresholds=[0.5,0]"), "thresholds=0: a threshold must be above 0 and below 1"),
        (("--task-kwargs", "thresholds=[0.5,0.4]"), "thresholds: 2 for 3 classes: give one, or one for each"),
        (("--loss", "ce"), "--loss ce: must be one of bce, asl with --task multilabel"),
        (("--task-kwargs", "loss=asl"), "--task-kwargs loss: has a flag of its own, --loss"),
        (("--task", "classification"), "images with several labels are for --task multilabel"),
        (
            ("--task", "multilable"),
            "--task multilable: must be one of classification, multilabel; did you mean multilabel",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
):
    assert recipe("multiscale")(command(data, tmp_path / "run", *words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "run").exists()


def test_a_class_that_no_training_image_has_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = shutil.copytree(data, tmp_path / "data")
    for split in ("train", "val"):
        with (root / f"{split}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        cells = [f"{row['filepath']},{row['label'].count('green')},0" for row in rows]
        (root / f"{split}.csv").write_text("\n".join(["filepath,green,yellow", *cells]) + "\n")
    (root / "test.csv").unlink()
    assert recipe("multiscale")(command(root, tmp_path / "run")) == 2
    assert "no image of train has class 'yellow': leave the class out" in capsys.readouterr().err


def test_given_thresholds_and_the_asymmetric_loss_are_used(data: Path, tmp_path: Path):
    more = ("--loss", "asl", "--task-kwargs", "thresholds=0.3", "--class-weights", "inverse", "--epochs", "1")
    more = (*more, "--warmup-epochs", "0", "--select-by", "macro_f1")
    assert recipe("multiscale")(command(data, tmp_path / "run", *more)) == 0
    told, (labels, p) = summary(tmp_path / "run"), saved(tmp_path / "run", "val")
    assert "chosen" not in told
    assert told["best_macro_f1"] == pytest.approx(100 * f1_score(labels, p > 0.3, average="macro"), abs=1e-6)


def test_folders_of_one_class_can_be_trained_and_evaluated(tmp_path: Path):
    root = write_folders(tmp_path / "data", {"train": 8, "val": 4})
    words = command(root, tmp_path / "run", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "8")
    assert recipe("multiscale")(words) == 0
    words = [str(tmp_path / "run"), "--data-root", str(root / "val"), "--output-dir", str(tmp_path / "evaluation")]
    assert recipe("evaluate")(words) == 0
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["splits"]["val"]
    assert found["24px"]["map"] == summary(tmp_path / "run")["val"]["24px"]["map"]
