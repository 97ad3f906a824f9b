"""No figure is wrong in silence: averages that a short run cannot fill."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TIMES, TINY, TORCHRUN, Runner, recipe
from toolkit.models.ema import Ema, slow_decay
from toolkit.runs import weight_files
from toolkit.runs.report.records import read_records

SLOW_AVERAGE = ("--ema-decay", "0.9998", "--no-ema-warmup")  # of 5000 steps, in a run of 15
SHORT = (*TINY, "--epochs", "3", "--num-workers", "1", "--save-every-steps", "5", "--keep", "9")


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def weights(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file)


def alike(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures") / "run"
    words = (*SHORT, *SLOW_AVERAGE, "--scales", "16,32", "--norm-per-scale", "full", "--output-dir", str(folder))
    assert recipe("multiscale")(words) == 0
    return folder


def test_the_better_of_raw_and_averaged_weights_is_kept(short: Path):
    found, best = summary(short), weights(short / "best" / "model.safetensors")
    assert found["best_weights"] == "raw"
    values = [float(row[f"{prefix}32px/top1"]) for row in rows(short) for prefix in ("", "raw/")]
    assert found["best_top1"] == max(values) > max(values[::2])
    kept = short / "checkpoints" / f"step-{5 * (found['best_epoch'] + 1):09d}"
    assert alike(short / "best" / "model.safetensors", kept / "model.safetensors")
    assert not alike(short / "best" / "model.safetensors", kept / "ema.safetensors")  # control
    assert weight_files.find(kept) == kept / "model.safetensors"
    assert any(".bns." in name or "running" in name for name in best)
    assert found["val"]["32px"]["top1"] == found["best_top1"]
    page = read_records(short)
    assert page.best_is_raw
    assert page.best_row == found["best_epoch"]


def test_a_run_that_selects_among_both_is_continued_exactly(short: Path, tmp_path: Path):
    again = shutil.copytree(short, tmp_path / "again")
    (again / "summary.json").unlink()
    words = (*SHORT, *SLOW_AVERAGE, "--scales", "16,32", "--norm-per-scale", "full")
    start = again / "checkpoints" / "step-000000005"
    assert recipe("multiscale")((*words, "--resume", str(start))) == 0
    assert rows(again) == rows(short)
    assert alike(again / "best" / "model.safetensors", short / "best" / "model.safetensors")
    assert summary(again)["best_weights"] == "raw"
    assert not summary(again)["inexact_resumes"]


@pytest.mark.slow
def test_the_average_is_kept_where_it_is_as_good_and_nothing_is_told_without_one(tmp_path: Path):
    fast = ("--img-size", "32", "--ema-decay", "0.001")
    assert recipe("single_scale")((*SHORT, *fast, "--output-dir", str(tmp_path / "fast"))) == 0
    assert summary(tmp_path / "fast")["best_weights"] == "averaged"
    kept = max((tmp_path / "fast" / "checkpoints").iterdir())
    assert weight_files.find(kept) == kept / "ema.safetensors"
    assert recipe("single_scale")((*SHORT, "--img-size", "32", "--output-dir", str(tmp_path / "plain"))) == 0
    assert summary(tmp_path / "plain")["best_weights"] is None
    assert not [name for name in rows(tmp_path / "plain")[0] if name.startswith("raw/")]


def test_the_plan_warns_of_an_average_that_is_too_slow_for_the_run(capfd: pytest.CaptureFixture[str]):
    words = (*TINY, "--img-size", "32", "--epochs", "24", "--num-workers", "1", "--dry-run")
    assert recipe("single_scale")((*words, "--ema-decay", "0.9998")) == 0
    told = "--ema-decay 0.9998 averages over about 5000 steps, too slow for a run of 120: 0.916 or less fits"
    assert told in "".join(capfd.readouterr())
    assert recipe("single_scale")((*words, "--ema-decay", "0.916")) == 0
    assert "too slow" not in "".join(capfd.readouterr())  # control
    assert recipe("single_scale")((*words, "--ema-warmup")) == 2
    assert "--ema-warmup would be ignored: it needs --ema-decay" in capfd.readouterr().err


@pytest.mark.parametrize("steps", [5, 10, 11, 20, 50, 99, 120, 1000, 450_360])
def test_the_decay_that_is_named_fits(steps: int):
    warning = slow_decay(0.9999999, steps)
    if steps <= 10:
        assert warning.endswith("drop it")
    else:
        assert not slow_decay(float(warning.rpartition(": ")[2].split()[0]), steps)
    assert not slow_decay(0.05, 20)  # control


def test_the_average_forgets_the_first_weights_when_it_is_warmed_up():
    for warmup, left in ((True, 0.01), (False, 0.97)):
        model = torch.nn.Linear(1, 1, bias=False)
        ema = Ema(model, 0.9998, warmup)
        for step in range(120):
            with torch.no_grad():
                model.weight.fill_(1.0 if step == 0 else 0.0)
            ema.follow()
        value = ema.state()["weight"].item()
        assert value < left if warmup else value > left


@pytest.mark.slow
def test_two_processes_agree_on_the_better_weights(run: Runner, tmp_path: Path):
    words = (*SHORT, *SLOW_AVERAGE, "--scales", "16,32", "--norm-per-scale", "full", "--output-dir", "both")
    done = run("recipes/multiscale.py", *words, launcher=TORCHRUN, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "both")
    assert (found["best_weights"], found["processes"]) == ("raw", 2)
    step = 5 * (found["best_epoch"] + 1)
    raw = tmp_path / "both" / "checkpoints" / f"step-{step:09d}" / "model.safetensors"
    assert alike(tmp_path / "both" / "best" / "model.safetensors", raw)
    assert found["val"]["32px"]["top1"] == found["best_top1"]
