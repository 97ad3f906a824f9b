"""What must stop a run, and what it may leave behind: processes that do not know of each other, and NaN."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from poisoned import Poisoned, settings, write_manifest
from safetensors.torch import load_file

from tests.conftest import PATIENCE_S, ROOT, SLOW, TINY, Runner
from tests.forkserver import run_ranks
from toolkit import NonFiniteError, train
from toolkit.data.loading.sampler import Sampler
from toolkit.training.monitor import NonFiniteMonitor

WORKER = Path(__file__).with_name("poisoned.py")
IMAGES, BATCH = 100, 40  # 2 steps an epoch; 20 images are left out of each


def test_processes_that_do_not_know_of_each_other_are_refused(run: Runner, tmp_path: Path):
    """A launcher that tells the number of processes but no local rank, on a machine that is said to have a GPU."""
    (tmp_path / "sitecustomize.py").write_text("import toolkit.training.device as d; d.has_accelerator = lambda: True")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = run("recipes/single_scale.py", *TINY, WORLD_SIZE="2", RANK="0", PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the launcher started 2 processes, but each sees only itself (split brain)")
    assert done.stderr.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir() if "cache" not in entry.name] == ["sitecustomize.py"]


@pytest.fixture(scope="module")
def poisoned_sample() -> int:
    """An image that the first epoch leaves out and the second one delivers, to rank 1: a checkpoint comes before it."""
    sampler = Sampler(IMAGES, 0, Poisoned(32))
    left_out = sampler.permutation(0)[80:]
    of_rank_1 = sampler.permutation(1)[:80].reshape(2, 2, 20)[:, 1]
    return int(np.intersect1d(left_out, of_rank_1)[0])


@pytest.fixture(scope="module")
def data(cache: Path, tmp_path_factory: pytest.TempPathFactory, poisoned_sample: int) -> Path:
    """The built-in images by manifest, with an eleventh class that has one image in train and one in val."""
    folder = tmp_path_factory.mktemp("manifest")
    write_manifest(folder, IMAGES, {poisoned_sample})
    return folder


def delivered(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


def not_finite(output: Path) -> list[str]:
    """The committed tensors of a run that hold anything but finite numbers."""
    files = [*output.glob("checkpoints/step-*/*.safetensors"), *output.glob("best/*.safetensors")]
    assert {file.name for file in files} == {"model.safetensors", "optimizer.safetensors"}
    return [
        f"{file}: {name}"
        for file in files
        for name, tensor in load_file(file).items()
        if not torch.isfinite(tensor).all()
    ]


def check_stopped(output: Path, message: str, sample: int) -> set[int]:
    """The message and what is left of the run; returns the ranks that met the sample."""
    met = [entry for entry in delivered(output) if sample in entry["ids"]]
    step = met[0]["step"]
    assert step in (2, 3)  # of the second epoch
    ids = {i for entry in delivered(output) if entry["step"] == step for i in entry["ids"]}
    head, _, tail = message.partition("samples ")
    assert f"at step {step} (epoch 2)" in head
    assert set(map(int, tail.split(";")[0].split())) == ids
    assert len(ids) == BATCH
    assert max(entry["step"] for entry in delivered(output)) == step
    assert json.loads((output / "summary.json").read_text())["exit_reason"] == message
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-000000002"]
    assert not_finite(output) == []
    return {entry["rank"] for entry in met}


@pytest.mark.parametrize("where", ["loss", pytest.param("both", marks=SLOW)])
def test_nan_at_one_image_stops_both_processes_at_the_same_step(
    data: Path, tmp_path: Path, poisoned_sample: int, where: str
):
    output = tmp_path / "run"
    done = run_ranks([str(WORKER), str(data), str(output), where], timeout=PATIENCE_S)
    assert done.returncode == 1
    notes = [tmp_path / f"run.rank-{rank}.txt" for rank in (0, 1)]
    assert [note.exists() for note in notes] == [True, True], done.stderr[-3000:]
    messages = [note.read_text() for note in notes]
    assert messages[0] == messages[1]
    assert f"error: {messages[0]}\n" in done.stderr
    assert check_stopped(output, messages[0], poisoned_sample) == {1}  # rank 0 never met it


@pytest.mark.parametrize("device_batch_size", [None, 10])
@pytest.mark.parametrize("where", ["both", "loss", "gradient"])
def test_nan_at_one_image_stops_one_process(
    data: Path, tmp_path: Path, poisoned_sample: int, where: str, device_batch_size: int | None
):
    output = tmp_path / "run"
    with pytest.raises(NonFiniteError) as raised:
        train(settings(data, output, device_batch_size), Poisoned(32, where=where))
    assert check_stopped(output, str(raised.value), poisoned_sample) == {0}


def test_the_same_run_ends_well_without_the_nan(data: Path, tmp_path: Path, poisoned_sample: int):
    output = tmp_path / "run"
    assert train(settings(data, output), Poisoned(32, where="nowhere"))["exit_reason"] == "done"
    assert poisoned_sample in {i for entry in delivered(output) for i in entry["ids"]}
    assert not_finite(output) == []


def test_nan_is_committed_when_nobody_watches(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The control: the watch is what keeps the checkpoints clean."""
    monkeypatch.setattr(NonFiniteMonitor, "see_loss", lambda watch, step, loss: None)
    output = tmp_path / "run"
    train(settings(data, output), Poisoned(32))
    assert any("checkpoints" in name for name in not_finite(output))
