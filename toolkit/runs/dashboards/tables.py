"""Tables of the best model's errors for dashboards, limited in size for any number of classes and images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toolkit.models.metrics import Predictions, calibration_error, class_accuracy, confusion, most_confused
from toolkit.runs.saved_predictions import SavedPredictions
from toolkit.system.errors import printable

MOST_CLASSES = 50


class Table(NamedTuple):
    """Cells are text, numbers, or the path of an image."""

    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Errors:
    """Validation errors of the best model, for at most 50 classes: those involved in the most errors.

    `confusion`: C x C counts of these classes at the selection size; rows are labels. `numbers`: metrics over all
    classes.
    """

    classes: list[str]
    confusion: np.ndarray
    class_accuracy: Table  # percent at every size
    hardest: Table  # prediction and confidence at every size
    numbers: dict[str, float]
    selection: str  # the eval spec that selects the best model

    def captioned(self) -> list[tuple[Path, str]]:
        """The hardest images, each with its label and what the selected size predicts."""
        columns = self.hardest.columns
        label, predicted = columns.index("label"), columns.index(self.selection)
        return [(row[0], f"true {row[label]}, predicted {row[predicted]}") for row in self.hardest.rows]

    def tables(self) -> dict[str, Table]:
        rows = [[label, *row] for label, row in zip(self.classes, self.confusion.tolist(), strict=True)]
        confusion = Table(["label / predicted", *self.classes], rows)
        return {"confusion": confusion, "class_accuracy": self.class_accuracy, "hardest": self.hardest}


def errors_of(saved: SavedPredictions, classes: Sequence[str], selection: str) -> Errors:
    """Summarize saved predictions; `selection` names the eval spec that selects the best model."""
    classes = [printable(name) for name in classes]  # dashboards need text; folder names may be other bytes
    table, count = saved.table, len(classes)
    selected, specs = table.of(selection), table.specs
    shown = most_confused(selected, count, MOST_CLASSES)
    place = np.full(count, -1)
    place[shown] = np.arange(len(shown))
    labels, predicted = place[selected.labels], place[selected.predicted]
    inside = (labels >= 0) & (predicted >= 0)
    accuracy = {name: class_accuracy(table.of(name), count) for name in specs}
    images = np.bincount(selected.labels, minlength=count)
    known = accuracy[selection][images > 0]
    return Errors(
        classes=[classes[i] for i in shown],
        confusion=confusion(Predictions(labels[inside], predicted[inside], selected.confidence[inside]), len(shown)),
        class_accuracy=Table(
            ["class", "images", *specs],
            [[classes[i], int(images[i]), *(round(float(row[i]), 2) for row in accuracy.values())] for i in shown],
        ),
        hardest=Table(
            ["image", "name", "label", *specs],
            [
                [file, printable(saved.names[i]), classes[table.labels[i]], *_predicted(saved, i, classes)]
                for i, file in saved.hardest.items()
            ],
        ),
        numbers={
            "balanced_accuracy": float(known.mean()),
            "worst_class_accuracy": float(known.min()),
            "calibration_error": calibration_error(selected),
        },
        selection=selection,
    )


def _predicted(saved: SavedPredictions, i: int, classes: Sequence[str]) -> list[str]:
    """Predicted class and confidence of image `i` at every size."""
    predicted, confidence = saved.table.predicted[:, i].tolist(), saved.table.confidence[:, i].tolist()
    return [f"{classes[label]} ({p:.0%})" for label, p in zip(predicted, confidence, strict=True)]
