"""Memory that runs out: one line with size, phase and a --device-batch-size that fits, before the first epoch."""

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.conftest import PATIENCE_S, ROOT, TINY, recipe
from tests.forkserver import run_ranks
from toolkit import Settings, train
from toolkit.models.multiview import state_tensors
from toolkit.strategies import Progressive, SingleScale
from toolkit.system import host
from toolkit.system.errors import OutOfMemoryError, expected
from toolkit.training import memory
from toolkit.training.parts import make_parts
from toolkit.training.run import Run
from toolkit.training.session import open_run

GROWS = [
    "--arch",
    "test_resnet",
    "--scales",
    "32,256",
    "--progressive",
    "--epochs",
    "2",
    "--warmup-epochs",
    "0",
    "--synthetic-count",
    "60",
]
GROWS += ["--synthetic-size", "64", "--batch-size", "60", "--log-with", "none", "--no-amp"]
ABSURD = 2**50  # bytes; no machine has them


@contextlib.contextmanager
def only(more_bytes: int) -> Iterator[None]:
    """This process can take so much more memory than it has: the limit is the kernel's."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(status["VmData"].split()[0]) + more_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def settings(output: Path, **values: Any) -> Settings:
    usual = {"epochs": 4, "batch_size": 24, "num_workers": 1, "log_with": "none", "amp": False}
    return Settings(**{**usual, **values}, synthetic_size=32, synthetic_count=48, output_dir=output)


LIMITED = """
import sys
from tests.trials.test_memory import only
from toolkit.commands import train_multi, training
with only(1_100_000_000):
    code = train_multi.main(sys.argv[1:])
sys.exit(code)
"""


def limited(*words: str) -> subprocess.CompletedProcess[str]:
    """`toolkit train multi` in a process of its own, with so much memory above what it has at its start."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LIMITED, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_run_that_would_outgrow_memory_ends_before_its_first_epoch_and_goes_on_as_its_error_says(tmp_path: Path):
    """What malloc keeps within such a limit differs: the first run that leaves room for advice counts."""
    for attempt in range(5):
        words = [*GROWS, "--output-dir", str(tmp_path / f"run-{attempt}")]
        done = limited(*words)
        line = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 1, done.stderr
        assert line.startswith("error: out of memory of the host")
        assert "60 images per process and forward pass at 256 px (phase 1)" in line
        assert "Traceback" not in done.stderr
        assert "epoch   1" not in done.stdout
        assert json.loads((tmp_path / f"run-{attempt}" / "summary.json").read_text())["exit_reason"] in line
        if fitting := re.search(r"give --device-batch-size (\d+)", line):
            assert 60 % int(fitting[1]) == 0
            assert limited(*words, "--device-batch-size", fitting[1]).returncode == 0
            return
        assert "no --device-batch-size fits" in line
    raise AssertionError("it never named a batch that fits")


