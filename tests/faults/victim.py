"""A run that a fault is put into: by optimizer step, or by file operation of a save; and the starting of such runs.

A process is forked from a server that has everything imported, so that a restart costs a second. Faults are real: the
process kills itself with SIGKILL, half-written files included, or a system call raises the error that a disk would.
"""

import contextlib
import errno
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parent.parent.parent
IMAGES, BATCH, EPOCHS = 130, 8, 3
STEPS_PER_EPOCH = IMAGES // BATCH
LAST = STEPS_PER_EPOCH * EPOCHS
SAVE_EVERY = 5
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "toolkit.commands.training", "toolkit.strategies"])
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EROFS", "EIO")}


@dataclass(frozen=True)
class Fault:
    """What happens, and when: at the `at`-th micro-batch, batch of evaluation, or file operation of saves of a process.

    An operation can be given by name too, as notes have it.
    """

    where: Literal["nowhere", "batch", "evaluation", "operation"] = "nowhere"
    at: int | str = 0
    what: str = "kill"  # or "stop": asked to; "half": a file half written, then killed; or the name of an error


@dataclass(frozen=True)
class Run:
    """What is trained: an example strategy's name, and settings beside the usual ones."""

    strategy: str
    output: Path
    settings: tuple[tuple[str, Any], ...] = ()

    def having(self, **settings: Any) -> "Run":
        return replace(self, settings=(*self.settings, *settings.items()))


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: a signal), what it said, and which steps it took."""

    code: int
    text: str
    steps: list[int]
    operations: list[str]

    @property
    def started_from(self) -> int | None:
        """The step of the checkpoint that it says it went on from."""
        found = re.search(r"continuing from \S*step-(\d+)", self.text)
        return int(found[1]) if found else None


def start(run: Run, fault: Fault = Fault(), forget: bool = False) -> Ended:
    """Train in a process of its own until it ends. `forget`: what a checkpoint holds is not put back."""
    return _ended(*_started(run, fault, forget, {}))


def start_two(run: Run) -> list[Ended]:
    """Train with two processes that nothing disturbs, without a launcher, whose start costs seconds."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{**place, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return [_ended(*started) for started in [_started(run, Fault(), False, rank) for rank in ranks]]


def _started(run: Run, fault: Fault, forget: bool, place: dict[str, str]) -> tuple[BaseProcess, Path]:
    """A process and its notes; `place`: its variables where it is one of several."""
    notes = prepare_notes(run, place.get("RANK", "0"))
    process = FORKS.Process(target=_child, args=(run, fault, forget, notes, place))
    process.start()
    return process, notes


def _ended(process: BaseProcess, notes: Path) -> Ended:
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"it hangs: {(notes / 'text').read_text()[-2000:]}")
    steps = [int(line) for line in (notes / "steps").read_text().split()]
    return Ended(process.exitcode, (notes / "text").read_text(), steps, (notes / "operations").read_text().splitlines())


def prepare_notes(run: Run, rank: str = "0") -> Path:
    """An empty folder beside the run's, for what is noted of it."""
    notes = run.output.with_name(f"{run.output.name}.notes-{rank}")
    notes.mkdir(exist_ok=True)
    for name in ("text", "steps", "operations"):
        (notes / name).write_text("")
    return notes


def _child(run: Run, fault: Fault, forget: bool, notes: Path, place: dict[str, str]) -> None:
    os.environ.update(place)
    with (notes / "text").open("a", buffering=1) as text:
        os.dup2(text.fileno(), 1)
        os.dup2(text.fileno(), 2)
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            sys.exit(train_here(run, fault, forget, notes))


