"""The plots of a report: which of their labels stand, and what their axes tell."""

import re
from pathlib import Path

import numpy as np
import pytest

from toolkit.runs.metrics_row import MetricsRow
from toolkit.runs.report.plots import Line, _apart, over_epochs, over_sizes
from toolkit.runs.report.step_history import MOST_POINTS, read_step_history
from toolkit.runs.step_log import StepRow, add_steps, read_steps, truncate_steps


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
    assert percents(over_epochs("Share", epochs, share, [], "%", floor=True)) == [0, 250, 500, 750, 1000]


def test_labels_are_pushed_apart_around_their_middle_when_they_would_meet():
    assert dict(_apart([0.0, 100.0, 104.0], 10)) == {0: 0.0, 1: 97.0, 2: 107.0}
    spread = dict(_apart([50.0, 50.0, 50.0, 51.0], 14))
    assert sorted(spread.values()) == pytest.approx([29.25, 43.25, 57.25, 71.25])


@pytest.mark.parametrize(("epochs", "ticks"), [(2, [0, 1, 2]), (4, [0, 1, 2, 3, 4]), (17, [0, 3, 6, 9, 12, 15, 17])])
def test_axes_end_at_ticks(epochs: int, ticks: list[float]):
    plot = over_epochs("Loss", np.arange(epochs) + 1.0, [Line("", np.linspace(0.3, 4.7, epochs))], [])
    numbers = [float(word) for word in words(plot) if word != "epoch"]
    assert numbers == [*ticks, 0, 1.5, 3, 4.5, 6]


def epoch_row(epoch: int, lr: float, train_loss: float) -> MetricsRow:
    return MetricsRow(epoch, 4 * (epoch + 1), 40 * (epoch + 1), 0, (32,), {"lr": lr, "train_loss": train_loss})


def test_the_loss_within_epochs_is_that_between_two_rows():
    losses = [8.0, 6.0, 4.0, 2.0, 3.0, 1.0, 1.0, 1.0]  # of each step, four an epoch
    steps = [StepRow(2, 0.5, 0.1, 7.0), StepRow(6, 1.5, 0.2, 2.0)]
    rows = [epoch_row(0, 0.15, 5.0), epoch_row(1, 0.25, 1.5)]
    found = read_step_history(steps, rows)
    np.testing.assert_array_equal(found.epochs, [0.5, 1, 1.5, 2])
    np.testing.assert_array_equal(found.lr, [0.1, 0.15, 0.2, 0.25])
    np.testing.assert_allclose(found.train_loss, np.mean(np.reshape(losses, (4, 2)), axis=1))
    np.testing.assert_allclose(read_step_history(steps[1:], rows).train_loss, [5, 2, 1])  # the first half is missing
    assert read_step_history([StepRow(10, 2.5, 0.1, 9.0)], rows).epochs[-1] == 2  # not closed: may be trained again
    assert len(read_step_history([], []).epochs) == 0
    many = [StepRow(i, i / 5000, 0.1, 1.0) for i in range(1, 5000)]
    assert MOST_POINTS / 2 < len(read_step_history(many, rows[:1]).epochs) <= MOST_POINTS


def test_rows_of_steps_are_read_as_they_were_written(tmp_path: Path):
    file, rows = tmp_path / "steps.csv", [StepRow(10, 0.5, 1 / 3, 2.5), StepRow(20, 1.0 + 1 / 7, 1e-9, 2.25)]
    assert read_steps(file) == []
    truncate_steps(file, 5)
    assert not file.exists()
    add_steps(file, rows[:1])
    add_steps(file, rows[1:])
    file.write_text(file.read_text() + "30,1.2")  # half a line
    assert read_steps(file) == rows
    truncate_steps(file, 19)
    assert read_steps(file) == rows[:1]
