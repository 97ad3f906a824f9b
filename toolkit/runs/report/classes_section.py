"""The section of report.html on each class, the worst first, on one split."""

import math
from typing import Any

import numpy as np

from toolkit.runs.report.records import ReportData

MOST_CLASSES = 40  # rows; predictions/classes/SPLIT.csv has all
TITLES = {"recall": "recall", "precision": "precision", "f1": "F1", "average_precision": "average precision"}


def classes_section(records: ReportData, split: str) -> dict[str, Any] | None:
    """The classes with images, lowest first by the first value that the task tells of each; None without such values.

    Of the size that selects the best model, or else the largest.
    """
    found = records.by_class.get(split, {})
    if not found:
        return None
    spec = records.target if records.target in found else [*found][-1]
    images, values = found[spec].images, found[spec].values
    if len(images) != len(records.classes):
        return None
    first = next(iter(values))
    order = [i for i in np.argsort(values[first], kind="stable").tolist() if math.isfinite(values[first][i])]
    return {
        "split": split,
        "spec": spec,
        "by": TITLES.get(first, first),
        "heads": [TITLES.get(name, name) for name in values],
        "rows": [
            {
                "name": records.classes[i],
                "images": int(images[i]),
                "cells": [_cell(column[i]) for column in values.values()],
            }
            for i in order[:MOST_CLASSES]
        ],
        "classes": len(order),
        "without": len(images) - len(order),
    }


def _cell(share: float) -> str:
    return f"{100 * share:.1f}%" if math.isfinite(share) else "-"
