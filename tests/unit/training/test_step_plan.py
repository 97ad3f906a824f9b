"""The arithmetic of a run."""

import pytest

from toolkit import InputError, Progressive, Settings, Simultaneous, SingleScale
from toolkit.strategies.base import Budget
from toolkit.training.step_plan import describe_steps, make_step_plan

STRATEGY = SingleScale(32)


def settings(**values) -> Settings:
    return Settings(**{"epochs": 4, "batch_size": 24, **values})


def test_an_epoch_is_its_full_batches_when_images_are_left_over():
    plan = make_step_plan(settings(), STRATEGY, 130, 1)
    assert plan.budget == Budget(epochs=4, images=120, batch_size=24)
    assert (plan.budget.steps_per_epoch, plan.steps) == (5, 20)


@pytest.mark.parametrize(
    ("processes", "device_batch_size", "micro_batch", "accumulation"),
    [(1, None, 24, 1), (2, None, 12, 1), (4, None, 6, 1), (1, 6, 6, 4), (2, 6, 6, 2), (4, 6, 6, 1), (4, 100, 6, 1)],
)
def test_a_global_batch_divides_exactly_when_processes_and_micro_batches_share_it(
    processes: int, device_batch_size: int | None, micro_batch: int, accumulation: int
):
    plan = make_step_plan(settings(device_batch_size=device_batch_size), STRATEGY, 120, processes)
    assert (plan.micro_batch, plan.accumulation(plan.phases[0])) == (micro_batch, accumulation)
    assert plan.micro_batch * accumulation * processes == 24
    assert plan.steps == 20  # what is learned does not depend on it


@pytest.mark.parametrize(
    ("values", "images", "processes", "words"),
    [
        ({"batch_size": 24}, 23, 1, "--batch-size 24 exceeds the 23 training images"),
        ({"batch_size": 25}, 120, 2, "--batch-size 25 does not divide over 2 processes: try 24 or 26"),
        ({"batch_size": 2}, 120, 4, "--batch-size 2 does not divide over 4 processes: try 4 or 4"),
        ({"device_batch_size": 7}, 120, 1, "--device-batch-size 7: .*24 / 1 = 24 images.*try 6"),
        ({"device_batch_size": 5}, 120, 2, "--device-batch-size 5: .*24 / 2 = 12 images.*try 4"),
        ({"mixup": 0.4, "batch_size": 25}, 120, 1, r"25 images per step over 1 process\(es\) make micro-batches of 25"),
        ({"mixup": 0.4, "batch_size": 30}, 120, 2, r"30 images per step over 2 process\(es\) make micro-batches of 15"),
        (
            {"cutmix": 1, "device_batch_size": 3},
            120,
            2,
            r"24 images per step over 2 .* make micro-batches of 3, an odd",
        ),
    ],
)
def test_a_batch_is_refused_with_the_arithmetic_when_it_does_not_divide(values, images, processes, words):
    with pytest.raises(InputError, match=words):
        make_step_plan(settings(**values), STRATEGY, images, processes)


@pytest.mark.parametrize(
    "strategy", [STRATEGY, Progressive((16, 24, 32)), Simultaneous((16, 32)), Progressive((16, 32), ramp=True)], ids=str
)
def test_phases_add_up_to_the_budget_when_a_plan_is_made(strategy):
    plan = make_step_plan(settings(epochs=7), strategy, 130, 1)
    assert sum(phase.epochs for phase in plan.phases) == 7
    assert sum(phase.steps for phase in plan.phases) == plan.steps == 35
    assert [phase.index for phase in plan.phases] == list(range(len(plan.phases)))
    assert len(list(plan.epochs())) == 7


def test_the_plan_shows_its_arithmetic_when_described():
    plan = make_step_plan(settings(device_batch_size=6), Progressive((16, 32), (1,)), 130, 2)
    text = "\n".join(describe_steps(plan, Progressive((16, 32), (1,)), 130))
    for words in (
        "24 images per step = 2 process(es) x 6 images x 2 micro-batch(es)",
        "4 epochs x 5 steps = 20 steps; 10 of 130 images left out",
        "selection at 32px",
        "epochs 0-0, 5 steps at 16 px",
        "epochs 1-3, 15 steps at 32 px",
    ):
        assert words in text
