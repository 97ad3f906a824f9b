"""`toolkit compare` as a user calls it: two real runs on the same images, and what is refused."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from tests.conftest import ROOT, TINY, Runner, recipe, write_folders
from toolkit.__main__ import main as toolkit
from toolkit.tools.compare import compare

pytestmark = pytest.mark.usefixtures("elsewhere")
SAME = ("--synthetic-count", "300", "--synthetic-size", "32", "--log-with", "none", "--no-amp")  # data of `finished`


def call(*words: str | Path) -> int:
    return toolkit(["compare", *map(str, words)])


def comparison(folder: str = "out") -> dict[str, Any]:
    return json.loads(Path(folder, "comparison.json").read_text())


def predicted(run: Path, spec: str, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the predicted classes at one size."""
    with (run / "predictions" / f"{split}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([int(row["label"]) for row in rows]), np.array([int(row[f"{spec}/predicted"]) for row in rows])


@pytest.fixture(scope="module")
def other(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at 32 px only, trained for longer on the same images."""
    folder = tmp_path_factory.mktemp("other") / "run"
    words = ["--img-size", "32", "--epochs", "3", "--learning-rate", "0.01", "--output-dir", str(folder)]
    assert recipe("single_scale")([*SAME, *words]) == 0
    return folder


def test_the_difference_and_its_interval_are_those_counted_by_hand(finished: Path, other: Path, capsys):
    assert call(finished, other, "--output-dir", "out") == 0
    found = comparison()
    assert (found["baseline"], found["split"]) == (str(finished), "test")
    (at,) = found["sizes"]  # the size that both report
    assert (at["run"], at["spec"], at["images"]) == (str(other), "32px", 100)
    labels, ours = predicted(finished, "32px")
    assert np.array_equal(labels, predicted(other, "32px")[0])
    theirs = predicted(other, "32px")[1]
    only_ours, only_theirs = (
        ((ours == labels) & (theirs != labels)).sum(),
        ((theirs == labels) & (ours != labels)).sum(),
    )
    assert (at["only_baseline"], at["only_run"]) == (only_ours, only_theirs)
    difference, a, b = at["differences"]["top1"], (only_ours + 1) / 102, (only_theirs + 1) / 102
    half = 1.96 * math.sqrt((a + b - (b - a) ** 2) / 102)
    assert difference["value"] == pytest.approx(at["values"]["top1"] - at["baseline"]["top1"])
    assert difference["value"] == pytest.approx(100 * ((theirs == labels).mean() - (ours == labels).mean()))
    assert (difference["low"], difference["high"]) == pytest.approx((100 * (b - a - half), 100 * (b - a + half)))
    assert only_ours + only_theirs > 0  # control: the runs differ
    told = capsys.readouterr().out
    assert f"run       {other}: 100 test images" in told
    assert Path("out/comparison.txt").read_text() in told


def test_the_metrics_of_both_runs_are_scikit_learns(finished: Path, other: Path):
    assert call(finished, other, "--split", "val", "--output-dir", "out") == 0
    (at,) = comparison()["sizes"]
    for run, values in ((finished, at["baseline"]), (other, at["values"])):
        labels, found = predicted(run, "32px", "val")
        assert values["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(labels, found), abs=1e-6)
        assert values["macro_f1"] == pytest.approx(100 * f1_score(labels, found, average="macro"), abs=1e-6)
    for name in ("balanced_accuracy", "macro_f1"):
        difference = at["differences"][name]
        assert difference["low"] < difference["value"] < difference["high"]


def test_a_comparison_shows_itself_and_is_the_same_each_time(finished: Path, other: Path):
    first, second = compare(finished, other), compare(finished, other)
    assert first == second
    assert repr(first).startswith(f"baseline  {finished}\n")
    assert first.sizes[0].differences["top1"].verdict in repr(first)
    assert first._repr_html_().count("<tr>") == 1 + 3
    assert not (finished / "evaluation").exists()  # the saved predictions were enough


def test_each_run_is_compared_with_the_first_when_there_are_several(finished: Path, other: Path, tmp_path: Path):
    copied = Path(shutil.copytree(finished, tmp_path / "copied"))
    assert call(finished, other, copied, "--output-dir", "out") == 0
    sizes = comparison()["sizes"]
    assert [(at["run"], at["spec"]) for at in sizes] == [
        (str(other), "32px"),
        (str(copied), "16px"),
        (str(copied), "32px"),
    ]
    for at in sizes[1:]:  # the same predictions
        assert at["differences"]["top1"] == pytest.approx(
            {"value": 0, "low": -100 * 1.96 * math.sqrt(2 / 102**2), "high": 100 * 1.96 * math.sqrt(2 / 102**2)}
            | {"percent": True, "higher_is_better": True, "verdict": "undecided"}
        )
        assert (at["only_baseline"], at["only_run"]) == (0, 0)


def test_runs_are_evaluated_at_sizes_that_they_did_not_save(finished: Path, other: Path):
    assert call(finished, other, "--scales", "24,32", "--output-dir", "out") == 0
    at = {at["spec"]: at for at in comparison()["sizes"]}
    assert {*at} == {"24px", "32px"}
    assert call(finished, other, "--output-dir", "saved") == 0
    assert at["32px"] == comparison("saved")["sizes"][0]  # evaluated or saved: the same
    assert not (finished / "evaluation").exists()


def test_other_data_is_compared_on_when_given(finished: Path, other: Path, data: Path):
    assert call(finished, other, "--data-root", data / "val", "--output-dir", "out") == 0
    found = comparison()
    assert (found["split"], found["sizes"][0]["images"]) == ("val", 50)
    assert call(finished, other, "--split", "val", "--output-dir", "own") == 0
    assert found["sizes"][0]["baseline"] == comparison("own")["sizes"][0]["baseline"]


def test_an_image_that_one_run_could_not_read_is_left_out(finished: Path, other: Path, tmp_path: Path, capsys):
    copied = Path(shutil.copytree(other, tmp_path / "copied"))
    path = copied / "predictions" / "test.csv"
    head, first, *rest = path.read_text().splitlines()
    name, label, _, *cells = first.split(",")
    path.write_text("\n".join([head, ",".join([name, label, "-1", *cells]), *rest, ""]))
    assert call(finished, copied, "--output-dir", "out") == 0
    (at,) = comparison()["sizes"]
    assert (at["images"], at["left_out"]) == (99, 1)
    assert "99 test images, 1 unreadable left out" in capsys.readouterr().out
    labels, found = predicted(finished, "32px")
    assert at["baseline"]["top1"] == pytest.approx(100 * (found == labels)[1:].mean())


def test_an_earlier_run_without_the_new_metrics_is_compared(tmp_path: Path):
    runs = [
        shutil.copytree(ROOT / "tests/fixtures/runs-8909503/finished", tmp_path / name) for name in ("one", "another")
    ]
    assert "worst_class" not in (runs[0] / "summary.json").read_text()  # control
    assert call(*runs, "--output-dir", "out") == 0
    assert {at["spec"] for at in comparison()["sizes"]} == {"24px", "28px", "32px"}


@pytest.mark.slow
def test_it_compares_as_a_process(run: Runner, finished: Path, other: Path):
    done = run("toolkit/__main__.py", "compare", str(finished), str(other))
    assert (done.returncode, done.stderr) == (0, "")
    assert "difference (95%)" in done.stdout


def changed(run: Path, where: Path, **summary: Any) -> Path:
    """A copy of a run whose summary has other entries."""
    copied = Path(shutil.copytree(run, where, ignore=shutil.ignore_patterns("checkpoints")))
    before = json.loads((copied / "summary.json").read_text())
    (copied / "summary.json").write_text(json.dumps({**before, **summary}))
    return copied


@pytest.fixture(scope="module")
def situations(finished: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that cannot be compared with `finished`, by name."""
    root = tmp_path_factory.mktemp("situations")
    write_folders(root / "photos", {"train": 10, "val": 5})
    single = ["--img-size", "24", "--epochs", "1", "--log-with", "none", "--output-dir"]
    photos = ["--data-root", str(root / "photos"), "--batch-size", "10", "--arch", "test_resnet"]
    assert recipe("single_scale")([*photos, *single, str(root / "photo-run")]) == 0
    assert recipe("single_scale")([*TINY, *single, str(root / "fewer")]) == 0
    (root / "empty").mkdir()
    runs = {"finished": finished, "other": other, "photos": root / "photo-run", "fewer": root / "fewer"}
    runs |= {"nowhere": root / "nowhere", "empty": root / "empty"}
    runs["preempted"] = changed(other, root / "preempted", exit_reason="preempted by SIGTERM")
    runs["redrawn"] = changed(other, root / "redrawn", data={"test": {"images": 100, "sha256": "0"}})
    runs["running"] = changed(other, root / "running")
    (runs["running"] / "summary.json").unlink()
    runs["relabeled"] = changed(other, root / "relabeled")
    path = runs["relabeled"] / "predictions" / "test.csv"
    head, first, *rest = path.read_text().splitlines()
    name, label, *cells = first.split(",")
    path.write_text("\n".join([head, ",".join([name, str(int(label) + 1), *cells]), *rest, ""]))
    return runs


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["finished"], "one run only: name another"),
        (["finished", "finished"], "is given twice"),
        (["finished", "nowhere"], "nowhere: not a run directory: there is no config.yaml in it"),
        (["empty", "finished"], "empty: not a run directory"),
        (["finished", "preempted"], "preempted: not finished (preempted by SIGTERM): run the command"),
        (["finished", "running"], "running: not finished (no summary.json)"),
        (["finished", "photos"], "'cat' is no class of"),
        (["finished", "fewer"], "no size in common: "),
        (["finished", "fewer", "--scales", "24"], "40 are in both, of 40 and 100; --data-root DATA evaluates both"),
        (["finished", "relabeled"], "1 of 100 have another label"),
        (["finished", "redrawn"], "the same names, but other sizes or order"),
        (["finished", "other", "--scales", "32,16"], "--scales 32,16: sizes must be positive and ascending"),
        (["finished", "other", "--split", "dev"], "--split dev"),
        (["finished", "other", "--data-root", "gone"], "gone: no such folder"),
        (["finished", "other", "--output-dir", "file"], "--output-dir file: nothing can be written there"),
    ],
)
def test_a_comparison_is_refused_in_one_line_when_it_cannot_work(
    capsys, situations: dict[str, Path], words: list[str], told: str
):
    Path("file").write_text("")
    assert call(*(situations.get(word, word) for word in words)) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert told in err
    assert len(err.splitlines()) == 1
    assert "baseline" not in out
