"""What the tests of own parts ask of a run: its last tensors, what it delivered, and how it goes on after a kill."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests import forkserver
from tests.conftest import PATIENCE_S, TIMES
from toolkit.runs.directory import RunDirectory


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of the last checkpoint, and the weights of the best model."""
    newest = max((run / "checkpoints").glob("step-*"))
    files = [*sorted(newest.glob("*.safetensors")), run / "best" / "model.safetensors"]
    return {f"{file.parent.name}/{file.name}: {name}": t for file in files for name, t in load_file(file).items()}


def different(first: Path, second: Path) -> list[str]:
    """Names of the tensors that are not the same, bit for bit."""
    mine, theirs = tensors(first), tensors(second)
    assert mine.keys() == theirs.keys()
    return [name for name, tensor in mine.items() if not torch.equal(tensor, theirs[name])]


def delivered(run: Path) -> list[dict[str, Any]]:
    """Whole lines of samples.jsonl, by step and rank; a killed process may leave half of one."""
    text = (run / "samples.jsonl").read_text() if (run / "samples.jsonl").exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return sorted(lines, key=lambda line: (line["step"], line.get("rank", 0)))


def results(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.csv without the columns that tell times."""
    return [{k: v for k, v in row.columns().items() if k not in TIMES} for row in RunDirectory(run).metrics()]


def cut_off(whole: Path, run: Path) -> None:
    """Copy a finished run, as a kill in its last epoch would have left it."""
    shutil.copytree(whole, run)
    shutil.rmtree(max((run / "checkpoints").glob("step-*")))
    (run / "summary.json").unlink()


def kill(script: Path, run: Path, steps: int) -> None:
    """Train by `python SCRIPT RUN` and kill it once so many steps were delivered."""
    process = forkserver.Popen([sys.executable, str(script), str(run)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while len(delivered(run)) < steps:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
