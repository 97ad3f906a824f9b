"""--select-by a metric of probabilities, costs or the worst class: what selects, what is recorded, what is refused."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.conftest import PATIENCE_S, ROOT, SLOW, TIMES, recipe
from tests.forkserver import run_ranks
from toolkit import load
from toolkit.config.cli import TABLES
from toolkit.runs.directory import RunDirectory
from toolkit.strategies.base import Metric

pytestmark = pytest.mark.pages
CLASSES = ("ash", "birch", "cedar")
COUNTS = {"train": (30, 18, 12), "val": (14, 9, 7), "test": (12, 8, 6)}
COSTS = "true,cedar,ash,birch\nbirch,1,2,0\nash,1,0,1\ncedar,0,9,8\n"


def draw(path: Path, label: int, rng: np.random.Generator) -> None:
    """An image of noise, a channel of which is somewhat brighter: not every one can be told."""
    pixels = rng.integers(0, 150, (26, 26, 3), dtype=np.uint8)
    pixels[..., label] += rng.choice(np.array([0, 30, 80], dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("trees"), np.random.default_rng(0)
    for split, counts in COUNTS.items():
        for label, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
            for i in range(count):
                draw(root / split / name / f"{i}.png", label, rng)
    (root / "costs.csv").write_text(COSTS)
    return root


def words(trees: Path, output: Path, *more: str) -> list[str]:
    usual = ["--data-root", str(trees), "--arch", "test_resnet", "--scales", "16,24", "--epochs", "4", "--batch-size"]
    usual += ["20", "--num-workers", "1", "--learning-rate", "0.01", "--crop-scale", "1", "--no-amp", "--log-with"]
    return [*usual, "none", "--output-dir", str(output), *more]


def with_costs(trees: Path) -> tuple[str, str]:
    return "--cost-matrix", str(trees / "costs.csv")


def train(trees: Path, output: Path, *more: str) -> int:
    return recipe("multiscale")(words(trees, output, *more))


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def rows(run: Path) -> list[dict[str, Any]]:
    found = [row.columns() for row in RunDirectory(run).metrics()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in found]


def predicted(run: Path, trees: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the probabilities that the best model gives in memory."""
    paths = sorted((trees / split).glob("*/*.png"))
    labels = np.array([CLASSES.index(path.parent.name) for path in paths])
    return labels, load(run)([str(path) for path in paths]).numpy().astype(np.float64)


def by_hand(labels: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """Every metric, by its definition or by scikit-learn."""
    costs = np.array([[0, 1, 1], [2, 0, 1], [9, 8, 0]], dtype=float)
    truth, answer = np.eye(3)[labels], p.argmax(1)
    return {
        "auroc": 100 * roc_auc_score(labels, p / p.sum(1, keepdims=True), multi_class="ovr", average="macro"),
        "average_precision": 100 * average_precision_score(truth, p, average="macro"),
        "worst_class_accuracy": 100 * min((answer == labels)[labels == c].mean() for c in range(3)),
        "expected_cost": costs[labels, answer].mean(),
        "bayes_cost": costs[labels, (p @ costs).argmin(1)].mean(),
    }


@pytest.fixture(scope="module")
def by_auroc(trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("auroc") / "run"
    assert train(trees, output, "--select-by", "auroc", *with_costs(trees)) == 0
    return output


def check_selected(run: Path, name: str, best: Any) -> None:
    """The selected epoch has the best value, and the same value is told everywhere."""
    told = summary(run)
    values = [row[f"24px/{name}"] for row in rows(run)]
    assert told["select_by"] == name
    assert told["best_epoch"] == values.index(best(values))
    assert told[f"best_{name}"] == told["val"]["24px"][name] == best(values)


def test_the_best_epoch_has_the_highest_auroc_and_the_metrics_are_scikit_learns(by_auroc: Path, trees: Path):
    check_selected(by_auroc, "auroc", max)
    for split in ("val", "test"):
        found, expected = summary(by_auroc)[split]["24px"], by_hand(*predicted(by_auroc, trees, split))
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-6), name
    first = rows(by_auroc)[0]
    assert "24px/average_precision" not in first  # an epoch measures what it needs only
    page = (by_auroc / "report.html").read_text()
    assert "AUROC at 24 px, validation" in page
    assert "AUROC on validation" in page


def test_the_best_epoch_has_the_lowest_cost_and_the_page_says_that_lower_is_better(trees: Path, tmp_path: Path, capsys):
    more = ["--select-by", "expected_cost", *with_costs(trees), "--patience", "3", "--ema-decay", "0.5"]
    assert train(trees, tmp_path / "run", *more) == 0
    out = capsys.readouterr().out
    assert f"best model by expected_cost (lower is better), costs of {trees / 'costs.csv'}" in out
    told, name = summary(tmp_path / "run"), "expected_cost"
    values = [min(row[f"24px/{name}"], row[f"raw/24px/{name}"]) for row in rows(tmp_path / "run")]
    assert told["best_epoch"] == values.index(min(values))
    assert told[f"best_{name}"] == min(values)
    assert told["val"]["24px"][name] == pytest.approx(min(values))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "chosen by expected cost on validation at 24 px (lower is better)" in page
    assert f"{min(values):.4f}" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "canonical", "best"),
    [
        ("bayes_cost", "bayes_cost", min),
        pytest.param("average_precision", "average_precision", max, marks=SLOW),
        pytest.param("worst_class", "worst_class_accuracy", max, marks=SLOW),
        pytest.param("ece", "ece", min, marks=SLOW),
    ],
)
def test_every_other_new_metric_selects_too(trees: Path, tmp_path: Path, name: str, canonical: str, best: Any):
    assert train(trees, tmp_path / "run", "--select-by", name, *with_costs(trees), "--scheduler", "plateau") == 0
    check_selected(tmp_path / "run", canonical, best)


