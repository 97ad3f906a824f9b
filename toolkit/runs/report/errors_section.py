"""The errors section of report.html: confusion, calibration, weakest classes, hardest images of one split."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from toolkit.models.metrics import (
    Predictions,
    class_accuracy,
    class_metrics,
    confused,
    confusion,
    most_confused,
    reliability,
)
from toolkit.runs.report.plots import reliability_diagram
from toolkit.runs.report.records import ReportData
from toolkit.runs.report.svg import scale_color
from toolkit.runs.saved_predictions import SavedPredictions

MOST_CLASSES = 20  # of a confusion matrix: of more classes those in most errors, and tables list pairs and weak classes
MOST_PAIRS, MOST_WEAK = 15, 10


def errors_section(records: ReportData, split: str = "val") -> dict[str, Any] | None:
    """Confusion, calibration and hardest images of a split; None without readable saved predictions."""
    found = records.predictions.get(split)
    specs = found.table.specs if found else ()
    if found is None or not specs or not found.table.has_classes or not found.table.readable.any():
        return None
    spec = records.target if records.target in specs else specs[-1]
    predictions, names = found.table.of(spec), _Names(records.classes)
    few, shown = len(records.classes) <= MOST_CLASSES, most_confused(predictions, len(records.classes), MOST_CLASSES)
    place = records.scales.index(spec) if spec in records.scales else 0
    return {
        "spec": spec,
        "split": split,
        "all_classes": few,
        "images": len(predictions.labels),
        "numbers": _numbers(predictions, records.classes),
        "matrix": _matrix(predictions, names, shown.tolist()),
        "pairs": [] if few else _pairs(predictions, names),
        "weak": [] if few or records.by_class.get(split) else _weak(predictions, names),
        "reliability": Markup(reliability_diagram(reliability(predictions), scale_color(place))),
        "worst": _worst(records, found, names),
    }


def _numbers(predictions: Predictions, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Metrics that count classes alike, and the worst class, as (name, value with its unit)."""
    found = class_metrics(predictions, classes)
    return [
        ("balanced accuracy", f"{found['balanced_accuracy']:.2f}%"),
        ("macro F1", f"{found['macro_f1']:.2f}%"),
        (f"worst class: {found['worst_class']}", f"{found['worst_class_accuracy']:.2f}%"),
    ]


class _Names:
    """Class names by label; the label's number if it has no name."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes

    def __getitem__(self, label: int) -> str:
        return self.classes[label] if 0 <= label < len(self.classes) else f"class {label}"


def _matrix(predictions: Predictions, names: _Names, shown: Sequence[int]) -> list[dict[str, Any]]:
    """A row per shown class: its name and, per predicted one, (images, percent of the row's images, is correct)."""
    counts = confusion(predictions, len(names.classes))
    return [
        {
            "name": names[label],
            "cells": [
                (int(count), 100 * int(count) / max(1, int(row.sum())), predicted == label)
                for predicted, count in zip(shown, row[shown], strict=True)
            ],
        }
        for label, row in zip(shown, counts[shown], strict=True)
    ]


def _pairs(predictions: Predictions, names: _Names) -> list[dict[str, Any]]:
    of_class = np.bincount(predictions.labels)
    return [
        {
            "label": names[pair.label],
            "predicted": names[pair.predicted],
            "images": pair.images,
            "of": int(of_class[pair.label]),
        }
        for pair in confused(predictions, MOST_PAIRS)
    ]


def _weak(predictions: Predictions, names: _Names) -> list[dict[str, Any]]:
    """The MOST_WEAK classes with the lowest top-1, in percent; classes without images are left out."""
    accuracy, of_class = class_accuracy(predictions, len(names.classes)), np.bincount(predictions.labels)
    order = [label for label in np.argsort(accuracy, kind="stable").tolist() if np.isfinite(accuracy[label])]
    return [{"name": names[i], "top1": accuracy[i], "images": int(of_class[i])} for i in order[:MOST_WEAK]]


def _worst(records: ReportData, found: SavedPredictions, names: _Names) -> list[dict[str, Any]]:
    """The hardest images as data URLs, each with its prediction at every eval spec."""
    table, places = found.table, {name: place for place, name in enumerate(records.scales)}
    return [
        {
            "source": f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}",
            "file": found.names[i],
            "label": names[int(table.labels[i])],
            "predictions": [
                {
                    "scale": spec,
                    "place": places.get(spec, 0),
                    "predicted": names[int(table.predicted[row, i])],
                    "confidence": 100 * float(table.confidence[row, i]),
                    "right": table.predicted[row, i] == table.labels[i],
                }
                for row, spec in enumerate(table.specs)
            ],
        }
        for i, path in found.hardest.items()
    ]