def everything(run: Run) -> dict[str, Tensor]:
    """All that a step changes."""
    model, accelerator, optimizer = run.state.weights.model, run.accelerator, run.state.optimizer
    learn = [parameter.requires_grad for parameter in model.parameters()]
    counts = (accelerator.step, accelerator.sync_gradients, run.state.weights.updates, len(optimizer.state))
    more = {"counts": torch.tensor(counts), "learn": torch.tensor(learn), "bad": run.state.non_finite.first_bad}
    gradients = {f"gradient {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    average = {f"average {name}": tensor for name, tensor in run.state.weights.average().items()}
    found = state_tensors(model) | average | gradients | more
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@pytest.mark.parametrize("ends_well", [True, False])
def test_the_trial_leaves_no_trace_in_weights_or_statistics(tmp_path: Path, ends_well: bool):
    values, strategy = settings(tmp_path / "run", ema_decay=0.9, dropout_rate=0.2), Progressive((16, 32))
    with open_run(*make_parts(values, strategy), "train", {}) as run:
        assert not run.finished
        before = everything(run)
        if ends_well:
            memory.try_largest_step(run)
        else:
            hook = run.state.weights.model.model.register_forward_hook(lambda *_: torch.empty(ABSURD))
            with pytest.raises(OutOfMemoryError, match=r"32 px \(phase 1\).*no --device-batch-size fits"):
                memory.try_largest_step(run)
            hook.remove()
        after = everything(run)
        assert [name for name in before.keys() | after.keys() if not torch.equal(before[name], after[name])] == []
        logits = run.state.model(torch.ones(4, 3, 32, 32))  # control: the same without its precautions
        torch.stack(logits).sum().backward()
        traces = everything(run)
        assert {"running_mean", "running_var"} <= {
            name.rpartition(".")[2] for name in before if not torch.equal(traces[name], before[name])
        }


def test_training_is_the_same_to_the_last_bit_with_the_trial_and_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tried = []
    step = memory._step
    monkeypatch.setattr(memory, "_step", lambda run, case: (tried.append(case), step(run, case)))
    weights = []
    for name in ("with", "without"):
        train(settings(tmp_path / name, record_samples=True, dropout_rate=0.2), Progressive((16, 32)))
        weights.append(load_file(next((tmp_path / name).glob("checkpoints/step-*8/model.safetensors"))))
        monkeypatch.setattr(memory, "try_largest_step", lambda run: None)
    assert [(case.sizes, case.images) for case in tried] == [((32,), 24)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("with", "without")]
    assert samples[0] == samples[1]


class Hungry(nn.Module):
    """Needs absurdly much from the `calls`-th training step on, and in evaluation if that is None."""

    def __init__(self, num_classes: int = 10, calls: int | None = None) -> None:
        super().__init__()
        self.head, self.calls, self.seen = nn.Linear(3, num_classes), calls, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += self.training
        if self.seen == self.calls or (self.calls is None and not self.training and len(x) == 10):
            torch.empty(ABSURD)
        return self.head(x.mean((2, 3)))


def test_memory_that_runs_out_later_is_one_line_with_the_step_or_the_evaluation(tmp_path: Path):
    with pytest.raises(OutOfMemoryError) as raised:
        train(settings(tmp_path / "step"), SingleScale(32), model=Hungry(calls=4))  # the trial is the first
    assert str(raised.value).startswith("out of memory of the host (another 4.5e+06 GB could not be allocated)")
    assert "at step 2 in a step of 24 images per process and forward pass at 32 px (phase 0)" in str(raised.value)
    assert "give --device-batch-size 12, which computes the same steps of 24 images in 2" in str(raised.value)
    assert json.loads((tmp_path / "step" / "summary.json").read_text())["exit_reason"] == str(raised.value)
    with pytest.raises(OutOfMemoryError) as raised:
        train(settings(tmp_path / "evaluation"), SingleScale(32), model=Hungry())
    assert "in the evaluation of" in str(raised.value)
    assert "images at 32 px (epoch 1, phase 0); give --device-batch-size 12" in str(raised.value)


RANKS = """
import resource, sys, os
sys.path.insert(0, ROOT)
from tests.conftest import recipe
from tests.trials.test_memory import only
with only(650_000_000 if os.environ["RANK"] == "1" else 2**40):
    sys.exit(recipe("multiscale")(sys.argv[1:]))
"""


@pytest.mark.slow
def test_memory_that_one_rank_lacks_ends_all_ranks_with_the_same_line(tmp_path: Path):
    script = tmp_path / "ranks.py"
    script.write_text(f"ROOT = {str(Path(__file__).parents[2])!r}\n{RANKS}")
    done = run_ranks([str(script), *GROWS, "--output-dir", str(tmp_path / "run")], timeout=PATIENCE_S)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 2
    assert len({re.sub("^.*?: ", "", line) for line in lines}) == 1
    assert "30 images per process and forward pass at 256 px (phase 1)" in lines[0]


def test_a_machine_whose_memory_is_full_refuses_instead_of_being_killed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host, "free_memory_gb", lambda: 0.2)
    swap = int(re.search(r"SwapFree: +(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    wanted = swap + 2**30
    with host.within_free_memory(), pytest.raises(RuntimeError) as raised:
        torch.empty(wanted, dtype=torch.uint8)
    assert isinstance(expected(raised.value), OutOfMemoryError)
    torch.empty(wanted, dtype=torch.uint8)  # the limit ends with the trial


def test_memory_that_the_decoded_images_will_take_is_left_to_them():
    kept_gb = host.free_memory_gb() - 0.5
    swap = int(re.search(r"SwapFree: +(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    wanted = swap + 10**9
    with host.within_free_memory(kept_gb), pytest.raises(RuntimeError, match="allocate"):
        torch.empty(wanted, dtype=torch.uint8)
    with host.within_free_memory():
        torch.empty(wanted, dtype=torch.uint8)  # control


def test_every_way_to_say_that_memory_ran_out_becomes_the_same_kind_of_line():
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(ABSURD, np.uint8)
    others = [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        RuntimeError("Caught _ArrayMemoryError in DataLoader worker process 0.\nOriginal Traceback ..."),
    ]
    found = [expected(error) for error in (of_numpy.value, *others)]
    assert [type(error) for error in found] == [OutOfMemoryError] * 7
    assert "another 20.00 GiB" in str(found[2])
    assert expected(RuntimeError("shape mismatch")) is None  # control


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_would_be_too_small_is_noticed_before_the_first_epoch(tmp_path: Path):
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(600_000_000 / total)
    try:
        values = settings(tmp_path / "run", batch_size=48, epochs=2)
        with pytest.raises(OutOfMemoryError, match=r"of the device.*1024 px \(phase 1\)") as raised:
            train(values, Progressive((32, 1024)))
        fitting = re.search(r"--device-batch-size (\d+)", str(raised.value))
        assert fitting is not None
        train(values.model_copy(update={"device_batch_size": int(fitting[1])}), Progressive((32, 1024)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_where_no_step_fits_at_all_the_run_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A thread that is started without memory never says that it runs, and its starter waits for ever."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "10000000")  # a ten-millionth of the memory for each
    monkeypatch.chdir(tmp_path)
    assert recipe("single_scale")([*TINY, "--img-size", "32", "--epochs", "1"]) == 1
    assert "no --device-batch-size fits" in capsys.readouterr().err