@SLOW
@pytest.mark.parametrize("strategy", [name for name in TABLES["strategy"] if name != "single"])
def test_every_strategy_selects_by_it(trees: Path, tmp_path: Path, strategy: str):
    scales = ["--scales", "12,16,24", "--epochs", "6"]
    assert train(trees, tmp_path / "run", "--strategy", strategy, *scales, "--select-by", "auroc") == 0
    told = summary(tmp_path / "run")
    assert told["best_auroc"] == told["val"]["24px"]["auroc"]
    assert told["best_auroc"] == max(row["24px/auroc"] for row in rows(tmp_path / "run"))


def interrupted(whole: Path, output: Path) -> Path:
    """A copy of a finished run as it was before its last epoch was saved."""
    shutil.copytree(whole, output)
    (output / "summary.json").unlink()
    shutil.rmtree(max((output / "checkpoints").iterdir()))
    return output


def differing(first: Path, second: Path) -> list[str]:
    """Names of the tensors of the best model that are not the same, bit for bit."""
    one, two = (load_file(run / "best/model.safetensors") for run in (first, second))
    assert one.keys() == two.keys()
    return [name for name in one if not torch.equal(one[name], two[name])]


def test_it_is_continued_bit_for_bit_and_the_file_of_costs_may_move_or_be_gone(
    by_auroc: Path, trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    moved = shutil.copy(trees / "costs.csv", tmp_path / "moved.csv")
    for number, file in enumerate((moved, trees / "costs.csv")):
        resumed = interrupted(by_auroc, tmp_path / f"resumed-{number}")
        hidden = trees / "hidden.csv"
        if number:
            (trees / "costs.csv").rename(hidden)
        try:
            assert train(trees, resumed, "--select-by", "auroc", "--cost-matrix", str(file)) == 0
        finally:
            if number:
                hidden.rename(trees / "costs.csv")
        assert "continuing from" in capsys.readouterr().out
        assert differing(resumed, by_auroc) == []
        assert rows(resumed) == rows(by_auroc)
        for name in ("val", "test", "best_epoch", "best_auroc"):
            assert summary(resumed)[name] == summary(by_auroc)[name]


def test_other_costs_are_another_run(by_auroc: Path, trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    resumed, other = interrupted(by_auroc, tmp_path / "resumed"), tmp_path / "costs.csv"
    other.write_text(COSTS.replace("9", "7"))
    assert train(trees, resumed, "--select-by", "auroc", "--cost-matrix", str(other)) == 2
    assert f"--cost-matrix {trees / 'costs.csv'}, now {other}" in capsys.readouterr().err
    assert train(trees, resumed, "--select-by", "auroc") == 2
    assert "now no --cost-matrix" in capsys.readouterr().err
    assert train(trees, resumed, "--select-by", "expected_cost", *with_costs(trees)) == 2
    assert "--select-by auroc, now expected_cost" in capsys.readouterr().err


def evaluated(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def test_evaluate_tells_every_metric_with_its_interval_and_both_costs(
    by_auroc: Path, trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (trees / "costs.csv").rename(trees / "hidden.csv")  # the run has its own copy
    try:
        assert recipe("evaluate")([str(by_auroc), "--output-dir", str(tmp_path / "out")]) == 0
    finally:
        (trees / "hidden.csv").rename(trees / "costs.csv")
    found, out = evaluated(tmp_path / "out"), capsys.readouterr().out
    assert found["bootstrap"] == {"samples": 1000, "seed": 0, "level": 0.95}
    for split in ("val", "test"):
        values = found["splits"][split]["24px"]
        assert {name: values[name] for name in by_hand(*predicted(by_auroc, trees, split))} == {
            name: pytest.approx(value, abs=1e-6) for name, value in by_hand(*predicted(by_auroc, trees, split)).items()
        }
        assert {*values["intervals"]} == {metric["name"] for metric in found["metrics"]}
        for name, (low, high) in values["intervals"].items():
            assert low <= values[name] <= high
    top1, (low, high) = values["top1"], values["intervals"]["top1"]
    assert f"{top1:.2f}% ({low:.2f} - {high:.2f})" in out
    for title in ("AUROC", "mAP", "worst class", "expected cost", "least expected cost", "which is"):
        assert title in out
    assert "most probable class" in out
    with (tmp_path / "out/predictions/classes/test.csv").open(newline="") as file:
        of_classes = {row["class"]: row for row in csv.DictReader(file)}
    assert [int(row["images"]) for row in of_classes.values()] == list(COUNTS["test"])
    assert float(of_classes[values["worst_class"]]["24px/recall"]) == pytest.approx(
        values["worst_class_accuracy"] / 100, abs=1e-6
    )


def test_evaluate_takes_other_costs_and_no_bootstrap(by_auroc: Path, tmp_path: Path, capsys):
    other = tmp_path / "other.csv"
    other.write_text("," + ",".join(CLASSES) + "\n" + "".join(f"{name},1,1,1\n" for name in CLASSES))
    flags = ["--cost-matrix", str(other), "--bootstrap", "0", "--output-dir", str(tmp_path / "out")]
    assert recipe("evaluate")([str(by_auroc), *flags]) == 0
    found = evaluated(tmp_path / "out")
    assert found["bootstrap"] is None
    assert found["splits"]["test"]["24px"]["expected_cost"] == found["splits"]["test"]["24px"]["bayes_cost"] == 1
    assert "intervals" not in found["splits"]["test"]["24px"]
    assert "(" not in capsys.readouterr().out.partition("val, ")[2].partition("\n\n")[0]


def test_images_of_one_class_have_no_auroc_and_evaluate_says_so(by_auroc: Path, trees: Path, tmp_path: Path, capsys):
    shutil.copytree(trees / "test" / "ash", tmp_path / "some" / "ash")
    flags = ["--data-root", str(tmp_path / "some"), "--bootstrap", "20", "--output-dir", str(tmp_path / "out")]
    assert recipe("evaluate")([str(by_auroc), *flags]) == 0
    (values,) = evaluated(tmp_path / "out")["splits"].values()
    assert values["24px"]["auroc"] is None
    assert "AUROC                undefined" in capsys.readouterr().out
    assert "NaN" not in (tmp_path / "out" / "evaluation.json").read_text()


def test_a_run_ends_well_whose_test_images_are_of_one_class(trees: Path, tmp_path: Path, capsys):
    data = shutil.copytree(trees, tmp_path / "trees")
    for name in CLASSES[1:]:
        shutil.rmtree(data / "test" / name)
    assert train(data, tmp_path / "run", "--select-by", "auroc", "--epochs", "1") == 0
    assert "AUROC undefined" in capsys.readouterr().out
    assert summary(tmp_path / "run")["test"]["24px"]["auroc"] is None
    assert "AUROC at 24 px, validation" in (tmp_path / "run" / "report.html").read_text()
    assert recipe("export")([str(tmp_path / "run"), "--formats", "safetensors"]) == 0


@pytest.mark.slow
def test_two_processes_select_continue_and_measure_the_same(by_auroc: Path, trees: Path, tmp_path: Path):
    def two(script: str, *given: str) -> None:
        done = run_ranks([str(ROOT / "recipes" / script), *given], timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr[-3000:]

    flags = ("--select-by", "auroc", *with_costs(trees))
    two("multiscale.py", *words(trees, tmp_path / "two", *flags))
    check_selected(tmp_path / "two", "auroc", max)
    found, expected = summary(tmp_path / "two")["val"]["24px"], by_hand(*predicted(tmp_path / "two", trees, "val"))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    two("multiscale.py", *words(trees, interrupted(tmp_path / "two", tmp_path / "resumed"), *flags))
    assert differing(tmp_path / "resumed", tmp_path / "two") == []
    assert rows(tmp_path / "resumed") == rows(tmp_path / "two")

    two("evaluate.py", str(by_auroc), "--bootstrap", "50", "--output-dir", str(tmp_path / "out-two"))
    assert recipe("evaluate")([str(by_auroc), "--bootstrap", "50", "--output-dir", str(tmp_path / "out-one")]) == 0
    one, both = (evaluated(tmp_path / name)["splits"]["test"]["24px"] for name in ("out-one", "out-two"))
    for name in ("auroc", "average_precision", "worst_class_accuracy", "expected_cost", "bayes_cost", "images"):
        assert both[name] == pytest.approx(one[name], abs=1e-6), name
    for name, interval in one["intervals"].items():
        assert both["intervals"][name] == pytest.approx(interval, abs=1e-3), name


def test_runs_selected_by_auroc_or_cost_are_compared_by_it(by_auroc: Path, trees: Path, tmp_path: Path, capsys):
    from toolkit import compare

    assert train(trees, tmp_path / "other", "--select-by", "auroc", "--seed", "1") == 0
    capsys.readouterr()
    result = compare(by_auroc, tmp_path / "other")
    compared = next(size for size in result.sizes if size.spec == "24px")
    values = [by_hand(*predicted(run, trees, "test"))["auroc"] for run in (by_auroc, tmp_path / "other")]
    assert [compared.baseline["auroc"], compared.values["auroc"]] == pytest.approx(values, abs=1e-6)
    difference = compared.differences["auroc"]
    assert difference.value == pytest.approx(values[1] - values[0], abs=1e-6)
    assert difference.low <= difference.value <= difference.high
    assert "AUROC %" in str(result)
    assert "AUROC" not in str(compare(by_auroc, copy_selected_by(tmp_path, by_auroc, "top5")))  # control


def copy_selected_by(folder: Path, run: Path, name: str) -> Path:
    """A copy of a run that says that another metric selected it."""
    copy = shutil.copytree(run, folder / f"by-{name}")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("select_by: auroc", f"select_by: {name}"))
    return copy


def test_runs_selected_by_cost_are_compared_by_it_and_lower_is_better(by_auroc: Path, trees: Path, tmp_path: Path):
    from toolkit import compare

    first = copy_selected_by(tmp_path, by_auroc, "expected_cost")
    worse = shutil.copytree(first, tmp_path / "worse")
    saved = worse / "predictions" / "test.csv"
    with saved.open(newline="") as file:
        header, *lines = csv.reader(file)
    for line in lines:  # takes everything for birch, which costs most for cedar
        for i, name in enumerate(header):
            if name.endswith("/predicted"):
                line[i] = "1"
    with saved.open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    result = compare(first, worse)
    difference = result.sizes[-1].differences["expected_cost"]
    assert difference.value > 0
    assert difference.verdict == "worse"
    assert "expected cost (lower is better)" in str(result)


def test_the_page_lists_the_classes_the_worst_first_and_what_evaluate_measured(by_auroc: Path, tmp_path: Path):
    run = shutil.copytree(by_auroc, tmp_path / "run")
    assert "<h2>Evaluated</h2>" not in (run / "report.html").read_text()
    assert recipe("evaluate")([str(run), "--bootstrap", "30"]) == 0
    assert recipe("report")([str(run)]) == 0
    page = (run / "report.html").read_text()
    section = page.partition("<h2>Each class</h2>")[2].partition("</section>")[0]
    with (run / "predictions" / "classes" / "val.csv").open(newline="") as file:
        recall = {row["class"]: float(row["24px/recall"]) for row in csv.DictReader(file)}
    names = sorted(section.index(f"<th>{name}</th>") for name in CLASSES)
    assert [recall[name] for name in sorted(CLASSES, key=lambda name: section.index(f"<th>{name}</th>"))] == sorted(
        recall.values()
    )
    assert len(names) == 3
    found = page.partition("<h2>Evaluated</h2>")[2].partition("</section>")[0]
    low, high = evaluated(run / "evaluation")["splits"]["test"]["24px"]["intervals"]["auroc"]
    assert f"({low:.2f} - {high:.2f})" in found
    assert "Lower is better: loss, ECE, expected cost, least expected cost." in found


@pytest.fixture(scope="module")
def one_class_in_val(trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one") / "trees"
    shutil.copytree(trees, root)
    for name in CLASSES[1:]:
        shutil.rmtree(root / "val" / name)
    return root


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--select-by", "expected_cost"], "--select-by expected_cost needs --cost-matrix: give its file, or another"),
        (["--select-by", "bayes_cost"], "--select-by bayes_cost needs --cost-matrix"),
        (["--select-by", "aurocc"], "--select-by aurocc: --task classification measures top1, top5, loss"),
        (["--select-by", "aurocc"], "did you mean auroc?"),
        (["--cost-matrix", "gone.csv"], "--cost-matrix gone.csv: no such file"),
        (["--cost-matrix", "few.csv"], "--cost-matrix few.csv, first row: it lacks 1 of 3 classes: 'cedar'"),
        (
            ["--cost-matrix", "negative.csv"],
            "negative.csv, line 2 (ash, column birch): '-1' is no cost: a number, 0 or",
        ),
        (["--cost-matrix", "COSTS", "--cost-matrix-sha256", "ab"], "its SHA-256 is"),
        (["--cost-matrix-sha256", "ab"], "--cost-matrix-sha256 would be ignored: it needs --cost-matrix"),
        (["--task", "multilabel", "--cost-matrix", "COSTS"], "would be ignored by --task multilabel"),
        (
            ["--data-root", "ONE", "--select-by", "auroc"],
            "--select-by auroc: all 14 validation images are of class 'ash'",
        ),
        (["--data-root", "ONE", "--select-by", "average_precision"], "all 14 validation images are of class 'ash'"),
    ],
)
def test_what_cannot_select_is_refused_in_one_line_before_training(
    trees: Path, one_class_in_val: Path, tmp_path: Path, monkeypatch, capsys, flags: list[str], told: str, dry: bool
):
    monkeypatch.chdir(tmp_path)
    Path("few.csv").write_text(",ash,birch\nash,0,1\nbirch,1,0\n")
    Path("negative.csv").write_text(",ash,birch,cedar\nash,0,-1,1\nbirch,1,0,1\ncedar,1,1,0\n")
    places = {"COSTS": str(trees / "costs.csv"), "ONE": str(one_class_in_val)}
    given = [places.get(word, word) for word in flags]
    assert train(trees, tmp_path / "run", *given, *(["--dry-run"] if dry else [])) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert len(err.splitlines()) == 1
    assert "epoch" not in out
    assert not (tmp_path / "run").exists()


def test_a_metric_says_its_direction_and_its_intervals_in_its_unit():
    top1, cost = Metric("top1", "top-1"), Metric("cost", "cost", percent=False, higher_is_better=False)
    assert (top1.direction, cost.direction) == ("", "lower is better")
    assert (top1.between(79.9, 82.41), cost.between(0.5, 1)) == ("79.90 - 82.41", "0.5000 - 1.0000")
