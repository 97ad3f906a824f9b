"""A strategy and a schedule from a file beside the data: trained by their names, killed, continued, opened again."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import forkserver
from tests.conftest import ROOT, TORCHRUN, recipe

OWN = Path(__file__).with_name("own_strategy.py")
SCRIPT = str(ROOT / "recipes" / "multiscale.py")
TINY = ("--synthetic-count", "80", "--synthetic-size", "24", "--batch-size", "8", "--epochs", "2", "--log-with", "none")
NAMED = ("--import", "mine", "--strategy", "mine:Alternating", "--strategy-kwargs", "small=16", "large=24")
NAMED += ("--scheduler", "steps", "--scheduler-kwargs", "drops=1", "--warmup-epochs", "0")


def process(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return forkserver.run([*words], cwd=cwd)


def evaluate(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return process(sys.executable, str(ROOT / "recipes" / "evaluate.py"), "run", *words, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run was trained from a shell; importing the module leaves a mark."""
    folder = tmp_path_factory.mktemp("own")
    mark = "from pathlib import Path\nPath('imported').touch()\n"
    (folder / "mine.py").write_text(OWN.read_text() + mark)
    done = process(sys.executable, SCRIPT, *TINY, *NAMED, "--output-dir", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_run_records_classes_and_fields(folder: Path):
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert (config["strategy"], config["small"], config["large"]) == ("mine:Alternating", 16, 24)
    assert (config["scheduler"], config["scheduler_kwargs"]) == ("mine:Steps", {"drops": 1})
    rates = [line.split(",") for line in (folder / "run" / "metrics.csv").read_text().splitlines()]
    lr = rates[0].index("lr")
    assert float(rates[2][lr]) == pytest.approx(0.1 * float(rates[1][lr]))


def test_opening_the_run_imports_nothing_that_only_the_run_names(folder: Path):
    (folder / "imported").unlink(missing_ok=True)
    done = evaluate(folder)
    assert done.returncode == 2
    assert done.stderr == (
        "error: --strategy mine:Alternating: the module is not imported: --import mine allows that\n"
    )
    assert not (folder / "imported").exists()
    assert evaluate(folder, "--import", "mine").returncode == 0
    assert (folder / "imported").exists()  # control


def test_a_registered_name_and_the_class_are_the_same_run(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.copy(folder / "mine.py", tmp_path)
    named = [word if word != "steps" else "mine:Steps" for word in NAMED]
    done = process(sys.executable, SCRIPT, *TINY, *named, "--output-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "this run is finished" in done.stdout


def test_a_config_with_own_fields_is_repeated(folder: Path):
    words = (SCRIPT, "--config", "run/config.yaml", "--output-dir", "again")
    assert "--import mine allows that" in process(sys.executable, *words, cwd=folder).stderr
    done = process(sys.executable, *words, "--import", "mine", cwd=folder)
    assert done.returncode == 0, done.stderr
    first, again = (json.loads((folder / name / "summary.json").read_text()) for name in ("run", "again"))
    assert first["val"] == again["val"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(sys.executable,), TORCHRUN], ids=["alone", "two processes"])
def test_killed_and_continued_it_ends_bit_for_bit_alike(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: tuple[str, ...]
):
    shutil.copy(folder / "mine.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    trial = ["--steps", "15", "--kills", "1", "--save-every-steps", "5", "--"]
    task = ("--loss", "bce", "--class-weights", "inverse", "--select-by", "loss")
    command = [word for word in (*launcher, SCRIPT, *TINY, *NAMED, *task) if word not in ("--log-with", "none")]
    assert recipe("verify_resume")([*trial, *command]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--import", "nothing"), "--import nothing: cannot be imported: ModuleNotFoundError"),
        (("--import", "broken"), "--import broken: cannot be imported: ZeroDivisionError: division by zero"),
        (("--import", "mine", "--scheduler", "stps"), "--scheduler stps: must be one of .*; did you mean steps"),
        (
            ("--import", "mine", "--scheduler", "mine:Stps"),
            "--scheduler mine:Stps: mine has no Stps; did you mean Steps",
        ),
        (("--import", "mine", "--scheduler", "mine:Alternating"), "not a subclass of toolkit.Schedule"),
        (("--import", "mine", "--scheduler", "steps", "--scheduler-kwargs", "floor=1"), "do not fit steps: .*floor"),
        (("--import", "mine", "--strategy", "mine:Alternating"), "missing 2 required positional arguments"),
        ((*NAMED, "--strategy-kwargs", "big=24"), "--strategy-kwargs big: .* has no such field"),
        (("--task", "mine:Tsk"), "--task mine:Tsk: mine has no Tsk"),
    ],
)
def test_what_cannot_be_found_is_named_before_anything_is_written(tmp_path: Path, words: tuple[str, ...], told: str):
    shutil.copy(OWN, tmp_path / "mine.py")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    done = process(sys.executable, SCRIPT, *TINY, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.search(told, done.stderr), done.stderr
    assert not (tmp_path / "runs").exists()
