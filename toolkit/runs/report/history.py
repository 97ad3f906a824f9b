"""A run's metrics.csv as columns of numbers, for plots and tables. Does not use torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from toolkit.runs.metrics_row import MetricsRow, eval_column, evaluated_specs, raw_column, trained_parts
from toolkit.strategies.base import Metric


class Band(NamedTuple):
    """Epochs of one phase, `first` to `last`, and its training sizes, such as `16+32`."""

    first: float
    last: float
    sizes: str


@dataclass(frozen=True)
class History:
    """One value per epoch in each column, NaN if missing; `sizes` are training sizes, such as `16+32`."""

    columns: Mapping[str, np.ndarray]
    sizes: tuple[str, ...]
    phases: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def get(self, name: str) -> np.ndarray | None:
        """A column; None if it does not exist or holds no finite number."""
        values = self.columns.get(name)
        return values if values is not None and np.isfinite(values).any() else None

    @property
    def epochs(self) -> np.ndarray:
        """Counted from 1, as people do; the column counts from 0."""
        return self.columns.get("epoch", np.empty(0)) + 1

    def bands(self) -> list[Band]:
        """The phases; empty if there is only one."""
        starts = [i for i in range(len(self)) if i == 0 or self.phases[i] != self.phases[i - 1]]
        stretches = pairwise([*starts, len(self)])
        bands = [Band(self.epochs[start], self.epochs[end - 1], self.sizes[start]) for start, end in stretches]
        return bands if len(bands) > 1 else []

    def evaluated(self) -> list[str]:
        """The specs evaluated in any epoch, such as `32px`, in ascending size."""
        finite = [column for column in self.columns if self.get(column) is not None]
        return sorted(evaluated_specs(finite), key=size_of)

    def selected(self, spec: str, metric: Metric) -> np.ndarray | None:
        """The values that selected the best model: of averaged and raw weights, the better one in each epoch."""
        column = eval_column(spec, metric.name)
        both = [values for name in (column, raw_column(column)) if (values := self.get(name)) is not None]
        return (np.fmax if metric.higher_is_better else np.fmin).reduce(both) if both else None

    def is_raw(self, spec: str, metric: Metric, row: int) -> bool:
        """Whether that value is one of weights without averaging."""
        column = eval_column(spec, metric.name)
        averaged, raw = self.get(column), self.get(raw_column(column))
        return averaged is not None and raw is not None and metric.gain(raw[row], averaged[row]) > 0

    def trained(self) -> list[str]:
        """The sizes with their own training loss, ascending."""
        return sorted(trained_parts(self.columns), key=size_of)

    def per_epoch(self, cumulative: str) -> np.ndarray | None:
        """The increase of a running total in each epoch; None if the column is missing."""
        total = self.get(cumulative)
        return None if total is None else np.diff(total, prepend=0.0)


def read_history(rows: Sequence[MetricsRow]) -> History:
    """The rows of metrics.csv as columns."""
    lines = [row.columns() for row in rows]
    names = list(dict.fromkeys(name for line in lines for name in line if name not in ("sizes", "phase")))
    columns = {name: np.array([float(line.get(name, np.nan)) for line in lines]) for name in names}
    return History(columns, tuple(row.sizes_name for row in rows), tuple(row.phase for row in rows))


def size_of(name: str) -> tuple[float, str]:
    """Sort key: `16px` before `112px`; names that are not sizes come last."""
    found = re.fullmatch(r"(\d+)px", name)
    return (int(found[1]) if found else np.inf, name)
