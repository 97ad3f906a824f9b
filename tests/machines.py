"""Runs in object stores: machines that are lost, and what two runs have in common."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Training:
    """A training that goes on in a process."""

    process: Any
    log: Path

    def ended(self) -> Ended:
        """How it ended."""
        code = self.process.wait(PATIENCE_S)
        return Ended(code, *((self.log / name).read_text() for name in ("out", "err")))

    def wait_until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert self.process.poll() is None, self.ended()
            assert time.monotonic() < deadline
            time.sleep(0.1)


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
    def in_step(self, url: str, storage: Storage, *flags: str) -> Iterator[Training]:
        """A training that goes on, and stands still while the store has not got its newest checkpoint."""
        over = threading.Event()
        with self.training(url, *flags) as training:
            pacer = threading.Thread(target=self._pace, args=(training, storage, len(storage.written), over))
            pacer.start()
            try:
                yield training
            finally:
                over.set()
                pacer.join()

    def _pace(self, training: Training, storage: Storage, first: int, over: threading.Event) -> None:
        while not over.wait(0.02) and training.process.poll() is None:
            here = [layout.step_of(path.name) for path in self.disk.glob("runs/*/*/checkpoints/step-*")]
            there = [layout.step_of(key.removesuffix(MARK)) for key in storage.written[first:] if key.endswith(MARK)]
            behind = max(here, default=0) > max(there, default=0) and max(here) > self.fetched(training)
            training.process.send_signal(signal.SIGSTOP if behind else signal.SIGCONT)

    def fetched(self, training: Training) -> int:
        """The step of the newest checkpoint that a training found in the store."""
        found = re.findall(r"fetching step-(\d+)", (training.log / "out").read_text())
        return max(map(int, found), default=0)

    @contextmanager
    def training(self, url: str, *flags: str) -> Iterator[Training]:
        """A training that goes on; killed at the end."""
        log = Path(tempfile.mkdtemp(prefix=f"{self.disk.name}-", dir=self.disk.parent))
        self.disk.mkdir(exist_ok=True)
        with (log / "out").open("w") as out, (log / "err").open("w") as err:
            process = forkserver.Popen(self.words(url, *flags), env=dict(os.environ), cwd=log, stdout=out, stderr=err)
            try:
                yield Training(process, log)
            finally:
                process.kill()
                process.wait()

    def train(self, url: str, *flags: str) -> Ended:
        """A training to its end."""
        with self.training(url, *flags) as training:
            return training.ended()

    def lose(self) -> None:
        shutil.rmtree(self.disk)

    def mirror(self) -> Path:
        """The local directory that stands for the only URL."""
        (state,) = self.disk.glob("runs/*/mirror.json")
        return next(path for path in state.parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def killing_at(storage: Storage, training: Training, due: Callable[[Request], bool], before: bool) -> None:
    """Kill a process, as a machine that is gone, before or after the first request that is due."""

    def gate(request: Request) -> bool:
        if before and due(request):
            training.process.kill()
            storage.gate = lambda _: False  # what it still sends never arrives
            return False
        return True

    def after(request: Request) -> None:
        if not before and due(request):
            training.process.kill()
            storage.gate = lambda _: False  # the same

    storage.gate, storage.after = gate, after


def reopen(storage: Storage) -> None:
    storage.gate, storage.after = lambda _: True, lambda _: None


def objects(url: str) -> dict[str, bytes]:
    """The content of all objects at a URL, but for those that are deleted meanwhile."""
    there, root = fsspec.core.url_to_fs(url)
    there.invalidate_cache()
    found = {}
    for name in there.find(root):
        with contextlib.suppress(FileNotFoundError):
            found[name.removeprefix(f"{root}/")] = there.cat_file(name)
    return found


def fetched(url: str, folder: Path) -> Path:
    """All objects at a URL, as files."""
    for name, content in objects(url).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


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
