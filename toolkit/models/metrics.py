"""What a model's answers are worth: confusion, accuracy per class, calibration, the hardest images. Pure NumPy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

UNREADABLE = -1  # the class said of an image that could not be read


@dataclass(frozen=True)
class Predictions:
    """What was said of each image, in the order of the index; a row per figure.

    `labels` N; `said` F x N classes, UNREADABLE where there was no image; `confidence` F x N, the probability of the
    class that was said; `truth` F x N, that of the label.
    """

    figures: tuple[str, ...]
    labels: np.ndarray
    said: np.ndarray
    confidence: np.ndarray
    truth: np.ndarray

    @property
    def readable(self) -> np.ndarray:
        """N booleans."""
        return (self.said != UNREADABLE).all(axis=0)

    def of(self, figure: str) -> "Answers":
        """One figure's answers to the images that could be read."""
        row, there = self.figures.index(figure), self.readable
        return Answers(self.labels[there], self.said[row, there], self.confidence[row, there])

    def hardest(self, count: int) -> np.ndarray:
        """The images, as places in the index, whose labels were found least probable on average over figures."""
        order = np.argsort(self.truth.mean(axis=0), kind="stable")
        return order[self.readable[order]][:count]


class Answers(NamedTuple):
    """N labels, N classes said, and how sure the model was of each, in [0, 1]."""

    labels: np.ndarray
    said: np.ndarray
    confidence: np.ndarray


class Bin(NamedTuple):
    """Answers of about one confidence: its bounds, how many, their mean confidence and the share that is right."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


class Cascade(NamedTuple):
    """Answers of a model that starts small and goes up while unsure; `decided` N: the place of the size that spoke."""

    answers: Answers
    decided: np.ndarray

    def cost(self, costs: Sequence[float]) -> float:
        """Mean cost of an image, `costs` being those of each size: those below the one that spoke are paid too."""
        return float(np.cumsum(costs)[self.decided].mean())


def cascade(predictions: Predictions, figures: Sequence[str], confidence: float) -> Cascade:
    """What going through `figures` in order says: the first that is at least so sure has the word, else the last."""
    rows, there = [predictions.figures.index(figure) for figure in figures], predictions.readable
    said, sure = predictions.said[rows][:, there], predictions.confidence[rows][:, there]
    enough = sure >= confidence
    enough[-1] = True
    decided = enough.argmax(axis=0)
    image = np.arange(len(decided))
    return Cascade(Answers(predictions.labels[there], said[decided, image], sure[decided, image]), decided)


def accuracy(answers: Answers) -> float:
    """Percent right."""
    return 100 * float((answers.said == answers.labels).mean())


def cheapest_confidence(
    predictions: Predictions, figures: Sequence[str], costs: Sequence[float], max_loss: float
) -> float:
    """The confidence, a multiple of 0.005, at which a cascade costs least and loses at most so many points.

    1 where none is good enough: then nearly every image goes up to the last size.
    """
    least = accuracy(predictions.of(figures[-1])) - max_loss
    tried = {level: cascade(predictions, figures, level) for level in np.arange(1, 201) / 200}
    good = {level: found.cost(costs) for level, found in tried.items() if accuracy(found.answers) >= least}
    return float(min(good, key=lambda level: (good[level], level))) if good else 1.0


def saving(cost: float, alone: float) -> str:
    """What a mean cost is against that of the last size alone, such as 2.50x less, or 1.22x more."""
    return f"{alone / cost:.2f}x less" if cost <= alone else f"{cost / alone:.2f}x more"


class Confused(NamedTuple):
    """So many images of class `label` were taken for class `said`."""

    label: int
    said: int
    images: int


def confusion(answers: Answers, classes: int) -> np.ndarray:
    """C x C counts: row the label, column what was said."""
    pairs = answers.labels * classes + answers.said
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_accuracy(answers: Answers, classes: int) -> np.ndarray:
    """Percent right of each class's images; NaN where there are none."""
    right = np.bincount(answers.labels[answers.said == answers.labels], minlength=classes)
    with np.errstate(invalid="ignore"):
        return 100 * right / np.bincount(answers.labels, minlength=classes)


def confused(answers: Answers, count: int) -> list[Confused]:
    """The pairs of classes that are mistaken most often, at most `count`, most images first."""
    wrong = answers.said != answers.labels
    pairs, images = np.unique(np.stack([answers.labels[wrong], answers.said[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-images, kind="stable")[:count]
    return [Confused(int(pairs[0, i]), int(pairs[1, i]), int(images[i])) for i in order]


def reliability(answers: Answers, bins: int = 15) -> list[Bin]:
    """The bins of equal width that hold any answers (arXiv 1706.04599, eq. 2)."""
    place = np.clip(np.ceil(answers.confidence * bins).astype(int) - 1, 0, bins - 1)
    right = answers.said == answers.labels
    return [
        Bin(
            b / bins, (b + 1) / bins, int(here.sum()), float(answers.confidence[here].mean()), float(right[here].mean())
        )
        for b in range(bins)
        if (here := place == b).any()
    ]


def calibration_error(answers: Answers, bins: int = 15) -> float:
    """Expected calibration error in [0, 1] (arXiv 1706.04599, eq. 3): 0 where confidence is the share that is right."""
    found = reliability(answers, bins)
    return sum(b.images * abs(b.accuracy - b.confidence) for b in found) / max(1, len(answers.labels))
