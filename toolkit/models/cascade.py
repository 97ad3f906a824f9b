"""Cascades: predict at the smallest size, and at the next one only if the confidence is too low."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolkit.models.evaluator import Evaluator
from toolkit.models.metrics import Predictions, PredictionTable, accuracy
from toolkit.strategies.base import EvalSpec


@dataclass(frozen=True)
class Cascade:
    """An image exits at the first of `exits` whose top probability reaches `confidence`, at the latest at the last.

    A single exit is an ordinary prediction.
    """

    exits: tuple[EvalSpec, ...]
    confidence: float

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(sorted({size for spec in self.exits for size in spec.sizes}))

    def predict(self, evaluator: Evaluator, images: dict[int, Tensor]) -> tuple[Tensor, list[int]]:
        """N x C probabilities on the host, and each image's exit index; `images` as in `Evaluator.logits`."""
        task, count = evaluator.bound, len(next(iter(images.values())))
        exit_index, waiting, probabilities = [0] * count, torch.arange(count), None
        for exit_number, spec in enumerate(self.exits):
            logits = evaluator.logits({size: images[size][waiting] for size in spec.sizes})
            now = task.probabilities(task.average([logits[size] for size in spec.sizes])).cpu()
            probabilities = now if probabilities is None else probabilities.index_copy(0, waiting, now)
            for i in waiting.tolist():
                exit_index[i] = exit_number
            waiting = waiting[task.confidence(now) < self.confidence]
            if not len(waiting):
                break
        assert probabilities is not None
        return probabilities, exit_index


class CascadePredictions(NamedTuple):
    """Predictions of a cascade; `exit_index`: N, the exit of each image."""

    predictions: Predictions
    exit_index: np.ndarray

    def cost(self, costs: Sequence[float]) -> float:
        """Mean cost of an image; `costs`: the cost of each exit. An image pays for all exits up to its own."""
        return float(np.cumsum(costs)[self.exit_index].mean())


def apply_cascade(table: PredictionTable, specs: Sequence[str], confidence: float) -> CascadePredictions:
    """Predictions of a cascade with the exits `specs`, computed from saved predictions at each of them."""
    rows, readable = [table.specs.index(spec) for spec in specs], table.readable
    predicted, confidences = table.predicted[rows][:, readable], table.confidence[rows][:, readable]
    leaves = confidences >= confidence
    leaves[-1] = True
    exit_index = leaves.argmax(axis=0)
    image = np.arange(len(exit_index))
    chosen = Predictions(table.labels[readable], predicted[exit_index, image], confidences[exit_index, image])
    return CascadePredictions(chosen, exit_index)


def cheapest_confidence(table: PredictionTable, specs: Sequence[str], costs: Sequence[float], max_loss: float) -> float:
    """The confidence, a multiple of 0.005, at which a cascade costs least and loses at most `max_loss` points of top-1.

    1 if no confidence is good enough: then nearly every image reaches the last exit.
    """
    least = accuracy(table.of(specs[-1])) - max_loss
    tried = {level: apply_cascade(table, specs, level) for level in np.arange(1, 201) / 200}
    good = {level: found.cost(costs) for level, found in tried.items() if accuracy(found.predictions) >= least}
    return float(min(good, key=lambda level: (good[level], level))) if good else 1.0


def saving(cost: float, alone: float) -> str:
    """A mean cost relative to that of the last exit alone, such as `2.50x less` or `1.22x more`."""
    return f"{alone / cost:.2f}x less" if cost <= alone else f"{cost / alone:.2f}x more"
