"""The section of report.html on what `toolkit evaluate` measured: every metric with its interval."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.strategies.base import Metric

FILE = Path("evaluation", "evaluation.json")


class Measured(NamedTuple):
    """A value and its 95% interval, as text; the interval may be empty."""

    value: str
    interval: str


class EvaluatedSplit(NamedTuple):
    """A table: eval specs, and for each metric its title and a cell for each spec."""

    split: str
    images: int
    specs: list[str]
    rows: list[tuple[str, list[Measured]]]


class Evaluated(NamedTuple):
    """Tables by split; `samples`: of the bootstrap, or None; `lower`: titles of metrics of which less is better."""

    samples: int | None
    splits: list[EvaluatedSplit]
    lower: list[str]


def read_evaluation(run: Path, best_epoch: int | None) -> Evaluated | None:
    """The evaluation of the run's present best model in RUN/evaluation; None if there is none."""
    try:
        found = json.loads((run / FILE).read_text())
        if found["epoch"] != best_epoch:
            return None
        metrics = [Metric(**metric) for metric in found["metrics"]]
        tables = [_table(split, specs, metrics) for split, specs in found["splits"].items()]
        lower = [metric.title for metric in metrics if not metric.higher_is_better]
        return Evaluated((found["bootstrap"] or {}).get("samples"), tables, lower)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # none, or of an earlier version
        return None


def _table(split: str, specs: dict[str, dict[str, Any]], metrics: list[Metric]) -> EvaluatedSplit:
    rows = [
        (metric.title, [_measured(metric, values) for values in specs.values()])
        for metric in metrics
        if any(metric.name in values for values in specs.values())
    ]
    return EvaluatedSplit(split, next(iter(specs.values()))["images"], [*specs], rows)


def _measured(metric: Metric, values: dict[str, Any]) -> Measured:
    value, interval = values.get(metric.name), values.get("intervals", {}).get(metric.name)
    if value is None:
        return Measured("undefined", "")
    return Measured(metric.text(value).strip(), metric.between(*interval) if interval else "")
