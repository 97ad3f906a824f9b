"""Learning rate and training loss within the epochs, for plots. Does not use torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.runs.metrics_row import MetricsRow
from toolkit.runs.step_log import StepRow

MOST_POINTS = 600  # of a plot, which is 300 px wide


@dataclass(frozen=True)
class StepHistory:
    """One value per point: epochs done, learning rate, and the mean training loss since the point before."""

    epochs: np.ndarray
    lr: np.ndarray
    train_loss: np.ndarray


def read_step_history(steps: Sequence[StepRow], rows: Sequence[MetricsRow]) -> StepHistory:
    """Points within the epochs from steps.csv, and those at their ends from metrics.csv; an earlier run has only these.

    Only points inside closed epochs count: what follows may be trained again.
    """
    ends = {row.epoch + 1.0: (row.metrics.get("lr", np.nan), row.metrics.get("train_loss", np.nan)) for row in rows}
    last = max(ends, default=0.0)
    points = {row.epoch: (row.lr, row.train_loss) for row in steps if row.epoch < last} | ends
    epochs = np.array(sorted(points))
    epochs = epochs[:: -(-len(epochs) // MOST_POINTS) or 1]
    lr, means = np.array([points[epoch] for epoch in epochs], dtype=float).reshape(-1, 2).T
    return StepHistory(epochs, lr, _between(epochs, means))


def _between(epochs: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The mean between each two points, from the means since the epoch of each began."""
    began = np.ceil(epochs) - 1
    done = epochs - began  # share of the epoch
    first = np.diff(began, prepend=-1) > 0
    before = np.where(first, 0.0, np.roll(done, 1))
    mean_before = np.where(first, 0.0, np.roll(means, 1))
    return (means * done - mean_before * before) / (done - before)
