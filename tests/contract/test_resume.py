"""Every strategy, killed between two checkpoints and started again, ends as if nothing had happened, bit for bit."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import EPOCHS, EXAMPLES
from resumable import AUGMENTED, STEPS_PER_EPOCH, settings, strategy
from safetensors.torch import load_file

from tests import forkserver
from tests.conftest import PATIENCE_S, TIMES
from toolkit import Progressive, Settings, SingleScale, train
from toolkit.config.choices import NormMode
from toolkit.config.tables import TABLES
from toolkit.models.regularization import DropRates
from toolkit.runs import checkpoint
from toolkit.runs.checkpoint import Store
from toolkit.runs.directory import RunDirectory
from toolkit.runs.progress import Progress
from toolkit.strategies.base import Budget, Phase
from toolkit.training import run as running
from toolkit.training import session
from toolkit.training.train_state import TrainState

WORKER = Path(__file__).with_name("resumable.py")
REGULARIZED = "progressive-regularized" + AUGMENTED  # killed within its first phase
CHOSEN = {kind: next(name for name, s in EXAMPLES.items() if type(s).name == kind) for kind in TABLES["strategy"]}
CHOSEN = {
    **{kind + AUGMENTED: name + AUGMENTED for kind, name in CHOSEN.items()},
    "single": CHOSEN["single"],
    "phased": "phased",
    "head-first": "head-first-simultaneous" + AUGMENTED,
    "head-first-and-finish": "head-first-finish" + AUGMENTED,
    "progressive-regularized": REGULARIZED,
    "finish": "finish-simultaneous" + AUGMENTED,
}


@dataclass(frozen=True)
class Killed:
    """An example's name, its uninterrupted run, and another that was killed."""

    example: str
    whole: Path
    killed: Path

    def go_on(self, output: Path) -> Path:
        """The same training again, on a copy of what the killed one left behind."""
        shutil.copytree(self.killed, output)
        train(settings(self.example, output), strategy(self.example))
        return output


def delivered(output: Path) -> list[dict[str, Any]]:
    """Whole lines only: a killed process may leave half of one."""
    text = (output / "samples.jsonl").read_text() if (output / "samples.jsonl").exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def phases(example: str) -> tuple[Phase, ...]:
    return strategy(example).phases(Budget(EPOCHS, 8 * STEPS_PER_EPOCH, 8))


def last(example: str) -> int:
    return sum(phase.steps for phase in phases(example))


