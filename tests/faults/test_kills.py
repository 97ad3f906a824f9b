"""Killed at random points, by step and by file operation of a save, and started again: the same end, bit for bit.

`make faults` kills each strategy 50 times; the quick run a few times. Seeded.
"""

from pathlib import Path

import numpy as np
import pytest
from victim import LAST, SAVE_EVERY, Ended, Fault, Run, newest, outcome, start

from tests.conftest import ALL
from toolkit.config.tables import TABLES

KILLS, STEPS_AHEAD, OPERATIONS_AHEAD = (50, 10, 100) if ALL else (2, 30, 300)
LOST = 2 * SAVE_EVERY  # steps, by one kill: a checkpoint is still being written when the next one is asked for
CHOSEN = ("single", "progressive", "simultaneous")
FURTHER = ("progressive-compute", "progressive-simultaneous", "sampled", "sandwich")  # tests/contract kills them too


def test_every_strategy_is_killed():
    assert {*CHOSEN, *FURTHER} == TABLES["strategy"].keys()


def first_commit(run: Run) -> int:
    """Train until the first checkpoint is committed, as the second one asks for, and die; returns the steps taken."""
    ended = start(run, Fault("batch", 2 * SAVE_EVERY + 1))
    assert ended.code == -9
    assert newest(run.output) in (SAVE_EVERY, 2 * SAVE_EVERY)
    return len(ended.steps)


def draw(rng: np.random.Generator) -> Fault:
    """One of the next steps, or of the next saves' file operations."""
    if rng.random() < 0.4:
        return Fault("batch", int(rng.integers(1, STEPS_AHEAD + 1)))
    return Fault("operation", int(rng.integers(1, OPERATIONS_AHEAD + 1)), str(rng.choice(["kill", "half"])))


USUAL = "simultaneous"  # the one that `make test` kills
KILLED = (*CHOSEN, *(FURTHER if ALL else ()))
PARAMS = [pytest.param(name, id=name, marks=[pytest.mark.slow] * (name != USUAL)) for name in KILLED]


@pytest.fixture(scope="module", params=PARAMS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run."""
    run = Run(request.param, tmp_path_factory.mktemp("kills") / "whole")
    ended = start(run)
    assert ended.code == 0, ended.text
    assert ended.steps == list(range(LAST))
    return run


def check_restart(before: int | None, ended: Ended) -> None:
    """It went on from there, or was killed before it said so, while it cleared away what the last save left."""
    cleared = all(operation.split()[0] in ("unlink", "rmdir") for operation in ended.operations)
    assert ended.started_from == before or (not ended.text and cleared and ended.code), ended.text
    assert ended.steps[:1] in ([before], [])


def test_a_run_ends_alike_when_it_is_killed_again_and_again(whole: Run, tmp_path: Path):
    kills = run_number = 0
    while kills < KILLS:
        rng = np.random.default_rng((len(whole.strategy), run_number))
        run = Run(whole.strategy, tmp_path / f"run-{run_number}")
        executed, killed = first_commit(run), 1
        while True:
            before = newest(run.output)
            ended = start(run, draw(rng))
            check_restart(before, ended)
            executed += len(ended.steps)
            if ended.code == 0:
                break
            assert ended.code == -9, ended.text
            killed += 1
        assert outcome(run.output) == outcome(whole.output)
        assert executed <= LAST + killed * LOST
        kills += killed
        run_number += 1
    print(f"{whole.strategy}: {kills} kills in {run_number} runs")


def test_a_run_ends_elsewhere_when_weights_are_not_put_back(whole: Run, tmp_path: Path):
    """The control: the comparison can fail."""
    if not ALL and whole.strategy != "single":
        pytest.skip("`make faults` runs it")
    run = Run(whole.strategy, tmp_path / "forgetful")
    first_commit(run)
    ended = start(run, forget=True)
    assert ended.code == 0, ended.text
    mine, theirs = outcome(run.output), outcome(whole.output)
    assert mine["samples"] == theirs["samples"]
    assert mine["model.safetensors"] != theirs["model.safetensors"]


@pytest.mark.slow
def test_a_run_ends_alike_when_it_is_asked_to_stop_in_training_and_in_evaluation(whole: Run, tmp_path: Path):
    """Saved where it stands, at any step, also where an epoch is trained but not evaluated: no step is repeated."""
    if not ALL and whole.strategy != "simultaneous":
        pytest.skip("`make faults` runs it")
    run, steps = Run(whole.strategy, tmp_path / "stopped"), []
    stops = [("batch", 1), ("batch", 3), ("batch", 13), ("evaluation", 2), ("batch", 2), ("evaluation", 5)]
    for where, at in stops:
        ended = start(run, Fault(where, at, "stop"))
        assert ended.code == 75, ended.text
        steps += ended.steps
    last = start(run, Fault("evaluation", 9, "stop"))  # of the final evaluation, when all is trained
    assert last.code == 75, last.text
    ended = start(run)
    assert ended.code == 0, ended.text
    assert steps + last.steps + ended.steps == list(range(LAST))
    assert outcome(run.output) == outcome(whole.output)


def test_a_run_ends_alike_when_it_was_stopped_in_evaluation_and_then_killed_at_its_only_checkpoint(
    whole: Run, tmp_path: Path
):
    """The epoch is closed by the second start: its row is written, its checkpoint about to replace the same step's."""
    if not ALL and whole.strategy != "simultaneous":
        pytest.skip("`make faults` runs it")
    steps = LAST // 3
    run = Run(whole.strategy, tmp_path / "stopped", (("save_every_steps", None),))
    assert start(run, Fault("evaluation", 2, "stop")).code == 75
    for operation in ("write", "rename"):
        name = {"write": "/trainer.json", "rename": ""}[operation]
        ended = start(run, Fault("operation", f"{operation} checkpoints/.tmp-step-{steps:09d}{name}"))
        assert (ended.code, ended.started_from) == (-9, steps), ended.text
        assert ended.steps == list(range(steps, steps + len(ended.steps)))  # while the thread was on its way there
    ended = start(run)
    assert (ended.code, ended.started_from) == (0, steps), ended.text
    assert outcome(run.output) == outcome(whole.output)
