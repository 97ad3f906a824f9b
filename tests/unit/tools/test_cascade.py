"""Going up through sizes while unsure: what is said, what it costs, how the confidence is chosen."""

import numpy as np
import pytest

from toolkit.models.metrics import Predictions, accuracy, cascade, cheapest_confidence

FIGURES, COSTS = ("small", "middle", "large"), (1.0, 4.0, 16.0)
SAID = np.array([[0, 0, 0, 0, -1], [1, 1, 1, 1, -1], [2, 2, 2, 2, -1]])  # the class tells which figure has the word
SURE = np.array([[0.9, 0.8, 0.3, 0.1, 0], [0.2, 0.9, 0.8, 0.3, 0], [0.2, 0.2, 0.2, 0.2, 0]])
LABELS = np.array([0, 1, 1, 2, 0])
PREDICTIONS = Predictions(FIGURES, LABELS, SAID, SURE, SURE)  # the last image could not be read


@pytest.mark.parametrize(
    ("confidence", "said", "cost", "right"),
    [
        (0.1, [0, 0, 0, 0], 1.0, 25.0),
        (0.8, [0, 0, 1, 2], (1 + 1 + 5 + 21) / 4, 75.0),  # as sure as asked for is enough
        (0.81, [0, 1, 2, 2], (1 + 5 + 21 + 21) / 4, 75.0),
        (1.0, [2, 2, 2, 2], 21.0, 25.0),
    ],
)
def test_the_first_figure_that_is_sure_enough_has_the_word(confidence: float, said: list[int], cost: float, right):
    found = cascade(PREDICTIONS, FIGURES, confidence)
    assert found.answers.said.tolist() == said
    assert found.answers.labels.tolist() == [0, 1, 1, 2]
    assert found.cost(COSTS) == pytest.approx(cost)
    assert accuracy(found.answers) == right


def test_figures_may_be_left_out_when_a_cascade_is_made_of_some():
    assert cascade(PREDICTIONS, ("small", "large"), 0.85).answers.said.tolist() == [0, 2, 2, 2]


def test_the_confidence_is_the_cheapest_that_loses_no_more_than_allowed():
    labels = np.array([0, 0, 1, 1])
    said = np.array([[0, 0, 0, 1], [0, 0, 1, 1]])  # the small one errs on the third image, of which it is 0.6 sure
    sure = np.array([[0.9, 0.8, 0.6, 0.7], [0.9] * 4])
    predictions = Predictions(("small", "large"), labels, said, sure, sure)
    assert cheapest_confidence(predictions, predictions.figures, (1.0, 4.0), 0.0) == 0.605
    assert cheapest_confidence(predictions, predictions.figures, (1.0, 4.0), 24.9) == 0.605
    assert cheapest_confidence(predictions, predictions.figures, (1.0, 4.0), 25.0) == 0.005


def test_nearly_all_go_up_when_no_confidence_keeps_the_loss():
    said = np.array([[1, 1], [0, 0]])  # the small one is always wrong, and always certain
    sure = np.ones((2, 2))
    predictions = Predictions(("small", "large"), np.zeros(2, dtype=int), said, sure, sure)
    assert cheapest_confidence(predictions, predictions.figures, (1.0, 4.0), 0.5) == 1.0
