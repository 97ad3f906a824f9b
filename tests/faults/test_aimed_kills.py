"""Killed where a state is easily lost: the same images in the same steps, and the same end, bit for bit."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from victim import LAST, SAVE_EVERY, STEPS_PER_EPOCH, Fault, Run, newest, outcome, start

from tests.conftest import ALL

Settings = tuple[tuple[str, Any], ...]


class Aim(NamedTuple):
    """`resumes`: the steps to go on from; two where the thread that writes may have been done or not."""

    strategy: str
    fault: Fault
    resumes: set[int]
    settings: Settings = ()


def in_save(step: int) -> Fault:
    """In the thread that writes. The save before is committed by then: one is written at a time."""
    return Fault("operation", f"write checkpoints/.tmp-step-{step:09d}/model.safetensors")


def before_save(step: int) -> Fault:
    """At the first file operation of a save, when the one before is committed."""
    return Fault("operation", f"mkdir checkpoints/.tmp-step-{step:09d}")


END = STEPS_PER_EPOCH  # of the first epoch, which is the first phase of `progressive`
BEFORE = END - END % SAVE_EVERY  # the last save within it
AFTER = BEFORE + SAVE_EVERY  # the first save of the next
MAYBE = {BEFORE - SAVE_EVERY, BEFORE}
FOUR = (("device_batch_size", 2),)  # micro-batches in a step
EACH_STEP = (("save_every_steps", 1),)

AIMS = {
    "a step's third micro-batch": Aim("single", Fault("batch", 4 * 12 + 3), {5, 10}, FOUR),
    "after a phase": Aim("progressive", in_save(AFTER), {END}),
}
MORE = {
    "step 1": Aim("single", in_save(2), {1}, EACH_STEP),
    "the third micro-batch after a save": Aim("single", Fault("batch", 4 * 2 + 3), {1, 2}, FOUR + EACH_STEP),
    "an epoch's last micro-batch": Aim("single", Fault("batch", 4 * END), MAYBE, FOUR),
    "an epoch's evaluation": Aim("single", Fault("evaluation", 2), MAYBE),
    "between an epoch's row and its save": Aim("single", before_save(END), {BEFORE}),
    "an epoch's save": Aim("single", in_save(END), {BEFORE}),
    "after an epoch": Aim("single", in_save(AFTER), {END}),
    "the last save": Aim("single", in_save(LAST), {LAST - LAST % SAVE_EVERY}),
    "a phase's evaluation": Aim("progressive", Fault("evaluation", 2), MAYBE),
    "between a phase's row and its save": Aim("progressive", before_save(END), {BEFORE}),
    "a phase's save": Aim("progressive", in_save(END), {BEFORE}),
    "a phase's first step": Aim("progressive", Fault("batch", END + 1), {BEFORE, END}),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Settings], dict[str, Any]]:
    """What a run ends with that is not killed; trained once, however often it saves."""
    found: dict[tuple[str, Settings], dict[str, Any]] = {}

    def of(strategy: str, settings: Settings) -> dict[str, Any]:
        key = strategy, tuple(pair for pair in settings if pair not in EACH_STEP)
        if key not in found:
            run = Run(strategy, tmp_path_factory.mktemp("whole") / "run", key[1])
            ended = start(run)
            assert (ended.code, ended.steps) == (0, list(range(LAST))), ended.text
            found[key] = outcome(run.output)
        return found[key]

    return of


def check_aim(run: Run, delivered: list[dict[str, Any]]) -> None:
    """That four micro-batches make a step where that is said, and that a phase ends where it is."""
    in_step = [line for line in delivered if line["step"] == 0]
    assert len(in_step) == (4 if run.settings[:1] == FOUR else 1)
    sizes = [next(line["sizes"] for line in delivered if line["step"] == step) for step in (END - 1, END)]
    assert (sizes[0] != sizes[1]) == (run.strategy == "progressive")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*AIMS, *MORE] if ALL else AIMS)
def test_a_run_sees_the_same_images_and_ends_alike_when_it_is_killed(
    undisturbed: Callable[[str, Settings], dict[str, Any]], tmp_path, name: str
):
    aim = {**AIMS, **MORE}[name]
    run = Run(aim.strategy, tmp_path / "run", aim.settings)
    killed = start(run, aim.fault)
    assert killed.code == -9, killed.text
    at = newest(run.output)
    assert at in aim.resumes
    again = start(run)
    assert (again.code, again.started_from) == (0, at), again.text
    assert again.steps == list(range(at, LAST))
    mine, theirs = outcome(run.output), undisturbed(aim.strategy, aim.settings)
    check_aim(run, [json.loads(line) for line in mine["samples"].splitlines()])
    assert mine["samples"] == theirs["samples"]
    assert mine == theirs
