"""The learning rate's shape."""

import pytest

from toolkit import Settings
from toolkit.strategies.schedule import Schedule
from toolkit.system.errors import InputError
from toolkit.training.schedules import Constant, Cosine, Plateau, WarmupStableDecay, make_schedule

EVERY = (Cosine, Constant, Plateau, WarmupStableDecay)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0, 0), (0.05, 0.5), (0.1, 1), (0.325, 0.853553391), (0.55, 0.5), (0.775, 0.146446609), (1, 0)],
)
def test_cosine_rises_and_falls_when_warmup_is_a_tenth(progress: float, expected: float):
    assert Cosine(0.1).factor(progress) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("progress", "expected"), [(0, 1), (0.5, 0.5), (1, 0)])
def test_cosine_starts_at_the_peak_when_there_is_no_warmup(progress: float, expected: float):
    assert Cosine().factor(progress) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("progress", "expected"), [(0, 0), (0.05, 0.5), (0.1, 1), (0.5, 1), (1, 1)])
def test_plateau_stays_at_the_peak_when_warmup_is_over(progress: float, expected: float):
    assert Plateau(0.1).factor(progress) == pytest.approx(expected)


def test_plateau_is_at_the_peak_when_there_is_no_warmup():
    assert Constant().factor(0) == Constant().factor(1) == 1


@pytest.mark.parametrize("kind", EVERY[:3])
def test_the_rate_only_rises_when_warmup_takes_the_whole_run(kind: type[Schedule]):
    rates = [kind(1.0).factor((step + 0.5) / 10) for step in range(10)]
    assert rates == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95])


@pytest.mark.parametrize(
    ("progress", "expected"), [(0, 0), (0.05, 0.5), (0.1, 1), (0.8, 1), (0.85, 0.5), (0.9, 1 - 0.5**0.5), (1, 0)]
)
def test_the_rate_is_stable_and_then_falls_as_a_root(progress: float, expected: float):
    assert WarmupStableDecay(0.1).factor(progress) == pytest.approx(expected, abs=1e-9)


def test_a_floor_is_where_cosine_ends():
    assert Cosine(0.1, floor=0.25).factor(1) == pytest.approx(0.25)
    assert Cosine(0.1, floor=0.25).factor(0.55) == pytest.approx(0.625)


@pytest.mark.parametrize("name", ["cosine", "constant", "wsd", "plateau"])
def test_the_settings_name_a_schedule_with_its_arguments(name: str):
    made = make_schedule(Settings(scheduler=name, epochs=10, warmup_epochs=1))
    assert made.warmup == 0.1
    assert make_schedule(Settings(scheduler="wsd", epochs=10, scheduler_kwargs=["decay=0.5"])).decay == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("cosine", {"decay": 0.1}, "--scheduler-kwargs do not fit cosine: .*decay"),
        ("cosine", {"floor": 2}, "floor=2: a share of the peak"),
        ("wsd", {"decay": 0.95}, "decay=0.95: with 0.1 of the run for the warm-up"),
        ("wsd", {"decay": -1}, "decay=-1: a share of the run"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name: str, kwargs: dict[str, float], reason: str):
    with pytest.raises(InputError, match=reason):
        make_schedule(Settings(scheduler=name, scheduler_kwargs=kwargs, epochs=10, warmup_epochs=1))
