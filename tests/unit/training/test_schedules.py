"""The learning rate's shape."""

import pytest

from toolkit.training.schedules import SHAPES, constant, cosine


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0, 0), (0.05, 0.5), (0.1, 1), (0.325, 0.853553391), (0.55, 0.5), (0.775, 0.146446609), (1, 0)],
)
def test_cosine_rises_and_falls_when_warmup_is_a_tenth(progress: float, expected: float):
    assert cosine(progress, 0.1) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("progress", "expected"), [(0, 1), (0.5, 0.5), (1, 0)])
def test_cosine_starts_at_the_peak_when_there_is_no_warmup(progress: float, expected: float):
    assert cosine(progress, 0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("progress", "expected"), [(0, 0), (0.05, 0.5), (0.1, 1), (0.5, 1), (1, 1)])
def test_plateau_stays_at_the_peak_when_warmup_is_over(progress: float, expected: float):
    assert SHAPES["plateau"](progress, 0.1) == pytest.approx(expected)


def test_plateau_is_at_the_peak_when_there_is_no_warmup():
    assert constant(0, 0) == constant(1, 0) == 1


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_rate_only_rises_when_warmup_takes_the_whole_run(shape):
    rates = [shape((step + 0.5) / 10, 1.0) for step in range(10)]
    assert rates == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95])
