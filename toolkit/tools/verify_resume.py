"""Does a training command, killed at random steps and started again, end as if nothing had happened? Free of torch.

The command runs twice: undisturbed, and killed again and again. Then the checkpoints of the same step are compared by
the hashes in their manifests, and the logs of what was delivered line by line. Both are read without the toolkit's own
code for them, which is what is on trial.
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

from toolkit.config.settings import WANDB_PROJECT
from toolkit.system.errors import InputError, ResumeError

LOOK_EVERY_S = 0.02
END_S = 30  # longest wait for killed processes to be gone
TAIL_BYTES, TAIL_LINES = 2**20, 12
KEPT = 10  # checkpoints: none is removed between its commit and the end of its run
OURS = ("--output-dir", "--checkpoint-dir", "--resume")
TIMES = ("train_seconds", "wall_seconds")
SAMPLES, PROGRESS = "samples.jsonl", "trainer.json"


def value_of(flag: str, words: Sequence[str]) -> str | None:
    """What a command line gives a flag, the last time; empty where there is nothing after it."""
    found = None
    for word, after in zip(words, (*words[1:], ""), strict=False):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            found = value if equals else after
    return found


@dataclass(frozen=True)
class TrialPlan:
    """`command` without a run directory; both runs are compared at `steps`, a multiple of `every`."""

    command: tuple[str, ...]
    steps: int
    every: int


def plan(command: Sequence[str], *, steps: int = 60, save_every_steps: int | None = None) -> TrialPlan:
    """`save_every_steps` None: as the command has it, else a sixth of `steps`.

    Raises InputError where the command cannot be tried.
    """
    recipe = next((i for i, word in enumerate(command) if word.endswith(".py") and Path(word).is_file()), None)
    if recipe is None:
        raise InputError(f"no recipe in the command {' '.join(command)!r}: it must name a .py file that is there")
    words = command[recipe + 1 :]
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
    # All of them, as the command or its --config may ask for what nothing but wandb has.
    quiet = ("--log-with", "none", "--wandb-mode", "auto", "--wandb-project", WANDB_PROJECT, "--no-wandb-artifact")
    return TrialPlan((*command, *ours, *quiet), -(-steps // every) * every, every)


@dataclass(frozen=True)
class Trial:
    """The command in one run directory, started as often as it takes; what it says goes into a file beside it."""

    command: tuple[str, ...]
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:09d}"

    def has(self, step: int) -> bool:
        """Whether the checkpoint of a step was committed."""
        path = self.checkpoint(step)
        try:
            mark, manifest = (path / "COMMITTED").read_text(), (path / "MANIFEST.json").read_bytes()
        except OSError:
            return False
        return mark.strip() == hashlib.sha256(manifest).hexdigest()

    def newest(self) -> int:
        """Step of the newest committed checkpoint; 0: none."""
        steps = [int(path.name[5:]) for path in self.folder.glob("checkpoints/step-*") if path.name[5:].isdecimal()]
        return max((step for step in steps if self.has(step)), default=0)

    def mark(self, step: int) -> int | None:
        """What tells the checkpoint of a step from another one of that step; None where there is none."""
        try:
            return (self.checkpoint(step) / "MANIFEST.json").stat().st_mtime_ns
        except OSError:
            return None

    def delivered(self) -> int:
        """Steps whose images a process was given."""
        try:
            with (self.folder / SAMPLES).open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
                steps = re.findall(rb'^\{"step": (\d+),.*\n', file.read(), re.MULTILINE)
        except OSError:
            return 0
        return int(steps[-1]) + 1 if steps else 0

    @contextlib.contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """The command at work; at the end of the block it and all that it started are killed."""
        command = (*self.command, "--output-dir", str(self.folder))
        with self.log.open("ab") as log:
            try:
                process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            except OSError as error:
                raise InputError(f"the command {command[0]!r} cannot be run: {error.strerror}") from None
            try:
                yield process
            finally:
                _kill(process)

    def runs_until(
        self, process: subprocess.Popen[bytes], there: Callable[[], bool], failure: type[Exception] = ResumeError
    ) -> bool:
        """Wait for something; False where the command ended in peace before. Raises `failure` where it failed."""
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
    """SIGKILL to a process and all its descendants, whatever session they are in; returns once they are gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        doomed = psutil.Process(process.pid).children(recursive=True)
        process.kill()  # the launcher first, so that it cannot answer the death of its workers
        for child in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(doomed, END_S)
    process.wait(END_S)


