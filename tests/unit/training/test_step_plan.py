"""The arithmetic of a run."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from toolkit import InputError, Progressive, Settings, Simultaneous, SingleScale
from toolkit.strategies import Finish, HeadFirst, ProgressiveCompute, ProgressiveSimultaneous
from toolkit.strategies.base import Budget, Phase, Step
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
        "epochs 1-1, 5 steps at 16 px",
        "epochs 2-4, 15 steps at 32 px",
    ):
        assert words in text


@dataclass(frozen=True)
class Altered(SingleScale):
    """Two phases at 16 and 32 px, the first with half batches, and changes to them and their steps."""

    changes: tuple[dict[str, object], dict[str, object]] = ({}, {})
    change_step: Callable[[Phase, int, Step], Step] = lambda phase, i, step: step

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        steps, epochs = budget.steps_per_epoch, budget.epochs - 1
        first = Phase(0, 1, 2 * steps, (16,), budget.batch_size // 2)
        second = Phase(1, epochs, epochs * steps, (16, 32), budget.batch_size)
        return replace(first, **self.changes[0]), replace(second, **self.changes[1])

    def step(self, phase: Phase, i: int) -> Step:
        return self.change_step(phase, i, Step(phase.sizes, phase.batch_size))


def changed_at(place: int, at: int, **values: object) -> Altered:
    """Another step `at` of the phase at `place`."""

    def change(phase: Phase, i: int, step: Step) -> Step:
        return replace(step, **values) if (phase.index, i) == (place, at) else step

    return Altered(32, change_step=change)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (
            changed_at(1, 7, batch_size=12),
            r"Altered.step: step 7 of phase 1 has 12 images: the phase has batch_size 24",
        ),
        (
            changed_at(0, 9, sizes=(32,)),
            r"Altered.step: step 9 of phase 0 has sizes \(32,\): the phase has only \(16,\)",
        ),
        (changed_at(1, 0, sizes=(32, 16)), r"step 0 of phase 1 has sizes \(32, 16\): at least one, in ascending order"),
        (changed_at(1, 0, sizes=(16, 16)), r"step 0 of phase 1 has sizes \(16, 16\): at least one, in ascending order"),
        (changed_at(1, 0, sizes=()), r"step 0 of phase 1 has sizes \(\): at least one, in ascending order"),
        (Altered(32, changes=({"batch_size": 0}, {})), "Altered.phases: phase 0 has batch_size 0: 1 or more"),
        (Altered(32, changes=({}, {"regularization": -0.5})), "phase 1 has regularization -0.5: 0 or more"),
    ],
)
def test_a_strategy_is_refused_by_name_when_a_step_does_not_fit_its_phase(strategy: Altered, words: str):
    assert make_step_plan(settings(), Altered(32), 120, 1).steps == 10 + 15  # control
    with pytest.raises(InputError, match=words):
        make_step_plan(settings(), strategy, 120, 1)


def test_the_plan_shows_the_regularization_of_a_phase_where_it_is_not_all():
    strategy = Progressive((16, 32), (1,), regularization_from=1 / 3)
    *_, first, last = describe_steps(make_step_plan(settings(), strategy, 120, 1), strategy, 120)
    assert first.endswith("epochs 1-1, 5 steps at 16 px, 33% of the regularization")
    assert last.endswith("epochs 2-4, 15 steps at 32 px")


def test_steps_of_a_long_phase_are_checked_at_its_ends_only():
    asked: list[int] = []

    def asking(phase: Phase, i: int, step: Step) -> Step:
        asked.append(i)
        return step

    make_step_plan(settings(epochs=20_000, batch_size=120), Altered(32, change_step=asking), 120, 1)
    assert asked == [0, 1, 0, 19_998]


@pytest.mark.parametrize(
    ("values", "batch", "processes", "words"),
    [
        ({}, 9, 2, "^Altered.phases: phase 0: batch_size 9 does not divide over 2 processes: try 8 or 10"),
        ({"device_batch_size": 8}, 12, 1, "^Altered.phases: phase 0: --device-batch-size 8: .*12 / 1 = 12 .*try 6"),
        ({"mixup": 0.4}, 9, 1, "^Altered.phases: phase 0: --mixup .*9 images per step.*: choose batch_size and"),
    ],
)
def test_a_batch_of_a_phase_is_refused_by_the_name_of_the_strategy(values, batch: int, processes: int, words: str):
    strategy = Altered(32, changes=({"batch_size": batch}, {}))
    with pytest.raises(InputError, match=words):
        make_step_plan(settings(**values), strategy, 120, processes)


UNCOUNTED = {"counts_for_patience": False}


@pytest.mark.parametrize(
    ("changes", "place"),
    [(({}, {}), 1), (({}, UNCOUNTED), 0), ((UNCOUNTED, {}), 1), ((UNCOUNTED, UNCOUNTED), None)],
)
def test_patience_follows_the_last_phase_that_counts(changes, place: int | None):
    plan = make_step_plan(settings(), Altered(32, changes=changes), 120, 1)
    assert plan.patience_phase is (None if place is None else plan.phases[place])


@pytest.mark.parametrize(
    ("values", "flag"), [({"patience": 3}, "--patience"), ({"scheduler": "plateau"}, "--scheduler plateau")]
)
def test_patience_is_refused_when_no_phase_counts_for_it(values, flag: str):
    make_step_plan(settings(**values), Altered(32, changes=({}, UNCOUNTED)), 120, 1)  # control
    with pytest.raises(InputError, match=f"{flag} would be ignored: no phase of Altered counts for it"):
        make_step_plan(settings(**values), Altered(32, changes=(UNCOUNTED, UNCOUNTED)), 120, 1)


def test_batches_are_described_as_the_phases_have_them():
    plan = make_step_plan(settings(device_batch_size=6), Altered(32), 120, 1)
    text = "\n".join(describe_steps(plan, Altered(32), 120))
    for words in (
        "12 images per step = 1 process(es) x 6 images x 2 micro-batch(es)",
        "phase 0   epochs 1-1, 10 steps at 16 px",
        "phase 1   epochs 2-4, 15 steps of 24 images at 16+32 px",
    ):
        assert words in text


def rates(strategy, warmup: float = 0.0) -> list[float]:
    """Where the schedule stands at each step of 12 epochs of 10 steps."""
    plan = make_step_plan(settings(epochs=12, batch_size=10), strategy, 100, 1)
    return [plan.schedule_progress(step, warmup) for step in range(plan.steps)]


@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_the_schedule_follows_the_images_of_the_run_when_phases_are_alike(warmup: float):
    expected = [(step + 0.5) / 120 for step in range(120)]
    assert rates(SingleScale(16), warmup) == expected
    assert rates(Progressive((16, 24)), warmup) == expected


def test_the_schedule_follows_the_compute_when_stages_have_the_same():
    found = rates(ProgressiveCompute((16, 32)))  # 10 epochs at a quarter of the cost, and 2
    assert found[49] == pytest.approx(49.5 / 4 / (100 / 4 + 20))
    assert found[99] == pytest.approx(99.5 / 4 / 45)
    assert found[100] == pytest.approx((100 / 4 + 0.5) / 45)
    warm = rates(ProgressiveCompute((16, 32)), warmup=0.1)
    assert warm[11] == pytest.approx(11.5 / 120)  # the warm-up is a share of the images
    assert warm[12] == pytest.approx(0.1 + 0.9 * (0.5 / 4) / (88 / 4 + 20))
    assert warm == sorted(warm)


def test_the_rate_stays_at_its_peak_until_all_sizes_come_together():
    found = rates(ProgressiveSimultaneous((16, 24, 32)), warmup=0.1)
    assert found[:12] == [(step + 0.5) / 120 for step in range(12)]
    assert found[12:80] == [0.1] * 68
    assert found[80] == pytest.approx(0.1 + 0.9 * 0.5 / 40)
    assert found[119] == pytest.approx(0.1 + 0.9 * 39.5 / 40)


def test_the_schedule_ends_before_a_finish_and_begins_again_after_its_warm_up():
    found = rates(Finish(SingleScale(16), 24, 2), warmup=0.1)
    assert found[:12] == [(step + 0.5) / 120 for step in range(12)]  # the warm-up is a share of the whole run
    assert found[12:100] == pytest.approx([0.1 + 0.9 * (step + 0.5) / 88 for step in range(88)])
    assert found[100:] == pytest.approx([0.1 + 0.9 * (step + 0.5) / 20 for step in range(20)])


@pytest.mark.parametrize("strategy", [SingleScale(16), ProgressiveCompute((16, 32)), Progressive((16, 24))])
def test_the_schedule_with_its_warm_up_begins_behind_the_epochs_of_the_head(strategy):
    found = rates(HeadFirst(strategy, 2), warmup=0.1)
    assert found[:20] == [0.1] * 20  # the peak
    assert found[20:32] == [(step + 0.5) / 120 for step in range(12)]  # the warm-up has the length that was asked for
    assert found[20:] == sorted(found[20:])
    assert 0.98 < found[-1] < 1
    if isinstance(strategy, SingleScale | Progressive):
        assert found[32:] == pytest.approx([0.1 + 0.9 * (step + 0.5) / 88 for step in range(88)])
    cold = rates(HeadFirst(strategy, 2))
    assert cold[:20] == [0.0] * 20
    assert 0 < cold[20] < 0.01


def test_the_schedule_between_the_head_and_a_finish_is_whole():
    found = rates(Finish(HeadFirst(SingleScale(16), 2), 24, 2), warmup=0.1)
    assert found[:20] == [0.1] * 20
    assert found[32:100] == pytest.approx([0.1 + 0.9 * (step + 0.5) / 68 for step in range(68)])
    assert found[100:] == pytest.approx([0.1 + 0.9 * (step + 0.5) / 20 for step in range(20)])


def test_a_warm_up_is_refused_when_it_would_not_end_behind_the_head():
    strategy = Finish(HeadFirst(SingleScale(16), 3), 24, 1)
    with pytest.raises(
        InputError, match=r"--warmup-epochs 2 must be smaller than the 2 epoch\(s\) behind the 3 of --head"
    ):
        make_step_plan(settings(epochs=6, warmup_epochs=2), strategy, 120, 1)
    make_step_plan(settings(epochs=6, warmup_epochs=1.5), strategy, 120, 1)


def test_the_plan_tells_that_the_head_learns_alone_at_a_held_rate():
    lines = describe_steps(make_step_plan(settings(), HeadFirst(STRATEGY, 1), 120, 1), HeadFirst(STRATEGY, 1), 120)
    assert lines[-2].endswith("at 32 px, only head learns, learning rate x 2, held")
    assert lines[-1].endswith("at 32 px")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"patience": 3}, "--patience would be ignored: it follows the last phase, a finish of 2 epoch"),
        ({"scheduler": "plateau"}, "--scheduler plateau would be ignored: .* a finish of 2 epoch"),
    ],
)
def test_patience_and_plateau_are_refused_when_only_a_finish_would_count(values: dict, words: str):
    with pytest.raises(InputError, match=words):
        make_step_plan(settings(epochs=12, **values), Finish(SingleScale(16), 24, 2), 120, 1)
    make_step_plan(settings(epochs=12, patience=1), Finish(SingleScale(16), 24, 2), 120, 1)
