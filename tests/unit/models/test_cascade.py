"""Cascades: which exit predicts, what it costs, how the confidence is chosen."""

import numpy as np
import pytest

from toolkit.models.cascade import apply_cascade, cheapest_confidence
from toolkit.models.metrics import PredictionTable, accuracy

SPECS, COSTS = ("small", "middle", "large"), (1.0, 4.0, 16.0)
PREDICTED = np.array([[0, 0, 0, 0, -1], [1, 1, 1, 1, -1], [2, 2, 2, 2, -1]])  # the class names the exit
CONFIDENCES = np.array([[0.9, 0.8, 0.3, 0.1, 0], [0.2, 0.9, 0.8, 0.3, 0], [0.2, 0.2, 0.2, 0.2, 0]])
LABELS = np.array([0, 1, 1, 2, 0])
TABLE = PredictionTable.of_classes(
    SPECS, LABELS, PREDICTED, CONFIDENCES, CONFIDENCES
)  # the last image could not be read


@pytest.mark.parametrize(
    ("confidence", "predicted", "cost", "correct"),
    [
        (0.1, [0, 0, 0, 0], 1.0, 25.0),
        (0.8, [0, 0, 1, 2], (1 + 1 + 5 + 21) / 4, 75.0),  # equal to the threshold is enough
        (0.81, [0, 1, 2, 2], (1 + 5 + 21 + 21) / 4, 75.0),
        (1.0, [2, 2, 2, 2], 21.0, 25.0),
    ],
)
def test_an_image_leaves_at_the_first_exit_that_is_confident_enough(
    confidence: float, predicted: list[int], cost: float, correct
):
    found = apply_cascade(TABLE, SPECS, confidence)
    assert found.predictions.predicted.tolist() == predicted
    assert found.predictions.labels.tolist() == [0, 1, 1, 2]
    assert found.cost(COSTS) == pytest.approx(cost)
    assert accuracy(found.predictions) == correct


def test_exits_may_be_a_part_of_the_saved_specs():
    assert apply_cascade(TABLE, ("small", "large"), 0.85).predictions.predicted.tolist() == [0, 2, 2, 2]


def test_the_confidence_is_the_cheapest_that_loses_no_more_than_allowed():
    labels = np.array([0, 0, 1, 1])
    predicted = np.array([[0, 0, 0, 1], [0, 0, 1, 1]])  # the small one is wrong on the third image
    confidences = np.array([[0.9, 0.8, 0.6, 0.7], [0.9] * 4])
    table = PredictionTable.of_classes(("small", "large"), labels, predicted, confidences, confidences)
    assert cheapest_confidence(table, table.specs, (1.0, 4.0), 0.0) == 0.605
    assert cheapest_confidence(table, table.specs, (1.0, 4.0), 24.9) == 0.605
    assert cheapest_confidence(table, table.specs, (1.0, 4.0), 25.0) == 0.005


def test_nearly_all_images_take_the_last_exit_when_no_confidence_keeps_the_loss():
    predicted = np.array([[1, 1], [0, 0]])  # the small one is always wrong and always certain
    confidences = np.ones((2, 2))
    table = PredictionTable.of_classes(("small", "large"), np.zeros(2, dtype=int), predicted, confidences, confidences)
    assert cheapest_confidence(table, table.specs, (1.0, 4.0), 0.5) == 1.0
