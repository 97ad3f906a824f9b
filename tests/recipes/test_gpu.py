"""What only a GPU can show; skipped without CUDA."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, TINY, Runner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _newest_model(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((folder / "checkpoints").glob("step-*"))[-1] / "model.safetensors")


@pytest.mark.parametrize("strategy", ["simultaneous", "progressive"])
def test_amp_trains_in_a_type_that_the_gpu_supports(run: Runner, tmp_path: Path, strategy: str):
    words = (*TINY, "--scales", "20,32", "--strategy", strategy, "--epochs", "2", "--amp", "--output-dir", "out")
    done = run("recipes/multiscale.py", *words)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["device"] == "cuda"
    assert summary["precision"] in ("bf16", "fp16")
    assert all(tensor.isfinite().all() for tensor in _newest_model(tmp_path / "out").values())


def test_deterministic_runs_end_with_the_same_weights_on_a_gpu(run: Runner, tmp_path: Path):
    words = (*TINY, "--scales", "20,32", "--progressive", "--epochs", "2", "--deterministic", "--resume", "never")
    for name in ("one", "two"):
        done = run("recipes/multiscale.py", *words, "--output-dir", name)
        assert done.returncode == 0, done.stderr
    one, two = (_newest_model(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_killed_deterministic_run_ends_with_the_same_bits_on_a_gpu(run: Runner, tmp_path: Path):
    """Checkpoints are copied while training goes on: what is saved must be what stood there after that step."""
    words = (*TINY, "--scales", "20,32", "--epochs", "4", "--deterministic", "--dropout-rate", "0.2")
    words = (*words, "--ema-decay", "0.9", "--save-every-steps", "3", "--record-samples", "--amp")
    assert run("recipes/multiscale.py", *words, "--output-dir", "whole").returncode == 0
    command = [sys.executable, str(ROOT / "recipes/multiscale.py"), *words, "--output-dir", "killed"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        samples = tmp_path / "killed" / "samples.jsonl"
        while not samples.exists() or samples.read_text().count("\n") < 8:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    done = run("recipes/multiscale.py", *words, "--output-dir", "killed")
    assert done.returncode == 0, done.stderr
    assert "continuing from" in done.stdout
    manifests = [
        json.loads((sorted((tmp_path / name / "checkpoints").glob("step-*"))[-1] / "MANIFEST.json").read_text())
        for name in ("whole", "killed")
    ]
    files = [{n: e["sha256"] for n, e in m["files"].items() if n != "trainer.json"} for m in manifests]
    assert files[0] == files[1]


def test_peak_memory_is_measured_for_each_scale_on_a_gpu(run: Runner):
    done = run("recipes/multiscale.py", *TINY, "--scales", "20,32", "--epochs", "2", "--benchmark")
    assert done.returncode == 0, done.stderr
    assert "peak memory GB" in done.stdout
