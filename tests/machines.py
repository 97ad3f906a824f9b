"""Runs in object stores: machines that are lost, and what two runs have in common."""

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import fsspec

from tests import forkserver
from tests.conftest import PATIENCE_S, ROOT, TIMES
from tests.storage import Request, Storage
from toolkit.runs.mirror import layout

FLAGS = (
    *("--arch", "test_vit", "--scales", "16,32", "--batch-size", "12", "--epochs", "3", "--save-every-steps", "2"),
    *("--log-with", "none", "--num-workers", "1", "--record-samples"),
)
BUILT_IN = ("--synthetic-count", "60", "--synthetic-size", "32")
MARK = "/COMMITTED"


@dataclass
class Ended:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Machine:
    """A machine with a disk of its own for what a run at a URL needs; built-in data is shared, to save time."""

    disk: Path

    def words(self, url: str, *flags: str) -> list[str]:
        """The command line of a training, on built-in data unless the flags name other."""
        data = () if "--data-root" in flags else BUILT_IN
        words = (*FLAGS, *data, "--output-dir", url, "--cache-dir", str(self.disk), *flags)
        return [sys.executable, str(ROOT / "recipes/multiscale.py"), *words]

    @contextmanager
    def training(self, url: str, *flags: str) -> Iterator[Any]:
        """A training that goes on; killed at the end."""
        self.disk.mkdir(parents=True, exist_ok=True)
        words = self.words(url, *flags)
        process = forkserver.Popen(words, env=dict(os.environ), cwd=self.disk, stdout=PIPE, stderr=PIPE, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def train(self, url: str, *flags: str) -> Ended:
        """A training to its end."""
        with self.training(url, *flags) as process:
            out, err = process.communicate(timeout=PATIENCE_S)
            return Ended(process.returncode, out, err)

    def lose(self) -> None:
        shutil.rmtree(self.disk)

    def mirror(self) -> Path:
        """The local directory that stands for the only URL."""
        (state,) = self.disk.glob("runs/*/mirror.json")
        return next(path for path in state.parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def killing_at(storage: Storage, process: Any, due: Callable[[Request], bool], before: bool) -> None:
    """Kill a process, as a machine that is gone, before or after the first request that is due."""

    def gate(request: Request) -> bool:
        if process.returncode is not None or (before and due(request)):
            process.kill()
            return False
        return True

    def after(request: Request) -> None:
        if not before and due(request):
            process.kill()
            storage.gate = lambda _: False  # what it still sent never arrives

    storage.gate, storage.after = gate, after


def reopen(storage: Storage) -> None:
    storage.gate, storage.after = lambda _: True, lambda _: None


def fetched(url: str, folder: Path) -> Path:
    """All objects at a URL, as files."""
    there, root = fsspec.core.url_to_fs(url)
    there.invalidate_cache()
    for name in there.find(root):
        file = folder / name.removeprefix(f"{root}/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(there.cat_file(name))
    return folder


def objects(url: str) -> dict[str, bytes]:
    there, root = fsspec.core.url_to_fs(url)
    there.invalidate_cache()
    return {name.removeprefix(f"{root}/"): there.cat_file(name) for name in there.find(root)}


def steps_in(url: str) -> list[int]:
    """Steps of the committed checkpoints at a URL."""
    names = [name for name in objects(url) if name.endswith(MARK) and name.startswith("checkpoints/step-")]
    return sorted(layout.step_of(name.removesuffix(MARK)) for name in names)


def result(run: Path) -> dict[str, Any]:
    """What must be equal, bit for bit: the last checkpoint, the best model, every delivered image, and the metrics."""
    last = max(run.glob("checkpoints/step-*"))
    manifest = json.loads((last / "MANIFEST.json").read_text())
    found = {name: entry["sha256"] for name, entry in manifest["files"].items() if name != "trainer.json"}
    progress = json.loads((last / "trainer.json").read_text())["progress"]
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{name: cell for name, cell in row.items() if name not in TIMES} for row in csv.DictReader(file)]
    return {
        "checkpoint": (last.name, found),
        "progress": {name: value for name, value in progress.items() if not name.endswith("_seconds")},
        "samples": (run / "samples.jsonl").read_text(),
        "metrics": rows,
        "best": (run / "best/model.safetensors").read_bytes(),
    }
