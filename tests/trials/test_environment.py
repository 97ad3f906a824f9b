"""What people's environments export is honored, and breaks nothing: wandb, matplotlib, no home, locales, CI systems."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, TINY, Runner, write_folders
from toolkit.runs.dashboards import on_wandb
from toolkit.runs.dashboards.base import DashboardRun

WANDB = Path(sys.executable).with_name("wandb")
RUN = (*TINY[:-2], "--img-size", "16", "--epochs", "1", "--num-workers", "0", "--output-dir", "run")
TEAM = {"PROJECT": "ours", "ENTITY": "team", "NAME": "tuesday", "RUN_GROUP": "nightly", "TAGS": "a,b", "NOTES": "why"}
NOTEBOOK = "module://matplotlib_inline.backend_inline"
UNKNOWN = "nonsense"  # refused by Matplotlib, as NOTEBOOK is where Jupyter is not installed
UNKNOWN_USER = """
import pwd
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
"""


def recorded(folder: Path) -> dict[str, Any]:
    """The record of a wandb run that was offline, by wandb's own reader."""
    (run,) = folder.glob("offline-run-*")
    done = subprocess.run([WANDB, "leet", "inspect", "--json", run], capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return next(record["run"] for record in records if record["type"] == "run")


@pytest.mark.slow
def test_the_environment_of_wandb_counts_where_no_flag_is_given(run: Runner, tmp_path: Path):
    """Empty ones are as if they were not set, and are no reason to go without wandb."""
    empty = {f"WANDB_{name}": "" for name in ("MODE", "API_KEY", "BASE_URL", "RUN_ID", "JOB_TYPE", "DIR", "DISABLED")}
    done = run("recipes/single_scale.py", *RUN, **{f"WANDB_{name}": value for name, value in TEAM.items()}, **empty)
    assert (done.returncode, done.stderr) == (0, "")
    record = recorded(tmp_path / "run" / "wandb")
    assert (record["project"], record["entity"], record["display_name"]) == ("ours", "team", "tuesday")
    assert (record["run_group"], record["tags"], record["notes"]) == ("nightly", ["a", "b"], "why")
    assert f"wandb sync --id {record['run_id']} run/wandb/offline-run-*-{record['run_id']}*` uploads it" in done.stdout


@pytest.mark.slow
def test_flags_win_over_the_environment_of_wandb(run: Runner, tmp_path: Path):
    words = (*RUN, "--wandb-project", "given", "--wandb-mode", "offline")
    team = {"WANDB_PROJECT": "ours", "WANDB_DIR": str(tmp_path / "shared")}
    (tmp_path / "shared").mkdir()
    done = run("recipes/single_scale.py", *words, **team, WANDB_MODE="disabled", WANDB_DISABLED="true")
    assert (done.returncode, done.stderr) == (0, "")
    record = recorded(tmp_path / "shared" / "wandb")
    assert (record["project"], record["display_name"]) == ("given", "run")
    assert f"{tmp_path}/shared/wandb/offline-run-*-{record['run_id']}*` uploads it later" in done.stdout


@pytest.mark.parametrize(
    ("environment", "flag", "mode"),
    [
        ({}, "auto", "auto"),
        ({"MODE": ""}, "auto", "auto"),
        ({"MODE": "disabled"}, "auto", "disabled"),
        ({"MODE": "OFFLINE"}, "auto", "offline"),
        ({"MODE": "dryrun"}, "auto", "offline"),
        ({"MODE": "run"}, "auto", "online"),
        ({"DISABLED": "true"}, "auto", "disabled"),
        ({"DISABLED": "false", "MODE": "offline"}, "auto", "offline"),
        ({"DISABLED": "1", "MODE": "offline"}, "auto", "disabled"),
        ({"DISABLED": "true", "MODE": "disabled"}, "online", "online"),
    ],
)
def test_the_mode_of_wandb_is_the_flag_then_the_environment(monkeypatch, environment, flag: str, mode: str):
    for name in ("MODE", "DISABLED"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert on_wandb._mode(DashboardRun(Path(), "id", {}, "toolkit", flag, 0, True, ())) == mode


@pytest.mark.parametrize("backend", [NOTEBOOK, UNKNOWN, "svg"])
def test_the_backend_of_a_notebook_makes_no_difference_to_what_is_drawn(backend: str):
    """One that exists is kept for whoever draws on a screen."""
    code = "import os\nfrom toolkit.system.plotting import matplotlib as m\nprint(m.get_backend(auto_select=False))"
    environment = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code + "\nprint(os.environ['MPLBACKEND'])"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["None" if backend == UNKNOWN else backend, backend]
    assert done.stderr == ""


def test_matplotlib_itself_refuses_such_a_backend():
    """The control."""
    environment = {**os.environ, "MPLBACKEND": UNKNOWN}
    assert subprocess.run([sys.executable, "-c", "import matplotlib"], env=environment, capture_output=True).returncode


@pytest.mark.slow
def test_a_container_with_an_unknown_user_and_no_home_trains(tmp_path: Path):
    """And all that such places export besides; classes, images and folders have names that ASCII lacks."""
    for name in ("hook", "tmp", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(UNKNOWN_USER)
    data = write_folders(tmp_path / "фото", {"train": 12, "val": 4, "test": 4}, ("chat é", "犬"))
    users = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "TOOLKIT_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in users}
    environment |= {"PYTHONPATH": f"{tmp_path / 'hook'}:{ROOT}", "TMPDIR": str(tmp_path / "tmp")}
    environment |= {"XDG_CACHE_HOME": "relative", "HF_HOME": "/dev/null/hf", "TORCH_HOME": "/dev/null/torch"}
    environment |= {"LC_ALL": "POSIX", "LANG": "C", "TZ": "Mars/Olympus", "COLUMNS": "0", "MPLBACKEND": UNKNOWN}
    words = ["--data-root", data, "--arch", "test_resnet", "--img-size", "16", "--epochs", "1", "--batch-size", "8"]
    command = [sys.executable, ROOT / "recipes/single_scale.py", *words, "--log-with", "none", "--output-dir", "run"]
    done = subprocess.run(
        command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = [line for line in done.stdout.splitlines() if line.startswith("cache ")]
    cache = tmp_path / "tmp" / f"toolkit-home-{os.getuid()}" / ".cache" / "toolkit"
    reason = "for no home folder can be written; --cache-dir or $TOOLKIT_CACHE sets another"
    assert said == [f"cache     {cache}, {reason}"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["run"]  # no folder called ~
    assert "犬" in (tmp_path / "work" / "run" / "report.html").read_text(encoding="utf-8")
