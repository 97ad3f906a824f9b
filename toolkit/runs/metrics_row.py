"""One row of metrics.csv: the results of an epoch, and the names of its columns."""

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from toolkit.models.evaluation import Score
from toolkit.runs import earlier

PLACE = ("epoch", "step", "images_seen", "phase", "sizes")  # the first columns
Number = int | float
T = TypeVar("T")


def eval_column(spec: str, metric: str) -> str:
    """The column of one metric of an eval spec, such as `64px/top1`."""
    return f"{spec}/{metric}"


def eval_columns(scores: Mapping[str, Score]) -> dict[str, float]:
    """Metrics of each eval spec by column."""
    return {
        eval_column(spec, metric): value for spec, score in scores.items() for metric, value in score.metrics().items()
    }


def all_eval_columns(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, float]:
    """Metrics of each of several weights: the first under plain columns, others such as `raw/64px/top1`."""
    first, *others = scores
    columns = eval_columns(scores[first])
    for name in others:
        columns |= {raw_column(column, name): value for column, value in eval_columns(scores[name]).items()}
    return columns


def raw_column(column: str, weights: str = "raw") -> str:
    """The column of the same metric without averaging, such as `raw/64px/top1`."""
    return f"{weights}/{column}"


def train_column(spec: str) -> str:
    """The column of the training loss of one size, such as `train_loss/64px`."""
    return f"train_loss/{spec}"


def train_columns(parts: Mapping[str, T]) -> dict[str, T]:
    """The parts of a training loss by column: `loss/64px` becomes `train_loss/64px`."""
    return {f"train_{part}": value for part, value in parts.items()}


def evaluated_specs(columns: Iterable[str]) -> list[str]:
    """The eval specs that have a column."""
    found = [column.split("/")[0] for column in columns if re.fullmatch(r"(?!train_)[^/]+/[^/]+", column)]
    return list(dict.fromkeys(found))


def trained_parts(columns: Iterable[str]) -> list[str]:
    """The sizes that have a training loss of their own."""
    prefix = train_column("")
    return [column.removeprefix(prefix) for column in columns if column.startswith(prefix)]


@dataclass(frozen=True)
class MetricsRow:
    """An epoch: optimizer steps and images since the run began, phase, training sizes in px, and metrics by column."""

    epoch: int
    step: int
    images_seen: int
    phase: int
    sizes: tuple[int, ...]
    metrics: Mapping[str, Number]

    @property
    def sizes_name(self) -> str:
        """Such as `16+32`."""
        return "+".join(map(str, self.sizes))

    def columns(self) -> dict[str, Any]:
        """Every cell by column, in the order of the file."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "images_seen": self.images_seen,
            "phase": self.phase,
            "sizes": self.sizes_name,
            **self.metrics,
        }

    @classmethod
    def from_cells(cls, cells: Mapping[str, str | None]) -> "MetricsRow":
        """Parse a line of the file. Drops metrics that are not numbers; raises ValueError if the epoch is missing."""
        now = {earlier.KEYS.get(name, name): text for name, text in cells.items()}
        if not (now.get("epoch") or "").isdecimal():
            raise ValueError(f"epoch {now.get('epoch')!r} is not a number")
        sizes = (now.get("sizes") or "").split("+")
        numbers = {name: number(text or "") for name, text in now.items() if name not in PLACE and name is not None}
        return cls(
            epoch=int(now["epoch"] or 0),
            step=int(number(now.get("step") or "") or 0),
            images_seen=int(number(now.get("images_seen") or "") or 0),
            phase=int(number(now.get("phase") or "") or 0),
            sizes=tuple(int(size) for size in sizes if size.isdecimal()),
            metrics={name: value for name, value in numbers.items() if value is not None},
        )


def number(text: str) -> Number | None:
    """The number in a cell; None if it holds none."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return None
