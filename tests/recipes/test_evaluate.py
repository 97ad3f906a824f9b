"""recipes/evaluate.py as a user calls it: the run's own figures again, on any data, at any size."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.conftest import ROOT, TORCHRUN, Runner, recipe, write_folders, write_image
from toolkit import mistakes
from toolkit.recipe_settings import Evaluate

pytestmark = pytest.mark.usefixtures("elsewhere")


def evaluate(*words: str | Path) -> int:
    return recipe("evaluate")([str(word) for word in words])


def report(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "evaluation.json").read_text())


def said(folder: str, split: str) -> tuple[list[str], np.ndarray]:
    """Names, and the numbers said of each image."""
    with Path(folder, "predictions", f"{split}.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    return [row[0] for row in rows], np.array([row[1:] for row in rows], dtype=float)


@pytest.fixture(scope="module")
def whole(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """All that can be asked for, once."""
    folder = str(tmp_path_factory.mktemp("evaluated"))
    known = mistakes.read(finished / "predictions", "test")
    assert known is not None
    half = float(np.median(known.predictions.of("16px").confidence)) + 1e-4  # not at any image's own value
    words = ["--scales", "16,24,32", "--average", "--cascade", "16,32", "--confidence", f"{half:.6f}"]
    assert evaluate(finished, *words, "--output-dir", folder) == 0
    return folder


def test_the_figures_are_those_of_the_run_when_nothing_else_is_asked_for(finished: Path, whole: str):
    found, summary = report(whole), json.loads((finished / "summary.json").read_text())
    assert found["splits"].keys() == {"val", "test"}
    for split, figures in found["splits"].items():
        assert figures.keys() == {"16px", "24px", "32px", "16+24+32px"}
        for name in ("16px", "32px"):
            expected = summary[split][name]
            for figure in ("top1", "top5", "images"):
                assert figures[name][figure] == expected[figure]
            assert figures[name]["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert figures["24px"]["borrowed"] == 32
        assert 0 <= figures["32px"]["ece"] <= 1


def test_each_size_has_its_cost_when_a_run_is_evaluated(whole: str):
    costs = report(whole)["costs"]
    gmacs = {name: cost["gmacs"] for name, cost in costs.items()}
    assert gmacs["16+24+32px"] == pytest.approx(gmacs["16px"] + gmacs["24px"] + gmacs["32px"])
    assert gmacs["16px"] < gmacs["24px"] < gmacs["32px"]
    for cost in costs.values():
        assert 0 < cost["latency_p50_ms"] <= cost["latency_p95_ms"]
        assert cost["images_per_s"] > 0
        assert cost["peak_memory_gb"] > 0


def test_a_cascade_is_worth_what_its_predictions_say_when_they_are_counted_by_hand(whole: str):
    found = report(whole)
    _, numbers = said(whole, "test")  # label, then class, confidence, truth at each of 16, 24, 32 and on average
    labels, small, sure, large = numbers[:, 0], numbers[:, 1], numbers[:, 2], numbers[:, 7]
    enough = sure >= found["cascade"]["confidence"]
    climb = found["cascade"]["splits"]["test"]
    assert climb["top1"] == pytest.approx(100 * np.mean(np.where(enough, small, large) == labels))
    assert climb["alone_top1"] == found["splits"]["test"]["32px"]["top1"]
    assert climb["shares"] == {"16": pytest.approx(enough.mean()), "32": pytest.approx(1 - enough.mean())}
    low, high = (found["costs"][name]["gmacs"] for name in ("16px", "32px"))
    assert climb["gmacs"] == pytest.approx(low + (1 - enough.mean()) * high)
    assert climb["times_less_compute"] == pytest.approx(high / climb["gmacs"])
    assert 0 < enough.mean() < 1  # control: both have the word


def test_what_is_left_can_be_read_by_people_when_a_run_was_evaluated(whole: str):
    text = Path(whole, "evaluation.txt").read_text()
    for words in ("latency p50 ms", "top-1 %", "ECE", "normalisation of 32 px", "cascade on test, confidence 0."):
        assert words in text
    plot = ElementTree.parse(Path(whole, "evaluation.svg"))
    assert plot.getroot().tag.endswith("svg")


def test_two_processes_say_the_same_of_every_image(run: Runner, finished: Path, whole: str, tmp_path: Path):
    words = ["--scales", "16,24,32", "--average", "--batch-size", "7", "--output-dir", "two"]
    done = run("recipes/evaluate.py", str(finished), *words, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout
    one, two = report(whole)["splits"], report("two")["splits"]
    for split, figures in one.items():
        for name, score in figures.items():
            assert two[split][name] == {**score, "loss": pytest.approx(score["loss"], abs=1e-5), "ece": two_ece(score)}
        names, numbers = said(whole, split)
        assert said("two", split)[0] == names
        np.testing.assert_allclose(said("two", split)[1], numbers, atol=1e-5)


def two_ece(score: dict[str, Any]) -> Any:
    """A confidence at the border of two bins may fall into either."""
    return pytest.approx(score["ece"], abs=1e-4)


def test_a_size_without_own_normalisation_gets_it_when_asked_for(capsys, finished: Path, whole: str):
    words = ["--scales", "24,32", "--recalibrate", "--split", "test", "--output-dir", "out"]
    assert evaluate(finished, *words) == 0
    assert "statistics of 24 px estimated on 256 training images" in capsys.readouterr().out
    found, before = report("out"), report(whole)["splits"]["test"]
    assert found["recalibrated"] == {"sizes": [24], "images": 256}
    assert found["splits"].keys() == {"test"}
    assert found["splits"]["test"]["32px"] == before["32px"]  # a size with its own is as it was
    assert found["splits"]["test"]["24px"]["borrowed"] is None
    assert found["splits"]["test"]["24px"]["loss"] != before["24px"]["loss"]


def test_the_confidence_is_chosen_on_val_when_none_is_given(capsys, finished: Path):
    assert evaluate(finished, "--cascade", "16,32", "--max-loss", "100", "--split", "test", "--output-dir", "out") == 0
    found = report("out")["cascade"]
    assert (found["tuned_on"], found["splits"].keys()) == ("val", {"test"})
    assert found["splits"]["test"]["shares"]["16"] == 1  # any loss is allowed: the smallest size alone is cheapest
    assert "confidence 0.005, chosen on val" in capsys.readouterr().out


def test_the_mirrored_image_counts_and_costs_when_asked_for(finished: Path, whole: str):
    assert evaluate(finished, "--scales", "16", "--flip", "--split", "test", "--output-dir", "out") == 0
    found = report("out")
    assert found["costs"]["16px"]["gmacs"] == pytest.approx(2 * report(whole)["costs"]["16px"]["gmacs"])
    assert found["splits"]["test"]["16px"]["loss"] != report(whole)["splits"]["test"]["16px"]["loss"]


def test_other_data_is_evaluated_when_it_has_the_same_classes(capsys, finished: Path, data: Path, whole: str):
    words = ["--scales", "32", "--output-dir", "out"]
    assert evaluate(finished, "--data-root", data, "--split", "test", *words) == 0
    assert report("out")["splits"]["test"]["32px"] == report(whole)["splits"]["test"]["32px"]
    assert evaluate(finished, "--data-root", data / "val", *words) == 0  # a folder of class folders
    assert report("out")["splits"]["val"]["32px"] == report(whole)["splits"]["val"]["32px"]
    some = "so$me_{dir$"  # which a plot must not take for a formula
    Path(some, "disc-checks").mkdir(parents=True)
    write_image(Path(some, "disc-checks/a.png"))
    Path(some, "disc-checks/bad.png").write_text("not an image")
    assert evaluate(finished, "--data-root", some, *words) == 0
    score = report("out")["splits"][some]["32px"]
    assert (score["images"], score["unreadable"]) == (1, 1)
    assert json.loads(Path("out/unreadable.jsonl").read_text())["name"] == "disc-checks/bad.png"
    assert f"{some}, 1 images, 1 unreadable left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere: not a run directory: there is no config.yaml in it"),
        (["RUN", "--scales", "a"], "--scales a"),
        (["RUN", "--scales", "32,16"], "--scales 32,16: sizes must be ascending"),
        (["RUN", "--scales", "32", "--average"], "--average would be ignored with one size"),
        (["RUN", "--recalibrate"], "--recalibrate would be ignored: no size asked for is other than 16, 32 px"),
        (["RUN", "--cascade", "32"], "--cascade 32: needs two sizes or more"),
        (["RUN", "--cascade", "32,16"], "--cascade 32,16: sizes must be ascending"),
        (["RUN", "--confidence", "0.5"], "--confidence 0.5 would be ignored: it needs --cascade"),
        (["RUN", "--max-loss", "0.5"], "--max-loss 0.5 would be ignored"),
        (["RUN", "--data-root", "photos"], "'cat' is no class of the run"),
        (["RUN", "--data-root", "photos/val"], "'cat' is no class of the run"),
        (["RUN", "--data-root", "gone"], "gone: no such folder"),
        (["RUN", "--split", "dev"], "--split dev"),
        (["RUN", "--output-dir", "RUN"], "is a run, whose own predictions/ would be overwritten"),
        (["RUN", "--output-dir", "photos/file"], "--output-dir photos/file: nothing can be written there"),
    ],
)
def test_a_command_is_refused_in_one_line_when_it_cannot_work(
    capsys, finished: Path, tmp_path: Path, words: list[str], told: str
):
    write_folders(tmp_path / "photos", {"train": 1, "val": 1})
    (tmp_path / "photos/file").write_text("")
    where = [] if "--output-dir" in words else ["--output-dir", "out"]
    assert evaluate(*(finished if word == "RUN" else word for word in words), *where) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert told in err
    assert len(err.splitlines()) == 1


def test_help_is_complete_and_needs_no_torch_when_asked_for(tmp_path: Path):
    command = [sys.executable, "-X", "importtime", str(ROOT / "recipes" / "evaluate.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    shown = set(re.findall(r"--[a-z][a-z-]*", done.stdout))
    assert {f"--{name.replace('_', '-')}" for name in Evaluate.model_fields if name != "run"} <= shown
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "pydantic" in imported  # control
    assert not imported & {"torch", "timm", "accelerate", "numpy", "PIL", "simplejpeg", "matplotlib"}
