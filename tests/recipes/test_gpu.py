"""What only a GPU can show; skipped without CUDA."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TINY, Runner

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


def test_peak_memory_is_measured_for_each_scale_on_a_gpu(run: Runner):
    done = run("recipes/multiscale.py", *TINY, "--scales", "20,32", "--epochs", "2", "--benchmark")
    assert done.returncode == 0, done.stderr
    assert "peak memory GB" in done.stdout
