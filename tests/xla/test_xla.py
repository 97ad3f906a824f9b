"""Training by way of XLA, as on a TPU, with its compiler for CPUs: `make test-xla` installs what it needs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE_S, ROOT

pytest.importorskip("torch_xla", reason="`make test-xla` installs it")
pytestmark = pytest.mark.slow

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile, not to compute
ON_XLA = {**os.environ, "PJRT_DEVICE": "CPU", "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
ON_CPU = {name: value for name, value in ON_XLA.items() if name != "PJRT_DEVICE"} | {"USE_TORCH_XLA": "false"}
SMALL = ("--data-root", "synthetic", "--synthetic-count", "120", "--synthetic-size", "64", "--batch-size", "16")
QUIET = ("--arch", "test_resnet", "--log-with", "none")
ONE, TWO = ("train", "single", "--img-size", "32"), ("train", "multi", "--scales", "32", "48")
STEPS = 7  # of an epoch


def toolkit(*words: str, env: dict[str, str] = ON_XLA) -> str:
    """What a command prints, and writes to its log; it must end well."""
    command = [sys.executable, "-m", "toolkit", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as stream:
        return [*csv.DictReader(stream)]


@pytest.mark.parametrize("strategy", [ONE, TWO], ids=["one size", "two sizes"])
def test_a_run_plans_trains_evaluates_and_predicts(tmp_path: Path, strategy: tuple[str, ...]):
    run = tmp_path / "run"
    words = (*strategy, *SMALL, *QUIET, "--epochs", "2", "--gradient-clip", "0.1", "--output-dir", str(run))
    assert "machine   xla, 1 process(es)" in toolkit(*words, "--dry-run")
    assert not run.exists()
    config = ROOT / "accelerate_configs/gcp_tpu.yaml"
    toolkit("launch", "--config_file", str(config), *words)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["exit_reason"], summary["device"]) == ("done", "xla")
    on_cpu = tmp_path / "cpu"
    toolkit(*words[:-1], str(on_cpu), env=ON_CPU)
    for here, there in zip(rows(run), rows(on_cpu), strict=True):
        assert float(here["clipped_share"]) == float(there["clipped_share"]) > 0
        assert float(here["train_loss"]) == pytest.approx(float(there["train_loss"]), rel=1e-2)
    assert "top-1" in toolkit("evaluate", str(run))
    image = next((tmp_path / "run/evaluation").rglob("*.jpg"))
    assert image.name in toolkit("predict", str(run), str(image))


@pytest.mark.parametrize("strategy", [ONE, TWO], ids=["one size", "two sizes"])
def test_a_killed_run_continues_bit_for_bit(tmp_path: Path, strategy: tuple[str, ...]):
    drawing = ("--dropout-rate", "0.1", "--ema-decay", "0.9")  # by the generator of the device
    command = ("toolkit", *strategy, *SMALL, *QUIET, *drawing, "--epochs", "3")
    trial = ("--steps", "14", "--kills", "1", "--save-every-steps", "5", "--output-dir", str(tmp_path / "trial"))
    env = {**ON_XLA, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert "verdict: equal" in toolkit("verify-resume", *trial, "--", *command, env=env)


def test_an_exit_code_is_the_commands_when_accelerate_calls_it_as_a_function():
    config = str(ROOT / "accelerate_configs/gcp_tpu.yaml")
    command = [sys.executable, "-m", "toolkit", "launch", "--config_file", config, *ONE, "--learning-rate", "-1"]
    done = subprocess.run(command, env=ON_XLA, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --learning-rate")


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
    steps = [line.split() for line in log.read_text().splitlines()]
    assert len(steps) == 6 * STEPS
    for sizes in {sizes for _, sizes, _ in steps}:
        counts = [int(count) for _, now, count in steps if now == sizes]
        warm = counts[2 * STEPS :]  # later ones compile only what an evaluation asks for the first time
        in_epochs = [{*warm[first : first + STEPS][1:]} for first in range(0, len(warm), STEPS)]
        assert counts[0] < counts[STEPS]  # control: the counter moves
        assert all(len(counts) == 1 for counts in in_epochs), counts
