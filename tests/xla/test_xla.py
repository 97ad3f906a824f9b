"""Training by way of XLA, as on a TPU, with its compiler for CPUs: `make test-xla` installs what it needs."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PATIENCE_S, ROOT

pytest.importorskip("torch_xla", reason="`make test-xla` installs it")
pytestmark = pytest.mark.slow

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile, not to compute
ON_XLA = {**os.environ, "PJRT_DEVICE": "CPU", "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
ON_CPU = {name: value for name, value in ON_XLA.items() if name != "PJRT_DEVICE"} | {"USE_TORCH_XLA": "false"}
SMALL = ("--data-root", "synthetic", "--synthetic-count", "120", "--synthetic-size", "64", "--batch-size", "16")
# As on a TPU of one chip: XLA's compiler for CPUs has one process.
CONFIG = str(ROOT / "accelerate_configs/gcp_tpu.yaml")
LAUNCH = ("launch", "--config_file", CONFIG, "--main_process_port", "0", "--num_processes", "1")
QUIET = ("--arch", "test_resnet", "--log-with", "none")
ONE, TWO = ("train", "single", "--img-size", "32"), ("train", "multi", "--scales", "32", "48")
STEPS = 7  # of an epoch


def toolkit(*words: str, env: dict[str, str] = ON_XLA) -> str:
    """What a command prints, and writes to its log; it must end well."""
    command = [sys.executable, "-m", "toolkit", *words]
    patience_s = 3 * PATIENCE_S  # `verify-resume` trains three times
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=patience_s)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def checkpoint(run: Path, step: int) -> dict[str, bytes]:
    """What a checkpoint holds of the model and its optimizer."""
    folder = run / f"checkpoints/step-{step:09d}"
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as stream:
        return [*csv.DictReader(stream)]


@pytest.mark.parametrize("strategy", [ONE, TWO], ids=["one size", "two sizes"])
def test_a_run_plans_trains_evaluates_and_predicts(tmp_path: Path, strategy: tuple[str, ...]):
    run = tmp_path / "run"
    words = (*strategy, *SMALL, *QUIET, "--epochs", "2", "--gradient-clip", "0.1", "--output-dir", str(run))
    assert "machine   xla, 1 process(es)" in toolkit(*words, "--dry-run")
    assert not run.exists()
    toolkit(*LAUNCH, *words)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["exit_reason"], summary["device"]) == ("done", "xla")
    on_cpu = tmp_path / "cpu"
    toolkit(*words[:-1], str(on_cpu), env=ON_CPU)
    for here, there in zip(rows(run), rows(on_cpu), strict=True):
        assert float(here["clipped_share"]) == float(there["clipped_share"]) > 0
        assert float(here["train_loss"]) == pytest.approx(float(there["train_loss"]), rel=1e-2)
    assert "top-1" in toolkit(*LAUNCH, "evaluate", str(run))
    image = next((tmp_path / "run/evaluation").rglob("*.jpg"))
    assert image.name in toolkit(*LAUNCH, "predict", str(run), str(image))


@pytest.mark.parametrize("strategy", [ONE, TWO], ids=["one size", "two sizes"])
def test_a_killed_run_continues_bit_for_bit(tmp_path: Path, strategy: tuple[str, ...]):
    drawing = ("--dropout-rate", "0.1", "--ema-decay", "0.9")  # by the generator of the device
    command = ("toolkit", *strategy, *SMALL, *QUIET, *drawing, "--epochs", "3")
    trial = ("--steps", "14", "--kills", "1", "--save-every-steps", "5", "--output-dir", str(tmp_path / "trial"))
    env = {**ON_XLA, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert "verdict: equal" in toolkit("verify-resume", *trial, "--", *command, env=env)


def test_a_launched_run_saves_at_sigterm_and_continues_bit_for_bit(tmp_path: Path):
    words = (*LAUNCH, *ONE, *SMALL, *QUIET, "--dropout-rate", "0.1", "--epochs", "2", "--output-dir")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "toolkit", *words, str(run), "--save-every-steps", "3"]
    with subprocess.Popen(command, env=ON_XLA, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not (run / "checkpoints/step-000000003/COMMITTED").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.terminate()  # the launcher alone
        _, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, error
    assert error.splitlines()[-1].startswith("stopped by SIGTERM at step")
    assert json.loads((run / "summary.json").read_text())["exit_reason"] == "preempted by SIGTERM"
    toolkit(*words, str(run))
    toolkit(*words, str(tmp_path / "whole"))
    assert checkpoint(run, 2 * STEPS) == checkpoint(tmp_path / "whole", 2 * STEPS) != {}


def test_several_processes_are_refused_where_xla_has_one(tmp_path: Path):
    words = (*LAUNCH[:-1], "2", *ONE, *SMALL, *QUIET, "--output-dir", str(tmp_path / "run"))
    command = [sys.executable, "-m", "toolkit", *words]
    done = subprocess.run(command, env=ON_XLA, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert "the launcher started 2 processes, but each sees only itself" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("rank", "count"), [(0, 1), (1, 2)])
def test_a_process_takes_its_place_on_the_machine_from_its_launcher(rank: int, count: int):
    code = """
