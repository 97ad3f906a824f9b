"""The plots of a report: which of their labels stand, and what their axes tell."""

import re

import numpy as np
import pytest

from toolkit.runs.report.plots import Line, _apart, over_epochs, over_sizes


def words(svg: str) -> list[str]:
    """Every text of a plot."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def percents(svg: str) -> list[float]:
    """The ticks of an axis in percent."""
    return [float(text[:-1]) for text in words(svg) if text.endswith("%")]


@pytest.mark.parametrize(
    ("sizes", "named", "timed"),
    [
        ((20, 32, 64), (20, 32, 64), (20, 32, 64)),
        ((64, 96, 112, 160, 224), (64, 96, 112, 160, 224), (64, 112, 160, 224)),
        ((16, 20, 24, 28, 32, 40, 48, 56, 64), (16, 20, 24, 28, 32, 40, 48, 56, 64), (16, 24, 32, 48, 64)),
        (tuple(range(128, 256, 8)), (128, 144, 160, 176, 200, 224, 248), (144, 176, 208, 248)),
    ],
)
def test_labels_are_left_out_from_the_largest_size_down_when_they_would_meet(sizes, named, timed):
    plot = over_sizes(sizes, ["#000000"] * len(sizes), {"validation": [50.0] * len(sizes)}, [float(s) for s in sizes])
    assert [int(word) for word in words(plot) if word.isdigit()] == [*named]
    assert [float(word.removesuffix(" ms")) for word in words(plot) if word.endswith(" ms")] == [*timed]


def test_a_time_is_said_in_plain_digits_when_it_is_long():
    plot = over_sizes((32, 64, 128), ["#000000"] * 3, {"validation": [50.0] * 3}, [0.1234, 98.76, 2345.6])
    assert [word for word in words(plot) if word.endswith(" ms")] == ["0.123 ms", "98.8 ms", "2,346 ms"]


@pytest.mark.parametrize("values", [(100.0, 100.0), (96.0, 100.0), (0.0, 0.0), (0.0, 3.0), (0.0, 100.0), (50.0, 50.0)])
def test_an_axis_in_percent_has_no_tick_beyond_0_and_100_and_none_too_fine_when_figures_are_extreme(values):
    lines, epochs = [Line("", np.array(values))], np.arange(2.0)
    for ticks in (
        percents(over_sizes((32, 64), ["#000000"] * 2, {"validation": values}, [None, None])),
        percents(over_epochs("Accuracy", epochs, lines, [], "%")),
    ):
        assert len(ticks) >= 2
        assert 0 <= min(ticks) < max(ticks) <= 100
        assert min(np.diff(ticks)) >= 0.5
    share = [Line("", np.array([90.0, 918.0]))]  # of a peak that was measured while something else ran
    assert percents(over_epochs("Share", epochs, share, [], "%", floor=True)) == [0, 300, 600, 900]


def test_labels_are_pushed_apart_around_their_middle_when_they_would_meet():
    assert dict(_apart([0.0, 100.0, 104.0], 10)) == {0: 0.0, 1: 97.0, 2: 107.0}
    spread = dict(_apart([50.0, 50.0, 50.0, 51.0], 14))
    assert sorted(spread.values()) == pytest.approx([29.25, 43.25, 57.25, 71.25])
