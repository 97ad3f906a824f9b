"""Ray Train starts the processes, and starts them again when one is killed: the run goes on bit for bit."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_restarts import in_order, lines

from tests.conftest import PATIENCE_S, ROOT

pytest.importorskip("ray.train.torch", reason="needs Ray Train: pip install 'ray[train]'")
pytestmark = pytest.mark.slow


def trained(run: Path, *, kill: bool) -> str:
    """Train, with one worker killed in the second epoch; returns the output."""
    command = [sys.executable, str(Path(__file__).with_name("on_ray.py")), str(run), str(run.parent / "storage")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while kill and len(lines(run)) < 2 * 16:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if kill:
            workers = [found for found in psutil.process_iter() if "RayTrainWorker" in " ".join(found.cmdline())]
            assert len(workers) == 2
            workers[1].kill()
        text, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.terminate()
        process.wait()
    assert process.returncode == 0, text[-3000:]
    return text


def test_a_run_goes_on_bit_for_bit_when_ray_replaces_a_killed_worker(tmp_path: Path):
    trained(tmp_path / "whole", kill=False)
    assert "continuing from" in trained(tmp_path / "killed", kill=True)
    assert in_order(tmp_path / "killed") == in_order(tmp_path / "whole")
    weights = [(tmp_path / name / "best/model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]
