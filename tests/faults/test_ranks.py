"""Several processes: one is killed, one cannot write, and another number of them goes on."""

import json
import os
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from victim import IMAGES, LAST, SAVE_EVERY, Fault, Run, newest, outcome, slow_disk, start, start_two

from tests.conftest import ALL, PATIENCE_S, ROOT, SLOW, TORCHRUN
from tests.forkserver import run_ranks
from toolkit.runs.directory import RunDirectory

WORKER = str(Path(__file__).with_name("two_ranks.py"))
# float32, SGD, no dropout, a model without BatchNorm: only the order of sums differs between numbers of processes.
EXACT = {"arch": "test_vit", "optimizer": "sgd", "learning_rate": 0.01, "dropout_rate": 0.0}
TOLERANCE = 1e-5  # of the largest difference of a weight
AT_MOST_S = 30  # a hang would take the time limit of the launcher or of the backend


def start_several(
    count: int, run: Run, fault: Fault, rank: int, *words: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Train with several processes, the fault in one of them."""
    told = [json.dumps(word) for word in ({**asdict(run), "output": str(run.output)}, asdict(fault), rank)]
    if not env:
        return run_ranks([WORKER, *told, *words], count, timeout=PATIENCE_S)
    command = [*TORCHRUN[:-1], str(count), WORKER, *told, *words]
    return subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def check_all_gone(run: Run, noted: str, rank: int) -> None:
    """That the launcher has just ended, in time after what a rank noted last, its fault; and nobody is left behind."""
    note = run.output.with_name(f"{run.output.name}.notes-{rank}") / noted
    assert note.read_text()
    assert time.time() - note.stat().st_mtime < AT_MOST_S
    left = [process.info for process in psutil.process_iter(["pid", "cmdline"])]
    assert not [entry for entry in left if str(run.output) in " ".join(entry["cmdline"] or [])]


def in_order(found: dict[str, Any]) -> dict[str, Any]:
    """An outcome whose samples are ordered: several processes write them."""
    lines = [json.loads(line) for line in found["samples"].splitlines()]
    return {**found, "samples": sorted(lines, key=lambda line: (line["step"], line["rank"]))}


def ids(output: Path) -> list[list[int]]:
    """The images of each step, of all processes together."""
    steps: dict[int, list[int]] = {}
    lines = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    for line in sorted(lines, key=lambda line: (line["step"], line["rank"])):
        steps.setdefault(line["step"], []).extend(line["ids"])
    return [steps[step] for step in range(len(steps))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two processes, not interrupted."""
    run = Run("simultaneous", tmp_path_factory.mktemp("ranks") / "whole")
    assert [ended.code for ended in start_two(run)] == [0, 0]
    return run


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1] if ALL else [1])
def test_two_processes_end_alike_when_one_was_killed(whole: Run, tmp_path: Path, rank: int):
    run = Run(whole.strategy, tmp_path / "killed")
    done = start_several(2, run, Fault("batch", 2 * SAVE_EVERY + 3), rank)
    assert done.returncode != 0
    if rank == 1:
        check_all_gone(run, "steps", 1)
    assert newest(run.output) == 2 * SAVE_EVERY
    first, second = start_two(run)
    assert (first.code, second.code) == (0, 0), first.text
    assert first.started_from == 2 * SAVE_EVERY
    assert in_order(outcome(run.output)) == in_order(outcome(whole.output))


@SLOW
@pytest.mark.parametrize("control", [False, True])
def test_three_processes_end_alike_when_one_was_killed(tmp_path: Path, control: bool):
    """More than two numbers have several sums: the order must be the one of the run that was not interrupted."""
    words = ["unsettled"] if control else []
    short = (("batch_size", 12), ("device_batch_size", 2), ("epochs", 1))  # with accumulation
    whole, killed = Run("single", tmp_path / "whole", short), Run("single", tmp_path / "killed", short)
    done = start_several(3, whole, Fault(), 0, *words)
    assert done.returncode == 0, done.stderr
    assert start_several(3, killed, Fault("batch", 2 * SAVE_EVERY + 3), 1, *words).returncode != 0
    assert newest(killed.output) == SAVE_EVERY
    done = start_several(3, killed, Fault(), 0, *words)
    assert done.returncode == 0, done.stderr
    assert f"continuing from {killed.output / 'checkpoints'}/step-{SAVE_EVERY:09d}" in done.stdout
    last = newest(whole.output)
    weights = [load_file(run.output / f"checkpoints/step-{last:09d}/model.safetensors") for run in (whole, killed)]
    apart = [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]
    assert bool(apart) == control


