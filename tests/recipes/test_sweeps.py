"""The sweeps of docs/sweeps: what wandb's agent makes of them is understood. Offline."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ACCELERATE, ROOT, recipe


def trial(file: Path, **chosen: Any) -> tuple[dict[str, Any], list[str]]:
    """A sweep, and the command of a trial as wandb's agent makes it: the first, but for what is chosen."""
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load(file.read_text())
    values = {
        name: {"value": chosen.get(name, space["values"][0] if "values" in space else space["min"])}
        for name, space in sweep["parameters"].items()
    }
    words = {**utils.create_sweep_command_args({"args": values}), "program": [sweep["program"]]}
    command = [str(word) for word in utils.create_sweep_command(list(sweep["command"]))]
    return sweep, [text for word in command for text in (words[word[2:-1]] if word.startswith("${") else [word])]


SWEEPS = sorted((ROOT / "docs/sweeps").glob("*.yaml"))


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_a_sweep_s_trial_goes_through_accelerate_launch_when_an_agent_starts_it(file: Path):
    sweep, command = trial(file)
    assert {*sweep} <= {"program", "method", "metric", "parameters", "command", "early_terminate", "run_cap"}
    assert sweep["method"] in ("bayes", "grid", "random")
    assert sweep["metric"] == {"name": "quality/best_top1", "goal": "maximize"}
    assert file.name in (ROOT / "docs/sweeps.md").read_text()
    assert command[:2] == ["bash", "-c"]
    assert "accelerate launch --quiet" in command[2]
    assert (ROOT / command[3]).is_file()
    assert all(f"--{name}" in " ".join(command[4:]) for name in sweep["parameters"])


@pytest.mark.slow
def test_a_sweep_s_trial_is_understood_when_it_is_really_started(tmp_path: Path):
    _, command = trial(ROOT / "docs/sweeps/learning_rate.yaml")
    path = f"{Path(ACCELERATE[0]).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "WANDB_RUN_ID": "abc123"}
    command[3] = str(ROOT / command[3])
    command += ["--dry-run", "--synthetic-count", "120"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "learning rate 0.0002" in done.stdout + done.stderr


@pytest.mark.parametrize("amp", [True, False])
def test_a_sweep_tries_a_switch_on_and_off_when_the_launcher_would_choose_else(
    amp: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    _, command = trial(ROOT / "docs/sweeps/augmentation.yaml", amp=amp)
    command[2] = command[2].replace('exec accelerate launch --quiet "$0"', r"printf '%s\n'")  # what the recipe is given
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert recipe("single_scale")([*words, "--dry-run", "--synthetic-count", "120"]) == 0
    assert f"({'--amp' if amp else '--no-amp'})" in capsys.readouterr().out