def train_here(run: Run, fault: Fault, forget: bool, notes: Path) -> int:
    """Train in this process, with a fault put in; returns the exit code."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a killed process leaves behind
    sys.path.insert(0, str(ROOT / "tests" / "contract"))
    from examples import EXAMPLES

    from toolkit import Settings, train
    from toolkit.models import evaluator
    from toolkit.models.multiview import copy_state, state_tensors
    from toolkit.runs import report
    from toolkit.system import host
    from toolkit.system.exit_codes import exit_code
    from toolkit.training import session

    host.cpu_quota = lambda *words: 1
    evaluator.LATENCY_S, report.write_report = 0.0, lambda directory: directory / "report.html"  # a second of each run
    _inject(fault, notes, run.output)
    if forget:
        whole = session.restore

        def forgetful(start: Path, train_state: Any, *words: Any) -> None:
            model = train_state.weights.model
            weights = {name: tensor.clone() for name, tensor in state_tensors(model).items()}
            whole(start, train_state, *words)
            copy_state(weights, model)

        session.restore = forgetful
    usual = {
        "synthetic_size": 32,
        "synthetic_count": IMAGES,
        "batch_size": BATCH,
        "epochs": EPOCHS,
        "dropout_rate": 0.2,
        "ema_decay": 0.9,
        "save_every_steps": SAVE_EVERY,
        "log_with": "none",
        "record_samples": True,
        "num_workers": 1,
    }
    settings = Settings(**{**usual, **dict(run.settings), "output_dir": run.output})
    return exit_code(lambda: train(settings, EXAMPLES[run.strategy]))


def _inject(fault: Fault, notes: Path, output: Path) -> None:
    from toolkit.training import loop
    from toolkit.training.consensus import Consensus

    train_step, batches = loop.train_step, 0

    def counting(train_state: Any, batch: Any, *words: Any) -> Any:
        nonlocal batches
        batches += 1
        if fault.where == "batch" and batches == fault.at:
            _die(fault)
        loss = train_step(train_state, batch, *words)
        if train_state.accelerator.sync_gradients:
            _note(notes / "steps", str(batch.number))
        return loss

    between, evaluated = Consensus.raise_if_stopping, 0

    def counting_too(consensus: Consensus) -> None:
        nonlocal evaluated
        evaluated += 1
        if fault.where == "evaluation" and evaluated == fault.at:
            _die(fault)
        between(consensus)

    loop.train_step, Consensus.raise_if_stopping = counting, counting_too
    count_operations(fault, notes / "operations", (output / "checkpoints", output / "best"))


def count_operations(fault: Fault, notes: Path, folders: tuple[Path, ...]) -> None:
    """Note every file operation of a save under `folders`, and let the fault happen at its own."""
    from toolkit.runs import best_model, checkpoint

    operations = 0

    def happens(name: str, path: Any, half: Callable[[], None] | None = None) -> None:
        nonlocal operations
        if not str(path).startswith(tuple(map(str, folders))):
            return
        operations += 1
        label = f"{name} {Path(path).relative_to(folders[0].parent)}"
        _note(notes, label)
        if fault.where != "operation" or fault.at not in (operations, label):
            return
        if fault.what == "half" and half is not None:
            half()
        if fault.what in ERRORS:
            raise OSError(ERRORS[fault.what], os.strerror(ERRORS[fault.what]), str(path))
        _die(fault)

    def before(owner: Any, name: str, label: str) -> None:
        original = getattr(owner, name)

        def patched(path: Any, *words: Any, **named: Any) -> Any:
            folder = named.get("dir_fd")
            happens(label, path if folder is None else Path(f"/proc/self/fd/{folder}").readlink() / path)
            return original(path, *words, **named)

        setattr(owner, name, patched)

    before(os, "replace", "rename")
    before(os, "mkdir", "mkdir")
    before(os, "unlink", "unlink")
    before(os, "rmdir", "rmdir")
    opened: dict[int, str] = {}
    os_open, os_fsync, save_file, write_text = os.open, os.fsync, checkpoint.save_file, Path.write_text

    def open_(path: Any, *words: Any, **named: Any) -> int:
        handle = os_open(path, *words, **named)
        opened[handle] = str(path)
        return handle

    def fsync(handle: int) -> None:
        happens("fsync", opened.get(handle, ""))
        os_fsync(handle)

    def save(tensors: Any, path: Any, **named: Any) -> None:
        def half() -> None:
            save_file(tensors, path, **named)
            os.truncate(path, Path(path).stat().st_size // 2)

        happens("write", path, half)
        save_file(tensors, path, **named)

    def write(path: Path, text: str, *words: Any, **named: Any) -> int:
        happens("write", path, lambda: path.write_bytes(text[: len(text) // 2].encode()) and None)
        return write_text(path, text, *words, **named)

    os.open, os.fsync, Path.write_text = open_, fsync, write
    checkpoint.save_file = best_model.save_file = save


def _note(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(handle, f"{text}\n".encode())
    os.close(handle)


def _die(fault: Fault) -> None:
    os.kill(os.getpid(), signal.SIGTERM if fault.what == "stop" else signal.SIGKILL)


def slow_disk(name: str, seconds: int) -> str:
    """Code by which files with `name` in their path take so long to reach the disk; for sitecustomize.py."""
    return f"""
import os, time
sync = os.fsync
def slow(handle):
    time.sleep({seconds} * ({name!r} in os.readlink(f"/proc/self/fd/{{handle}}")))
    sync(handle)
os.fsync = slow
"""


def newest(output: Path) -> int | None:
    """The step of the newest committed checkpoint, told without the code that is tested: all files whole."""
    import hashlib

    def whole(path: Path) -> bool:
        try:
            manifest = (path / "MANIFEST.json").read_bytes()
            if (path / "COMMITTED").read_text().strip() != hashlib.sha256(manifest).hexdigest():
                return False
            files = json.loads(manifest)["files"].items()
            return all(hashlib.sha256((path / n).read_bytes()).hexdigest() == e["sha256"] for n, e in files)
        except OSError:
            return False

    steps = [int(path.name[5:]) for path in (output / "checkpoints").glob("step-*") if whole(path)]
    return max(steps, default=None)


def outcome(output: Path) -> dict[str, Any]:
    """Everything that a run leaves behind but TIMES: hashes of its last checkpoint's files, records, best model."""
    import csv

    from tests.conftest import TIMES

    last = output / "checkpoints" / f"step-{LAST:09d}"
    files = json.loads((last / "MANIFEST.json").read_text())["files"]
    progress = json.loads((last / "trainer.json").read_text())["progress"]
    with (output / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]
    summary = json.loads((output / "summary.json").read_text())
    return {
        **{name: entry["sha256"] for name, entry in files.items() if name != "trainer.json"},
        "progress": {name: value for name, value in progress.items() if name not in TIMES},
        "metrics": rows,
        "samples": (output / "samples.jsonl").read_text(),
        "best": (output / "best" / "model.safetensors").read_bytes(),
        "summary": {name: summary[name] for name in ("exit_reason", "val", "test", "raw", "best_epoch", "best_top1")},
    }
