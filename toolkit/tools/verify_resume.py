"""Verify that a training command, killed at random steps and restarted, ends bit-identically. Free of torch.

The command runs twice: undisturbed, and killed repeatedly. Then the checkpoints of the same step are compared by the
hashes in their manifests, and the sample logs line by line. Both are read without the toolkit's code for them, because
that code is under test.
"""

import contextlib
import hashlib
import json
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from toolkit.config.sections import WANDB_PROJECT
from toolkit.system import storage
from toolkit.system.errors import InputError, ResumeError

LOOK_EVERY_S = 0.02
END_S = 30  # longest wait for killed processes to exit
TAIL_BYTES, TAIL_LINES = 2**20, 12
KEPT = 10  # checkpoints: enough that none is removed between its commit and the end of its run
OURS = ("--output-dir", "--checkpoint-dir", "--resume")
TIMES = ("train_seconds", "wall_seconds")
SAMPLES, PROGRESS = "samples.jsonl", "trainer.json"


def value_of(flag: str, words: Sequence[str]) -> str | None:
    """The last value of a flag on a command line; empty if no value follows, None without the flag."""
    found = None
    for word, after in zip(words, (*words[1:], ""), strict=False):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            found = value if equals else after
    return found


def _flags_of(command: Sequence[str]) -> Sequence[str]:
    """The words after the recipe, a script or `toolkit train NAME`; raises InputError if the command has none."""
    for i, word in enumerate(command):
        if word.endswith(".py") and Path(word).is_file():
            return command[i + 1 :]
        if Path(word).name == "toolkit" and [*command[i + 1 : i + 2]] == ["train"]:
            return command[i + 3 :]
    raise InputError(
        f"no recipe in the command {' '.join(command)!r}: it must have `toolkit train ...` or a .py file that is there"
    )


@dataclass(frozen=True)
class TrialPlan:
    """`command` without a run directory; both runs are compared at step `steps`, a multiple of `every`."""

    command: tuple[str, ...]
    steps: int
    every: int


