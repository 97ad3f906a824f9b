"""Ray Train starts the processes, and starts them again when one is killed: the run goes on bit for bit."""

import sys
from pathlib import Path

import psutil
import pytest
from test_restarts import ended_well, in_order

pytest.importorskip("ray.train.torch", reason="needs Ray Train: pip install 'ray[train]'")
pytestmark = pytest.mark.slow


def kill_a_worker(trainer: int) -> None:
    """Ray starts its workers from a process of its own, which is no child of the trainer's any more."""
    workers = [found for found in psutil.process_iter() if "RayTrainWorker" in " ".join(found.cmdline())]
    assert len(workers) == 2
    workers[1].kill()


def test_a_run_goes_on_bit_for_bit_when_ray_replaces_a_killed_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    script = str(Path(__file__).with_name("on_ray.py"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for run, disturb in ((whole, None), (killed, kill_a_worker)):
        told = ended_well([sys.executable, script, str(run), str(tmp_path / "storage")], run, disturb)
    assert "continuing from" in told
    assert in_order(killed) == in_order(whole)
    assert (killed / "best/model.safetensors").read_bytes() == (whole / "best/model.safetensors").read_bytes()