import torch_xla.runtime as runtime
from toolkit.models import xla
xla.join_host()
print(runtime.local_ordinal(), runtime.local_process_count())
"""
    env = {**ON_XLA, "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout.split() == [str(rank), str(count)]


def test_weights_stay_float32_with_amp_where_accelerate_sees_a_tpu():
    code = """
import torch
import torch_xla.runtime as runtime
from toolkit import Settings
from toolkit.training import device
of_cpu, runtime.device_type = runtime.device_type, lambda: "TPU"
accelerator = device.start(Settings(amp=True))
runtime.device_type = of_cpu
assert accelerator.mixed_precision == "bf16"
print((torch.ones(1, device=accelerator.device) + 2**-12 - 1).item())
"""
    for env, told in (({}, str(2.0**-12)), ({"XLA_USE_BF16": "1"}, "0.0")):  # control: asked for by the user
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=ON_XLA | env, capture_output=True, text=True, timeout=PATIENCE_S)
        assert (done.returncode, done.stdout.split()[-1:]) == (0, [told]), done.stderr


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("single_scale.py", ("--img-size", "32")),
        ("multiscale.py", ("--scales", "32", "48")),
        ("multiscale.py", ("--scales", "32", "48", "--strategy", "progressive")),
    ],
    ids=["one size", "two sizes", "one after the other"],
)
def test_nothing_is_compiled_once_the_sizes_are_warm(tmp_path: Path, recipe: str, words: tuple[str, ...]):
    log = tmp_path / "compiled.txt"
    command = [sys.executable, str(Path(__file__).with_name("observed.py")), str(log), str(ROOT / "recipes" / recipe)]
    command += [*words, *SMALL, *QUIET, "--epochs", "6", "--output-dir", str(tmp_path / "run")]
    done = subprocess.run(command, env=ON_XLA, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    marks = [line.split() for line in log.read_text().splitlines()]
    assert [after for _, after, _ in marks] == [*STEPS * ["step"], "epoch"] * 6
    evaluated = [{name for name in row if name.endswith("px/top1") and row[name]} for row in rows(tmp_path / "run")]
    first, seen, before = dict[str, int](), set[str](), 0
    for mark, (sizes, after, count) in enumerate(marks):
        epoch = mark // (STEPS + 1)
        warm = epoch >= first.setdefault(sizes, epoch) + 2
        if warm and not (after == "epoch" and evaluated[epoch] - seen):  # a size that is evaluated for the first time
            assert int(count) == before, (mark, marks)
        seen |= evaluated[epoch] if after == "epoch" else set()
        before = int(count)
    assert int(marks[0][2]) < before  # control: the counter moves
