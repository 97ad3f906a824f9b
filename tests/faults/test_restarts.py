"""`--max-restarts` of a launcher: a killed worker is started again, with all others, and the run goes on exactly.

The launcher's store outlives a restart, and with it what torch wrote there: without keys of its own for each start, a
process would look for its peers where they were before.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from victim import newest

from tests.conftest import ALL, PATIENCE_S, ROOT
from tests.forkserver import run_ranks

pytestmark = pytest.mark.slow
RECIPE = str(ROOT / "recipes" / "multiscale.py")
BIN = Path(sys.executable).parent
FLAGS = [
    *("--synthetic-count", "240", "--synthetic-size", "32", "--arch", "test_vit", "--scales", "16,32"),
    *("--batch-size", "24", "--optimizer", "sgd", "--learning-rate", "0.05", "--epochs", "3", "--log-with", "none"),
    *("--record-samples", "--save-every-steps", "4", "--num-workers", "1"),
]
TWO_CPUS = str(ROOT / "accelerate_configs" / "multi_cpu.yaml")
# `--standalone` meets by c10d, with --master-addr torchrun's static rendezvous; both keep their store.
C10D = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
LAUNCHERS = {
    "c10d": C10D,
    "c10d, a store of each start": ["env", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1", *C10D],
    "static": [
        *(str(BIN / "torchrun"), "--nnodes", "1", "--nproc-per-node", "2", "--max-restarts", "2"),
        *("--master-addr", "127.0.0.1", "--master-port", "29533"),
    ],
    "toolkit launch": [
        *(sys.executable, "-m", "toolkit", "launch", "--config_file", TWO_CPUS, "--max_restarts", "2"),
        *("--main_process_port", "29534"),
    ],
}


def lines(output: Path) -> list[dict[str, Any]]:
    file = output / "samples.jsonl"
    found = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in found if line.endswith("\n")]


def in_order(output: Path) -> list[dict[str, Any]]:
    return sorted(lines(output), key=lambda line: (line["step"], line["rank"]))


def workers(launcher: int, rank: int) -> list[psutil.Process]:
    """The processes of that rank below a launcher, without their loaders."""
    found = []
    for process in psutil.Process(launcher).children():
        environment = process.environ()
        if environment.get("RANK") == str(rank) and RECIPE in process.cmdline():
            found.append(process)
    return found


def trained(words: Sequence[str], output: Path, victim: int) -> str:
    """Train, with the worker of one rank killed in the second epoch; returns the output."""

    def kill(launcher: int) -> None:
        (worker,) = workers(launcher, victim)
        worker.kill()

    return ended_well([*words, RECIPE, *FLAGS, "--output-dir", str(output)], output, kill)


def ended_well(command: Sequence[str], output: Path, disturb: Callable[[int], None] | None) -> str:
    """What a training prints that ends well; `disturb`: called with its process in the second epoch."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while disturb and len(lines(output)) < 2 * 16:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if disturb:
            disturb(process.pid)
        text, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, text[-3000:]
    return text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("restarts") / "whole"
    done = run_ranks([RECIPE, *FLAGS, "--output-dir", str(output)], timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return output


CASES = [(name, rank) for name in LAUNCHERS for rank in (0, 1)] if ALL else [("static", 0)]


@pytest.mark.parametrize(("launcher", "victim"), CASES)
def test_a_killed_worker_is_started_again_and_the_run_continues_exactly(
    whole: Path, tmp_path: Path, launcher: str, victim: int
):
    output = tmp_path / "run"
    text = trained(LAUNCHERS[launcher], output, victim)
    assert f"continuing from {output / 'checkpoints'}/step-" in text
    assert f"rank {victim} on host " in text
    assert in_order(output) == in_order(whole)
    files = [run / "checkpoints" / f"step-{newest(whole):09d}" / "MANIFEST.json" for run in (output, whole)]
    hashes = [{name: entry["sha256"] for name, entry in json.loads(f.read_text())["files"].items()} for f in files]
    assert {name: hashes[0][name] for name in hashes[0] if name != "trainer.json"} == {
        name: hashes[1][name] for name in hashes[1] if name != "trainer.json"
    }
    assert json.loads((output / "summary.json").read_text())["inexact_resumes"] == []
