"""A save that dies, or that the disk fails, at any of its file operations: the newest or the one before stays.

Each interruption is a process of its own that really dies.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from victim import ERRORS, FORKS, SAVE_EVERY, Fault, Run, count_operations, newest, start

from tests.conftest import ALL
from toolkit.runs import best_model, checkpoint
from toolkit.runs.checkpoint import Store
from toolkit.system.errors import SaveError

STEPS = (3, 6, 9, 12)  # the last is interrupted; with two kept, one goes in the course of it
SAME_STEP = (3, 6, 9, 9)  # an epoch that was stopped before its evaluation is saved twice
ONLY_STEP = (9, 9)  # and there is no other


def save(root: Path, step: int, value: float) -> None:
    """A checkpoint and an exported best model."""
    store = Store(root / "checkpoints", keep=2)
    store.stage(step, "more/part.safetensors", {"x": torch.zeros(4)})
    contents = {"model.safetensors": {"x": torch.full((50,), value)}, "trainer.json": {"value": value}}
    store.commit(step, contents, {"best_step": step})
    best_model.save(root / "best", contents["model.safetensors"], {"step": step, "value": value})


def last_save(root: Path, steps: tuple[int, ...], fault: Fault, notes: Path) -> None:
    """The last of the saves, with a fault put into it; in a process of its own."""
    count_operations(fault, notes, (root / "checkpoints", root / "best"))
    try:
        save(root, steps[-1], len(steps))
    except SaveError as error:
        notes.with_name("error").write_text(str(error))


def operations_of(root: Path, steps: tuple[int, ...]) -> list[str]:
    folder = run_plan(root / "counted", steps)
    interrupted(folder, steps, Fault())
    return folder.with_name("counted.notes").read_text().splitlines()


def run_plan(folder: Path, steps: tuple[int, ...]) -> Path:
    for value, step in enumerate(steps[:-1], 1):
        save(folder, step, value)
    return folder


def interrupted(folder: Path, steps: tuple[int, ...], fault: Fault) -> int:
    notes = folder.with_name(f"{folder.name}.notes")
    notes.write_text("")
    process = FORKS.Process(target=last_save, args=(folder, steps, fault, notes))
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def check_what_is_left(folder: Path, steps: tuple[int, ...]) -> int:
    """The step that loads: of the interrupted save or the one before, whole; and the best model that is there."""
    found = Store(folder / "checkpoints", keep=2).recover()
    assert found is not None
    step = checkpoint.step_of(found)
    value = checkpoint.load(found)["trainer.json"]["value"]
    assert (step, value) in {(steps[-1], len(steps)), (steps[-2], len(steps) - 1)}
    assert checkpoint.load(found)["model.safetensors"]["x"].tolist() == [value] * 50
    assert best_model.load(folder / "best")[1]["value"] in (len(steps) - 1, len(steps))
    assert not list((folder / "checkpoints").glob(".corrupt-*"))
    return step


CASES = [("half", STEPS), ("half", ONLY_STEP)]
MORE = [("half", SAME_STEP), ("kill", STEPS), ("kill", ONLY_STEP)]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "steps"), [*CASES, *MORE] if ALL else CASES)
def test_the_newest_or_the_one_before_loads_when_a_save_dies_at_any_operation(
    tmp_path: Path, what: str, steps: tuple[int, ...]
):
    operations = operations_of(tmp_path, steps)
    assert len(operations) > 25, operations
    found = []
    for at in range(1, len(operations) + 1):
        folder = run_plan(tmp_path / f"died-{at}", steps)
        assert interrupted(folder, steps, Fault("operation", at, what)) == -9
        found.append(check_what_is_left(folder, steps))
    if steps == STEPS:  # before the rename the one before, after it the newest
        committed = operations.index("rename checkpoints/.tmp-step-000000012")
        assert found == [9] * (committed + 1) + [12] * (len(operations) - committed - 1)


@pytest.mark.slow
@pytest.mark.parametrize("what", ERRORS if ALL else ["ENOSPC"])
def test_the_newest_or_the_one_before_loads_when_the_disk_fails_at_any_operation(tmp_path: Path, what: str):
    operations = operations_of(tmp_path, STEPS)
    for at, operation in enumerate(operations, 1):
        folder = run_plan(tmp_path / f"failed-{at}", STEPS)
        error = folder.with_name("error")
        error.unlink(missing_ok=True)
        assert interrupted(folder, STEPS, Fault("operation", at, what)) == 0
        check_what_is_left(folder, STEPS)
        old = "old-" in operation or operation == "rename checkpoints/step-000000006"  # one that stays does no harm
        there = operation.startswith("mkdir") and at > 3  # after the staging folder itself was made
        assert error.exists() != (old or there), operation
        if error.exists():
            assert "could not be written: " in error.read_text()
        save(folder, 15, 5.0)  # and the next one is committed
        assert checkpoint.step_of(Store(folder / "checkpoints").recover()) == 15


@pytest.mark.parametrize("what", ERRORS if ALL else ["ENOSPC"])
def test_a_run_ends_with_one_line_and_goes_on_later_when_the_disk_fails(tmp_path: Path, what: str):
    run = Run("single", tmp_path / "run")
    ended = start(run, Fault("operation", "write checkpoints/.tmp-step-000000010/ema.safetensors", what))
    assert ended.code == 1
    error = next(line for line in ended.text.splitlines() if line.startswith("error: "))
    assert str(run.output / "checkpoints") in error
    assert {"ENOSPC": "No space left", "EROFS": "Read-only", "EIO": "Input/output error"}[what] in error
    assert f"step-{SAVE_EVERY:09d} is intact" in error
    assert "Traceback" not in ended.text
    assert json.loads((run.output / "summary.json").read_text())["exit_reason"] == error.removeprefix("error: ")
    assert newest(run.output) == SAVE_EVERY
    again = start(run)
    assert (again.code, again.started_from) == (0, SAVE_EVERY)
    shutil.rmtree(run.output)
