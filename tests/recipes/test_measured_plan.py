"""`--dry-run --measure` of the training recipes, as a user runs it."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SLOW, TORCHRUN, Runner, recipe
from tests.recipes.test_bad_input import refused
from toolkit.tools import planner_times

SMALL = ("--synthetic-count", "60", "--synthetic-size", "32", "--batch-size", "12", "--epochs", "4")
MEASURED = (*SMALL, "--log-with", "none", "--num-workers", "0", "--dry-run", "--measure")
FLAGS = [
    ("multiscale", ("--measure",), "--measure would be ignored without --dry-run"),
    ("single_scale", ("--dry-run", "--goal", "one-size"), "--goal one-size would be ignored without --measure"),
    ("multiscale", ("--dry-run", "--time-budget", "2h"), "--time-budget 2h would be ignored without --measure"),
    ("multiscale", ("--cost-budget", "5"), "--cost-budget 5 would be ignored without --measure"),
    ("multiscale", (*MEASURED, "--cost-budget", "5"), "--cost-budget 5 needs --hourly-cost"),
    ("multiscale", (*MEASURED, "--hourly-cost", "1", "--cost-budget", "-1"), "--cost-budget -1: must be above 0"),
    ("single_scale", (*MEASURED, "--time-budget", "2 weeks"), "--time-budget 2 weeks: must be a time above 0"),
    ("single_scale", (*MEASURED, "--goal", "all"), "--goal all: must be one of 'one-size' or 'every-size'"),
]


@pytest.mark.parametrize(("name", "words", "message"), FLAGS)
def test_one_line_says_what_is_wrong(
    name: str, words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, tmp_path, name, *words)


@pytest.mark.slow
def test_the_run_is_predicted_and_compared_when_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setattr(planner_times, "STEPS_S", 0.0)
    monkeypatch.setattr(planner_times, "LOADER_S", 0.0)
    monkeypatch.chdir(tmp_path)
    budget = ("--hourly-cost", "3.6", "--cost-budget", "2", "--time-budget", "1h")
    assert recipe("single_scale")([*MEASURED, "--img-size", "32", *budget]) == 0
    out = capsys.readouterr().out
    assert "phase 0   epochs 1-4, 20 steps at 32 px" in out  # the plan comes first
    for line in (
        "planned   single scale at 32 px: 4 epochs in ",
        "compare   --goal one-size, 4 epochs each",
        "* single scale ",
        "  progressive, staged ",
        "  progressive --ramp ",
        "budget    the most epochs within 33 min 20 s",  # 2 of 3.6 an hour
        "epochs at 16, 32 px) in ",
        "advice    single scale for ",
        "toolkit train single --img-size 32 --epochs ",
        "toolkit train multi --progressive --scales 16,32 --ramp --epochs ",
    ):
        assert f"\n{line}" in out or line in out, line
    assert list(tmp_path.iterdir()) == []


@SLOW
def test_two_processes_agree_on_a_plan(run: Runner):
    words = (*MEASURED, "--scales", "16,32", "--time-budget", "10m")
    done = run("recipes/multiscale.py", *words, launcher=TORCHRUN, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("advice    simultaneous for ") == 1
    assert "torchrun --nproc-per-node 2 recipes/multiscale.py --scales 16,32 --epochs " in done.stdout
    assert "measured  test_resnet on 2 x cpu" in done.stdout
