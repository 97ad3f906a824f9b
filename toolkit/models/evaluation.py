"""Results of an evaluation: scores by eval spec, predictions of each image, values of each class."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from toolkit.config.base import frozen
from toolkit.models.metrics import PredictionTable, class_metrics
from toolkit.strategies.base import Metric, Task
from toolkit.strategies.measures import ImageValues, Weighing
from toolkit.system.errors import InputError


@dataclass(frozen=True)
class Score:
    """The metrics of a task for one eval spec, by name.

    `norm_from`: the scale whose normalization was used; None if the size has its own or all share one.
    """

    values: Mapping[str, float]
    images: int
    norm_from: int | None = None
    unreadable: int = 0  # images excluded from all values above
    undefined: tuple[str, ...] = ()  # metrics that these images do not have, such as AUROC of one class

    def __getitem__(self, metric: str) -> float:
        if metric in self.undefined:
            raise InputError(f"{metric} is undefined on the {self.images} images that could be read: see --select-by")
        return self.values[metric]

    def metrics(self) -> dict[str, float]:
        """The values recorded at each evaluation."""
        masked = {"unreadable": self.unreadable} if self.unreadable else {}
        return {**self.values, **masked}

    def to_json(self) -> dict[str, Any]:
        rest = {"images": self.images, "norm_from": self.norm_from, "unreadable": self.unreadable}
        return {**self.values, **dict.fromkeys(self.undefined), **rest}

    def line(self, metrics: Sequence[Metric]) -> str:
        """The given metrics as text for the console."""
        mark = f" (normalization of {self.norm_from} px)" if self.norm_from else ""
        mark += f" ({self.unreadable} unreadable left out)" if self.unreadable else ""
        told = (metric.text(self[metric.name]) if metric.name in self.values else "undefined" for metric in metrics)
        return "  ".join(f"{metric.title} {text}" for metric, text in zip(metrics, told, strict=True)) + mark


def brief(scores: Mapping[str, Score], metric: Metric) -> str:
    """One metric at each eval spec."""

    def one(score: Score) -> str:
        left_out = f" ({score.unreadable} unreadable left out)" if score.unreadable else ""
        return metric.text(score[metric.name]).strip() + left_out

    return "  ".join(f"{name} {one(score)}" for name, score in scores.items())


@dataclass(frozen=True)
class ByClass:
    """`images`: C counts. `values`: C values of each class by name, 0 to 1 or NaN; the first tells which is worst."""

    images: np.ndarray
    values: Mapping[str, np.ndarray]

    def worst(self) -> int | None:
        """The class that is lowest by the first value, the first of several; None if no class has it."""
        first = next(iter(self.values.values()))
        return int(np.nanargmin(first)) if np.isfinite(first).any() else None


@dataclass(frozen=True)
class Evaluation:
    """Scores by name of the eval spec, and the predictions for each image; `chosen`: fields of the task, by name.

    `by_class`: what the task tells of each class. `images`: the values of the images, where they are kept.
    """

    scores: dict[str, Score]
    predictions: PredictionTable
    chosen: Mapping[str, Any] = field(default_factory=dict)
    by_class: Mapping[str, ByClass] = field(default_factory=dict)
    images: Mapping[str, ImageValues] = field(default_factory=dict)

    def to_json(self, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Each score, with the class metrics if each image has one class; metrics of the task replace these."""
        table = self.predictions
        return {
            spec: {
                **self._worst_class(spec, classes),
                **(class_metrics(table.of(spec), classes) if table.has_classes else {}),
                **score.to_json(),
            }
            for spec, score in self.scores.items()
        }

    def _worst_class(self, spec: str, classes: Sequence[str]) -> dict[str, str]:
        worst = self.by_class[spec].worst() if spec in self.by_class else None
        return {} if worst is None else {"worst_class": classes[worst]}


def measured(task: Task, metrics: Sequence[Metric], images: ImageValues) -> tuple[dict[str, float], tuple[str, ...]]:
    """The values of extra metrics, and the names of those that are undefined on these images."""
    names = [metric.name for metric in metrics]
    found = task.weighted(names, images, Weighing.plain(len(images.labels))) if names else {}
    values = {name: float(found[name][0]) if name in found else math.nan for name in names}
    defined = {name: value for name, value in values.items() if math.isfinite(value)}
    return defined, tuple(name for name in names if name not in defined)


def chosen_task(task: Task, chosen: Mapping[str, Any]) -> Task:
    """The task with the fields that were chosen on validation images, as JSON holds them."""
    return replace(task, **{name: frozen(value) for name, value in chosen.items()}) if chosen else task