def plan(command: Sequence[str], *, steps: int = 60, save_every_steps: int | None = None) -> TrialPlan:
    """Plan a trial of `command`. `save_every_steps` None: the value in the command, else a sixth of `steps`.

    Raises InputError if the command cannot be used.
    """
    words = _flags_of(command)
    for flag in OURS:
        if value_of(flag, words) is not None:
            raise InputError(f"{flag} in the command: each run gets a directory of its own, drop it")
    own = value_of("--save-every-steps", words)
    if own is not None and not re.fullmatch("[1-9][0-9]*", own):
        raise InputError(f"--save-every-steps {own} in the command: it must be a positive number")
    if own and save_every_steps:
        raise InputError(f"--save-every-steps {own} in the command and {save_every_steps} before it: drop one")
    every = int(own or save_every_steps or max(1, steps // 6))
    ours = ("--resume", "auto", "--save-every-steps", str(every), "--keep", str(KEPT), "--record-samples")
    # All four flags, because the command or its --config may set options that are valid only with wandb.
    quiet = ("--log-with", "none", "--wandb-mode", "auto", "--wandb-project", WANDB_PROJECT, "--no-wandb-artifact")
    return TrialPlan((*command, *ours, *quiet), -(-steps // every) * every, every)


@dataclass(frozen=True)
class Trial:
    """The command in one run directory, started as often as needed; its output goes to a log file beside it."""

    command: tuple[str, ...]
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:09d}"

    def has(self, step: int) -> bool:
        """Whether the checkpoint of a step is committed."""
        path = self.checkpoint(step)
        try:
            mark, manifest = (path / "COMMITTED").read_text(), (path / "MANIFEST.json").read_bytes()
        except OSError:
            return False
        return mark.strip() == hashlib.sha256(manifest).hexdigest()

    def newest(self) -> int:
        """Step of the newest committed checkpoint; 0 if there is none."""
        steps = [int(path.name[5:]) for path in self.folder.glob("checkpoints/step-*") if path.name[5:].isdecimal()]
        return max((step for step in steps if self.has(step)), default=0)

    def mark(self, step: int) -> int | None:
        """Identifies one checkpoint of a step (mtime of its manifest, ns); None if there is none."""
        try:
            return (self.checkpoint(step) / "MANIFEST.json").stat().st_mtime_ns
        except OSError:
            return None

    def delivered(self) -> int:
        """Number of steps whose images were delivered to a process."""
        try:
            with (self.folder / SAMPLES).open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
                steps = re.findall(rb'^\{"step": (\d+),.*\n', file.read(), re.MULTILINE)
        except OSError:
            return 0
        return int(steps[-1]) + 1 if steps else 0

    @contextlib.contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the command; when the block ends, it and all its descendants are killed."""
        command = (*self.command, "--output-dir", str(self.folder))
        with self.log.open("ab") as log:
            try:
                process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            except OSError as error:
                raise InputError(f"the command {command[0]!r} cannot be run: {storage.explain(error)}") from None
            try:
                yield process
            finally:
                _kill(process)

    def runs_until(
        self, process: subprocess.Popen[bytes], there: Callable[[], bool], failure: type[Exception] = ResumeError
    ) -> bool:
        """Wait until `there()` is true; False if the command exits with 0 first, raises `failure` on other codes."""
        while not there():
            if process.poll() is not None:
                if process.returncode:
                    error = failure(f"the command ended with exit code {process.returncode}; its last lines:")
                    for line in self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]:
                        error.add_note(line)
                    raise error
                return there()
            time.sleep(LOOK_EVERY_S)
        return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a process and all its descendants, in any session; returns once they have exited."""
    with contextlib.suppress(psutil.NoSuchProcess):
        doomed = psutil.Process(process.pid).children(recursive=True)
        process.kill()  # the launcher first, so that it cannot react to the death of its workers
        for child in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(doomed, END_S)
    process.wait(END_S)


def undisturbed(trial: Trial, steps: int) -> int:
    """Run until the checkpoint of `steps` exists; returns that step, or the last one of a shorter run."""
    with trial.started() as process:
        # Nothing was resumed yet, so a failure means that the command itself is wrong.
        reached = trial.runs_until(process, lambda: trial.has(steps), InputError)
    if reached:
        return steps
    last = trial.newest()
    if not last:
        raise InputError(f"the command ended without a checkpoint; its output is in {trial.log}")
    return last


@dataclass
class Kill:
    """`at`: delivered steps at the kill; `resumes`: step of the newest checkpoint then, 0 if none (it starts over)."""

    at: int
    resumes: int


def killed(trial: Trial, last: int, every: int, targets: Sequence[int]) -> Iterator[Kill]:
    """Run until the checkpoint of `last` exists; kill it whenever it has delivered a number of steps in `targets`.

    A kill after step `every` waits for the first checkpoint, which is written in the background: a run that starts over
    also ends equal, and shows nothing.
    """
    kill, mark = Kill(0, 0), None

    def continues() -> bool:
        """Raise ResumeError if the checkpoint to resume from is gone or rewritten: a fresh start also ends equal."""
        if trial.newest() < kill.resumes or trial.mark(kill.resumes) not in (mark, None):
            raise ResumeError(
                f"the command did not continue from step {kill.resumes}, but started over; see {trial.log}"
            )
        return True

    def due(at: int) -> bool:
        return trial.delivered() >= at and (at <= every or trial.newest() > 0)

    for target in targets:
        target = max(target, kill.at + 1)  # not before the steps lost to the last kill are repeated
        with trial.started() as process:
            trial.runs_until(process, lambda at=target: continues() and (due(at) or trial.has(last)))  # type: ignore[misc]
            if trial.has(last):
                return
        kill = Kill(trial.delivered(), trial.newest())
        mark = trial.mark(kill.resumes)
        yield kill
    with trial.started() as process:
        if not trial.runs_until(process, lambda: continues() and trial.has(last)):
            raise ResumeError(f"the killed run ended without the checkpoint of step {last}; see {trial.log}")


def draw(kills: int, every: int, last: int, seed: int) -> list[int]:
    """Draw distinct steps to kill at, ascending: after the first checkpoint, or in the second half of a short run."""
    steps = range(min(every, last // 2) + 1, last)
    return sorted(random.Random(seed).sample(steps, min(kills, len(steps))))


def _files(checkpoint: Path) -> dict[str, Any]:
    """Contents that must be equal, by file: the hash, or for trainer.json the content without times."""
    files = json.loads((checkpoint / "MANIFEST.json").read_text())["files"]
    trainer = json.loads((checkpoint / PROGRESS).read_text())
    trainer["progress"] = {name: value for name, value in trainer["progress"].items() if name not in TIMES}
    return {**{name: entry["sha256"] for name, entry in files.items()}, PROGRESS: trainer}


def _samples(folder: Path, steps: int) -> list[dict[str, Any]]:
    """Sample log lines before step `steps`, sorted by step and rank."""
    with (folder / SAMPLES).open() as file:
        lines = [json.loads(line) for line in file if line.endswith("\n")]
    return sorted((line for line in lines if line["step"] < steps), key=lambda line: (line["step"], line["rank"]))


def compare(whole: Trial, tried: Trial, step: int) -> dict[str, bool]:
    """For each file, whether both runs are equal."""
    first, second = _files(whole.checkpoint(step)), _files(tried.checkpoint(step))
    equal = {name: first.get(name) == second.get(name) for name in sorted({*first, *second})}
    return {**equal, SAMPLES: _samples(whole.folder, step) == _samples(tried.folder, step)}


def reasons(equal: dict[str, bool], tried: Trial, step: int) -> str:
    """The likely reason for a difference."""
    inexact = json.loads((tried.checkpoint(step) / PROGRESS).read_text())["progress"]["inexact"]
    if inexact:
        return f"the resume itself was not exact: {'; '.join(inexact)}"
    if not equal[SAMPLES]:
        return (
            "the runs saw other images, or at another learning rate: did the data change, or the number of processes?"
        )
    return (
        "same images, other arithmetic: on a GPU add --deterministic to the command; else something in the model or "
        "the recipe keeps a state that no checkpoint holds. --kills 0 tells whether two undisturbed runs differ too"
    )