@pytest.mark.slow
@pytest.mark.parametrize("summary_s", [0, 10] if ALL else [0])
def test_every_process_reports_it_and_nothing_commits_when_it_cannot_be_written(tmp_path: Path, summary_s: int):
    """They leave together: the launcher does not signal the one whose summary takes longer."""
    (tmp_path / "sitecustomize.py").write_text(slow_disk("summary.json", summary_s))
    run = Run("simultaneous", tmp_path / "full")
    second = f"write checkpoints/.tmp-step-{2 * SAVE_EVERY:09d}/model.safetensors"
    done = start_several(2, run, Fault("operation", second, "ENOSPC"), 0, PYTHONPATH=f"{tmp_path}:{ROOT}")
    check_all_gone(run, "operations", 0)
    assert "SIGTERM: " not in done.stderr
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert sorted(line.split(":")[0] for line in errors) == ["error", "error on rank 1"]
    for line in errors:
        assert "model.safetensors" in line
        assert "No space left" in line
    assert newest(run.output) == SAVE_EVERY
    assert "No space left" in json.loads((run.output / "summary.json").read_text())["exit_reason"]
    assert [path.name for path in (run.output / "checkpoints").iterdir()] == [f"step-{SAVE_EVERY:09d}"]


@SLOW
def test_every_process_reports_it_at_the_next_save_when_the_writing_thread_failed(tmp_path: Path):
    run = Run("simultaneous", tmp_path / "full")
    second = f"write checkpoints/.tmp-step-{2 * SAVE_EVERY:09d}/model.safetensors"
    done = start_several(2, run, Fault("operation", second, "ENOSPC"), 0)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert sorted(line.split(":")[0] for line in errors) == ["error", "error on rank 1"]
    assert all(f"step {2 * SAVE_EVERY} could not be written" in line for line in errors)
    assert newest(run.output) == SAVE_EVERY


@SLOW
def test_the_same_images_and_nearly_the_same_weights_when_one_then_two_then_one_process_train(tmp_path: Path):
    alone = Run("progressive-ramp", tmp_path / "alone", tuple(EXACT.items()))
    assert start(alone).code == 0
    run = Run(alone.strategy, tmp_path / "elastic", alone.settings)
    assert start(run, Fault("batch", 13)).code == -9
    assert start_several(2, run, Fault("batch", 14), 0).returncode != 0
    middle = newest(run.output)
    assert 2 * SAVE_EVERY < middle < LAST
    ended = start(run)
    assert (ended.code, ended.started_from) == (0, middle), ended.text
    assert ids(run.output) == ids(alone.output)
    assert len(ids(run.output)) == LAST
    assert len({i for step in ids(run.output)[: LAST // 3] for i in step}) < IMAGES
    weights = [load_file(r.output / f"checkpoints/step-{LAST:09d}/model.safetensors") for r in (alone, run)]
    apart = max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0])
    assert 0 < apart < TOLERANCE
    inexact = json.loads((run.output / "summary.json").read_text())["inexact_resumes"]
    assert [line.split(": ")[1].split(",")[0] for line in inexact] == ["processes 1 -> 2", "processes 2 -> 1"]


@pytest.mark.slow
def test_an_epoch_that_was_trained_but_not_evaluated_keeps_its_figures_when_two_processes_go_on(tmp_path: Path):
    alone = Run("progressive-ramp", tmp_path / "alone", tuple(EXACT.items()))
    assert start(alone).code == 0
    run = Run(alone.strategy, tmp_path / "stopped", alone.settings)
    assert start(run, Fault("evaluation", 1, "stop")).code == 75
    assert newest(run.output) == LAST // 3
    assert RunDirectory(run.output).metrics() == []
    assert [ended.code for ended in start_two(run)] == [0, 0]
    rows = zip(RunDirectory(run.output).metrics(), RunDirectory(alone.output).metrics(), strict=True)
    for found, expected in rows:
        for name in ("train_loss", "gradient_norm", "32px/loss"):
            assert found.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-4)
