"""What a dashboard shows of a finished model's mistakes, bounded however many classes and images there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from toolkit.models.metrics import Answers, calibration_error, class_accuracy, confusion
from toolkit.system.errors import printable

if TYPE_CHECKING:  # it lives on a higher floor
    from toolkit.runs.saved_predictions import Mistakes

MOST_CLASSES = 50


class Table(NamedTuple):
    """Cells are text, numbers, or the path of an image."""

    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Errors:
    """Validation mistakes of the best model, of at most 50 classes: those that take part in the most of them.

    `confusion`: C x C counts of these at the selection size, row the label. `numbers`: figures over all classes.
    """

    classes: list[str]
    confusion: np.ndarray
    class_accuracy: Table  # percent at every size
    hardest: Table  # what was said, and how sure, at every size
    numbers: dict[str, float]

    def tables(self) -> dict[str, Table]:
        rows = [[label, *row] for label, row in zip(self.classes, self.confusion.tolist(), strict=True)]
        confusion = Table(["label / said", *self.classes], rows)
        return {"confusion": confusion, "class_accuracy": self.class_accuracy, "hardest": self.hardest}


def errors_of(mistakes: "Mistakes", classes: Sequence[str], selection: str) -> Errors:
    """`selection` names the figure that picks the best model."""
    classes = [printable(name) for name in classes]  # dashboards want text, file systems hold bytes
    predictions, count = mistakes.predictions, len(classes)
    answers, figures = predictions.of(selection), predictions.figures
    shown = _most_confused(answers, count)
    place = np.full(count, -1)
    place[shown] = np.arange(len(shown))
    labels, said = place[answers.labels], place[answers.said]
    inside = (labels >= 0) & (said >= 0)
    accuracy = {name: class_accuracy(predictions.of(name), count) for name in figures}
    images = np.bincount(answers.labels, minlength=count)
    known = accuracy[selection][images > 0]
    return Errors(
        classes=[classes[i] for i in shown],
        confusion=confusion(Answers(labels[inside], said[inside], answers.confidence[inside]), len(shown)),
        class_accuracy=Table(
            ["class", "images", *figures],
            [[classes[i], int(images[i]), *(round(float(row[i]), 2) for row in accuracy.values())] for i in shown],
        ),
        hardest=Table(
            ["image", "name", "label", *figures],
            [
                [file, printable(mistakes.names[i]), classes[predictions.labels[i]], *_said(mistakes, i, classes)]
                for i, file in mistakes.hardest.items()
            ],
        ),
        numbers={
            "balanced_accuracy": float(known.mean()),
            "worst_class_accuracy": float(known.min()),
            "calibration_error": calibration_error(answers),
        },
    )


def _said(mistakes: "Mistakes", i: int, classes: Sequence[str]) -> list[str]:
    """The class said of image `i` at every size, and how sure the model was."""
    said, confidence = mistakes.predictions.said[:, i].tolist(), mistakes.predictions.confidence[:, i].tolist()
    return [f"{classes[label]} ({sure:.0%})" for label, sure in zip(said, confidence, strict=True)]


def _most_confused(answers: Answers, classes: int) -> np.ndarray:
    """At most 50 classes, ascending."""
    wrong = answers.labels != answers.said
    trouble = np.bincount(answers.labels[wrong], minlength=classes) + np.bincount(
        answers.said[wrong], minlength=classes
    )
    return np.sort(np.argsort(-trouble, kind="stable")[:MOST_CLASSES])
