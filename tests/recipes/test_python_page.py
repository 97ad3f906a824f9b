"""docs/python.md as a reader does it: both files in one folder, the script on one process and on two, then a shell."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forkserver
from tests.conftest import ROOT, SLOW, TORCHRUN, write_folders

pytest.importorskip("pandas")
PARTS, SCRIPT = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_folders(folder / "photos", {"train": 24, "val": 4, "test": 4}, size=(48, 40))
    (folder / "parts.py").write_text(PARTS)
    (folder / "photos.py").write_text(SCRIPT)
    return folder


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    done = forkserver.run([sys.executable, "photos.py"], cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_trains_evaluates_and_predicts(folder: Path, printed: str):
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert str(summary["val"]["32px"]["top1"]) in printed.splitlines()
    assert summary["exit_reason"] == "done"
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    images = list((folder / "photos" / "test").glob("*/*"))
    assert len(rows) == len(images)
    assert {row["label"] for row in rows} <= {path.parent.name for path in images}


@pytest.mark.slow
def test_a_shell_opens_the_run_when_the_module_is_named(folder: Path, printed: str):
    words = [sys.executable, str(ROOT / "recipes" / "evaluate.py"), "run", "--data-root", "photos", "--split", "test"]
    done = forkserver.run(words, cwd=folder)
    assert done.returncode == 2
    assert "--task parts:Focal: the module is not imported: --import parts allows that" in done.stderr
    done = forkserver.run([*words, "--import", "parts"], cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "macro F1" in done.stdout


@SLOW
def test_two_processes_train_it_too(folder: Path, tmp_path: Path):
    for name in ("photos", "parts.py", "photos.py"):
        (tmp_path / name).symlink_to(folder / name)
    done = subprocess.run([*TORCHRUN, "photos.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["processes"] == 2