def undisturbed(trial: Trial, steps: int) -> int:
    """Run until the checkpoint of `steps` is there; returns that step, or the last one of a shorter run."""
    with trial.started() as process:
        # Nothing was resumed yet: where it fails, the command itself is wrong.
        reached = trial.runs_until(process, lambda: trial.has(steps), InputError)
    if reached:
        return steps
    last = trial.newest()
    if not last:
        raise InputError(f"the command ended without a checkpoint; what it said is in {trial.log}")
    return last


@dataclass
class Kill:
    """After how many delivered steps, and the step of the newest checkpoint then; 0: none, it starts over."""

    at: int
    resumes: int


def killed(trial: Trial, last: int, targets: Sequence[int]) -> Iterator[Kill]:
    """Run until the checkpoint of `last` is there, killed once each number of steps was delivered."""
    kill, mark = Kill(0, 0), None

    def goes_on() -> bool:
        """Raises ResumeError where the checkpoint to go on from is gone or made anew: a fresh start would end alike."""
        if trial.newest() < kill.resumes or trial.mark(kill.resumes) not in (mark, None):
            raise ResumeError(f"the command did not go on from step {kill.resumes}, but started over; see {trial.log}")
        return True

    for target in targets:
        target = max(target, kill.at + 1)  # not before it has repeated what the kill before cost
        with trial.started() as process:
            trial.runs_until(process, lambda at=target: goes_on() and (trial.delivered() >= at or trial.has(last)))  # type: ignore[misc]
            if trial.has(last):
                return
        kill = Kill(trial.delivered(), trial.newest())
        mark = trial.mark(kill.resumes)
        yield kill
    with trial.started() as process:
        if not trial.runs_until(process, lambda: goes_on() and trial.has(last)):
            raise ResumeError(f"the killed run ended without the checkpoint of step {last}; see {trial.log}")


def draw(kills: int, every: int, last: int, seed: int) -> list[int]:
    """Ascending steps to kill at, all different: after the first checkpoint, as far as the run is longer than that."""
    steps = range(min(every, last // 2) + 1, last)
    return sorted(random.Random(seed).sample(steps, min(kills, len(steps))))


def _files(checkpoint: Path) -> dict[str, Any]:
    """What must be the same, by file: a hash, or the progress without times."""
    files = json.loads((checkpoint / "MANIFEST.json").read_text())["files"]
    trainer = json.loads((checkpoint / PROGRESS).read_text())
    trainer["progress"] = {name: value for name, value in trainer["progress"].items() if name not in TIMES}
    return {**{name: entry["sha256"] for name, entry in files.items()}, PROGRESS: trainer}


def _samples(folder: Path, steps: int) -> list[dict[str, Any]]:
    """What was delivered before a step, each process's in its order."""
    with (folder / SAMPLES).open() as file:
        lines = [json.loads(line) for line in file if line.endswith("\n")]
    return sorted((line for line in lines if line["step"] < steps), key=lambda line: (line["step"], line["rank"]))


def compare(whole: Trial, tried: Trial, step: int) -> dict[str, bool]:
    """By file, whether both runs left the same."""
    first, second = _files(whole.checkpoint(step)), _files(tried.checkpoint(step))
    equal = {name: first.get(name) == second.get(name) for name in sorted({*first, *second})}
    return {**equal, SAMPLES: _samples(whole.folder, step) == _samples(tried.folder, step)}


def reasons(equal: dict[str, bool], tried: Trial, step: int) -> str:
    """Where to look first when something is not the same."""
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
