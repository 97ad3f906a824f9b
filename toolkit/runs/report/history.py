"""A run's metrics.csv as columns of numbers, for plots and tables. Free of torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from toolkit.runs.metrics_row import MetricsRow, evaluated_specs, trained_parts


class Band(NamedTuple):
    """Epochs of one phase, `first` to `last`, and its sizes as `16+32`."""

    first: float
    last: float
    sizes: str


@dataclass(frozen=True)
class History:
    """A value per epoch in each column, NaN where there is none; `sizes` such as `16+32`."""

    columns: Mapping[str, np.ndarray]
    sizes: tuple[str, ...]
    phases: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def get(self, name: str) -> np.ndarray | None:
        """A column, or None where it holds no number."""
        values = self.columns.get(name)
        return values if values is not None and np.isfinite(values).any() else None

    @property
    def epochs(self) -> np.ndarray:
        return self.columns.get("epoch", np.empty(0))

    def bands(self) -> list[Band]:
        """The phases, where there is more than one."""
        starts = [i for i in range(len(self)) if i == 0 or self.phases[i] != self.phases[i - 1]]
        stretches = pairwise([*starts, len(self)])
        bands = [Band(self.epochs[start], self.epochs[end - 1], self.sizes[start]) for start, end in stretches]
        return bands if len(bands) > 1 else []

    def evaluated(self) -> list[str]:
        """What was evaluated in any epoch, such as `32px`, by size."""
        specs = evaluated_specs(self.columns)
        return sorted((name for name in specs if self.get(f"{name}/top1") is not None), key=size_of)

    def trained(self) -> list[str]:
        """What has a training loss of its own, by size."""
        return sorted(trained_parts(self.columns), key=size_of)

    def per_epoch(self, cumulative: str) -> np.ndarray | None:
        """The increase of a running total in each epoch."""
        total = self.get(cumulative)
        return None if total is None else np.diff(total, prepend=0.0)


def read_history(rows: Sequence[MetricsRow]) -> History:
    """The rows of metrics.csv as columns."""
    lines = [row.columns() for row in rows]
    names = list(dict.fromkeys(name for line in lines for name in line if name not in ("sizes", "phase")))
    columns = {name: np.array([float(line.get(name, np.nan)) for line in lines]) for name in names}
    return History(columns, tuple(row.sizes_name for row in rows), tuple(row.phase for row in rows))


def size_of(name: str) -> tuple[float, str]:
    """Sorts `16px` before `112px`, and what is no size to the end."""
    found = re.fullmatch(r"(\d+)px", name)
    return (int(found[1]) if found else np.inf, name)
