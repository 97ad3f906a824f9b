"""Which epoch is the best, for metrics where more is better and where less is."""

import pytest

from toolkit import Settings
from toolkit.models.classification import Classification
from toolkit.runs.progress import Progress
from toolkit.training.early_stopping import select


def chosen(name: str, values: list[float], counts: bool = True, **more) -> tuple[list[bool], Progress]:
    """Whether each epoch was the best so far, and the progress after them."""
    progress, metric = Progress(), Classification.metric(name)
    return [select(Settings(**more), progress, metric, value, counts) for value in values], progress


@pytest.mark.parametrize(("name", "values"), [("macro_f1", [10, 30, 30, 20, 31]), ("loss", [3, 1, 1, 2, 0.9])])
def test_only_a_better_value_is_the_best_whichever_way_is_better(name: str, values: list[float]):
    best, progress = chosen(name, values)
    assert best == [True, True, False, False, True]
    assert progress.best_score == values[-1]


@pytest.mark.parametrize(("name", "values"), [("top1", [50, 50.5, 50.9]), ("loss", [2, 1.5, 1.1])])
def test_patience_counts_gains_below_min_delta_as_none(name: str, values: list[float]):
    best, progress = chosen(name, values, patience=2, min_delta=1)
    assert best == [True, True, True]
    assert progress.stopped_early


def test_patience_waits_for_the_phase_that_counts():
    assert not chosen("top1", [50, 40, 40, 40], counts=False, patience=2)[1].stopped_early
    assert chosen("top1", [50, 40, 40, 40], patience=2)[1].stopped_early  # control


def test_the_rate_is_halved_after_two_epochs_of_more_loss():
    assert chosen("loss", [1, 2, 2], scheduler="plateau")[1].plateau_factor == 0.5
    assert chosen("top1", [1, 2, 2.5], scheduler="plateau")[1].plateau_factor == 1


def test_any_number_is_better_than_nan():
    best, progress = chosen("loss", [float("nan"), float("nan"), 2, float("nan"), 1])
    assert best == [True, False, True, False, True]
    assert progress.reference_score == 1
