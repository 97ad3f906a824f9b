"""What all tests share: one cache of built-in data, capped threads, no dashboard unless asked for."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = ("--synthetic-count", "120", "--synthetic-size", "32", "--batch-size", "24", "--log-with", "none")

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built-in data is drawn once for the whole test run."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["TOOLKIT_CACHE"] = str(folder)
    return folder


Runner = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    """Run a command line as a user would, in an empty directory; `launcher` words stand before the script's path."""

    def start(script: str, *words: str, launcher: tuple[str, ...] = (sys.executable,), **env: str):
        command = [*launcher, str(ROOT / script), *words]
        environment = {**os.environ, **env}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return start


ACCELERATE = (str(Path(sys.executable).with_name("accelerate")), "launch", "--quiet")
TORCHRUN = (str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2")