def kill_within_second_epoch(example: str, output: Path) -> None:
    process = forkserver.Popen([sys.executable, str(WORKER), example, str(output)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        first = phases(example)[0]
        while len(delivered(output)) < first.steps // first.epochs + STEPS_PER_EPOCH // 2:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL


USUAL = "single"  # the one that `make test` kills
PARAMS = [pytest.param(name, id=kind, marks=[pytest.mark.slow] * (kind != USUAL)) for kind, name in CHOSEN.items()]


@pytest.fixture(scope="module", params=PARAMS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    folder = tmp_path_factory.mktemp("resume")
    case = Killed(request.param, folder / "whole", folder / "killed")
    train(settings(case.example, case.whole), strategy(case.example))
    kill_within_second_epoch(case.example, case.killed)
    return case


one_strategy = pytest.mark.parametrize("case", [CHOSEN["single"]], ids=["single"], indirect=True)


def final_tensors(output: Path) -> dict[str, torch.Tensor]:
    """Weights, buffers and optimizer state of the last checkpoint, and the weights of the best model."""
    folder = Store(output / "checkpoints").committed()[-1]
    files = [folder / "model.safetensors", folder / "optimizer.safetensors", output / "best" / "model.safetensors"]
    return {f"{file.parent.name}/{file.name}: {name}": t for file in files for name, t in load_file(file).items()}


def different(first: Path, second: Path) -> list[str]:
    """Names of the final tensors that are not the same, bit for bit."""
    mine, theirs = final_tensors(first), final_tensors(second)
    assert mine.keys() == theirs.keys()
    return [name for name, tensor in mine.items() if not torch.equal(tensor, theirs[name])]


def results(output: Path) -> list[dict[str, Any]]:
    """The rows of metrics.csv without the columns that tell times."""
    return [{k: v for k, v in row.columns().items() if k not in TIMES} for row in RunDirectory(output).metrics()]


def test_a_run_killed_between_two_checkpoints_goes_on_to_the_same_end(
    case: Killed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    newest = Store(case.killed / "checkpoints").committed()[-1]
    committed = int(newest.name.removeprefix("step-"))
    lost = [entry["step"] for entry in delivered(case.killed) if entry["step"] >= committed]
    assert committed % STEPS_PER_EPOCH == 0
    assert 0 < committed < last(case.example)
    assert lost  # steps after the checkpoint were taken, and are to be repeated
    assert RunDirectory(case.killed).exit_reason() is None

    resumed = case.go_on(tmp_path / "resumed")

    assert f"continuing from {resumed / 'checkpoints' / newest.name}" in capsys.readouterr().out
    assert different(resumed, case.whole) == []
    assert delivered(resumed) == delivered(case.whole)
    assert [entry["step"] for entry in delivered(resumed)] == list(range(last(case.example)))
    assert results(resumed) == results(case.whole)
    summaries = [RunDirectory(output).summary() for output in (resumed, case.whole)]
    for figure in ("exit_reason", "val", "test", "best_epoch", "best_top1", "steps", "images_seen"):
        assert summaries[0][figure] == summaries[1][figure]


@one_strategy
def test_a_resumed_run_ends_elsewhere_when_nothing_but_the_progress_is_loaded(
    case: Killed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The control: the comparison above can fail."""

    def progress_only(start: Path, state: TrainState, *_: object) -> None:
        state.progress.become(Progress(**checkpoint.load(start)["trainer.json"]["progress"]))

    monkeypatch.setattr(session, "restore", progress_only)
    resumed = case.go_on(tmp_path / "resumed")
    assert delivered(resumed) == delivered(case.whole)
    assert len(different(resumed, case.whole)) > len(final_tensors(resumed)) / 2


@one_strategy
def test_a_resumed_run_ends_elsewhere_when_its_generators_are_not_seeded(
    case: Killed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The control: dropout draws from a generator that starts anew for each step."""
    monkeypatch.setattr(running, "seed_generators", lambda *key: None)
    assert different(case.go_on(tmp_path / "resumed"), case.whole)


@pytest.mark.slow
@pytest.mark.parametrize("case", [REGULARIZED], ids=["progressive-regularized"], indirect=True)
def test_a_resumed_run_ends_elsewhere_when_dropout_is_not_scaled(
    case: Killed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The control: a checkpoint holds no rates, so a resume within a phase must set them."""
    monkeypatch.setattr(DropRates, "scale", lambda rates, share: None)
    assert different(case.go_on(tmp_path / "resumed"), case.whole)


@one_strategy
def test_a_finished_run_is_left_as_it_is_when_started_again(case: Killed, capsys: pytest.CaptureFixture[str]):
    files = {path: path.read_bytes() for path in case.whole.rglob("*") if path.is_file()}
    train(settings(case.example, case.whole), strategy(case.example))
    assert "this run is finished (test top-1 " in capsys.readouterr().out
    assert {path: path.read_bytes() for path in case.whole.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize(
    ("mode", "old", "epochs", "told"),
    [
        ("full", True, 1, ["step 2: normalization of new scales starts from the nearest trained one now"]),
        ("full", False, 1, []),
        ("full", True, 2, []),  # the second scale has begun by the old rule
        ("off", True, 1, []),
    ],
)
def test_a_run_of_an_earlier_version_says_so_when_new_scales_start_otherwise_now(
    mode: NormMode, old: bool, epochs: int, told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    chosen = Settings(
        synthetic_size=32,
        synthetic_count=40,
        batch_size=16,
        epochs=3,
        arch="test_resnet",
        num_workers=0,
        log_with="none",
        output_dir=tmp_path / "run",
    )
    progressive = Progressive((16, 24), (1,), norm_per_scale=mode)
    train(chosen, progressive)
    (tmp_path / "run" / "summary.json").unlink()
    for folder in Store(tmp_path / "run" / "checkpoints").committed()[epochs:]:
        shutil.rmtree(folder)
    if old:
        (folder,) = Store(tmp_path / "run" / "checkpoints").committed()[epochs - 1 :]
        forget(folder, "inherits_norms")
    assert train(chosen, progressive)["inexact_resumes"] == told
    assert ("resume    not bit-exact: normalization of new scales" in capsys.readouterr().out) == bool(told)


def forget(folder: Path, entry: str) -> None:
    """Make a checkpoint one of an earlier version, whose manifest had no such entry."""
    manifest = folder / checkpoint.MANIFEST
    entries = json.loads(manifest.read_text())
    del entries[entry]
    manifest.write_text(json.dumps(entries))
    (folder / checkpoint.COMMITTED).write_text(f"{hashlib.sha256(manifest.read_bytes()).hexdigest()}\n")


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_run_of_an_earlier_version_is_told_to_be_inexact_if_it_draws_random_numbers(tmp_path: Path, dropout: float):
    usual = {"synthetic_size": 32, "synthetic_count": 40, "batch_size": 16, "epochs": 2, "arch": "test_resnet"}
    chosen = Settings(**usual, num_workers=0, log_with="none", dropout_rate=dropout, output_dir=tmp_path / "run")
    train(chosen, SingleScale(16))
    (tmp_path / "run" / "summary.json").unlink()
    first, last = Store(tmp_path / "run" / "checkpoints").committed()
    shutil.rmtree(last)
    forget(first, "draws_by_step")
    told = ["step 2: dropout and your own code draw other random numbers now"] if dropout else []
    assert train(chosen, SingleScale(16))["inexact_resumes"] == told
