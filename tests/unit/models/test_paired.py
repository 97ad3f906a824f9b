"""Paired differences: the interval holds the true difference as often as it promises, and the words for it."""

import numpy as np
import pytest

from toolkit.models.metrics import Predictions, accuracy, macro_f1
from toolkit.models.paired import Difference, accuracy_difference, bootstrap_differences


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.1, 2.0, "better"),
        (0.0, 2.0, "not worse"),
        (-0.9, -0.1, "not worse"),
        (-1.0, 3.0, "undecided"),
        (-3.0, 0.0, "undecided"),
        (-3.0, -0.1, "worse"),
    ],
)
def test_the_word_follows_from_the_interval(low: float, high: float, word: str):
    assert Difference((low + high) / 2, low, high).verdict == word


@pytest.mark.parametrize("images", [30, 200, 2000])
@pytest.mark.parametrize(("only_first", "only_second"), [(0.02, 0.02), (0.05, 0.15), (0.2, 0.3)])
def test_the_interval_of_accuracies_holds_the_true_difference_in_95_of_100_samples(
    images: int, only_first: float, only_second: float
):
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(images, [only_first, only_second, 1 - only_first - only_second], size=4000)
    truth, held = 100 * (only_second - only_first), 0
    for first, second, _ in drawn.tolist():
        found = accuracy_difference(images, first, second)
        held += found.low <= truth <= found.high
    assert held / len(drawn) > 0.94


def test_equal_models_on_few_images_leave_the_difference_open():
    assert accuracy_difference(20, 0, 0).verdict == "undecided"
    assert accuracy_difference(100_000, 0, 0).verdict == "not worse"


def test_the_largest_difference_is_100_points():
    found = accuracy_difference(10, 0, 10)
    assert (found.value, found.high) == (100, 100)


def models(images: int = 2000) -> tuple[Predictions, Predictions]:
    """Two models with 70 and 80% correct of five classes."""
    rng = np.random.default_rng(1)
    labels, ones = rng.integers(5, size=images), np.ones(images)
    wrong = (labels + rng.integers(1, 5, size=images)) % 5
    first, second = (np.where(rng.random(images) < share, labels, wrong) for share in (0.7, 0.8))
    return Predictions(labels, first, ones), Predictions(labels, second, ones)


def test_the_bootstrap_agrees_with_the_interval_of_accuracies():
    first, second = models()
    found = bootstrap_differences({"top1": accuracy}, first, second)["top1"]
    right = [model.predicted == model.labels for model in (first, second)]
    expected = accuracy_difference(2000, int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.3)


def test_the_bootstrap_draws_the_same_images_for_both_models_and_each_time():
    first, second = models(300)
    metrics = {"macro_f1": lambda predictions: macro_f1(predictions, 5)}
    assert bootstrap_differences(metrics, first, second) == bootstrap_differences(metrics, first, second)
    same = bootstrap_differences(metrics, first, first)["macro_f1"]
    assert (same.low, same.value, same.high) == (0, 0, 0)
