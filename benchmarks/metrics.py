"""What metrics of all probabilities and their bootstrap intervals cost: CPU seconds of one core, and memory.

`python benchmarks/metrics.py` prints the table of docs/results.md.
"""

import time

import numpy as np
import torch

from toolkit import Classification, MultiLabel, Task
from toolkit.models.intervals import RESAMPLES, resample
from toolkit.strategies.measures import ImageValues, Weighing

IMAGES = 50_000
SIMPLE = ["top1"]
OF_COUNTS = ["top1", "top5", "loss", "balanced_accuracy", "macro_f1", "worst_class_accuracy", "ece"]
OF_RANKING = ["auroc", "average_precision"]


def one_class(images: int, classes: int) -> ImageValues:
    """A model that is right about three times in four."""
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=images)
    scores = rng.normal(size=(classes, images)).astype(np.float32)
    scores[labels, np.arange(images)] += 1.2 + np.sqrt(2 * np.log(classes))
    np.exp(scores, out=scores)
    scores /= scores.sum(0)
    p = scores[labels, np.arange(images)]
    record = np.stack([scores.argmax(0), scores.max(0), p]).astype(np.float64)
    summed = np.stack([record[0] == labels, np.ones(images), -np.log(p)]).astype(np.float64)
    return ImageValues(labels, record, classes, summed, scores)


def several_labels(images: int, classes: int) -> ImageValues:
    rng = np.random.default_rng(0)
    labels = (rng.random((images, classes)) < 0.05).astype(np.int64)
    p = 1 / (1 + np.exp(-(rng.normal(size=(images, classes)) + 2 * labels - 2)))
    return ImageValues(labels, np.vstack([p.T, np.ones(images)]), classes, np.ones((1, images)))


def seconds(task: Task, names: list[str], images: ImageValues, resamples: int = 0) -> float:
    """CPU time of the metrics of all images, or of their bootstrap."""
    started = time.process_time()
    if resamples:
        resample(task, names, images, resamples)
    else:
        task.weighted(names, images, Weighing.plain(len(images.labels)))
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    print(f"{IMAGES} images, {RESAMPLES} bootstrap samples; CPU seconds of one core")
    print("| task | AUROC and mAP | bootstrap of top-1 | of all but these two | of AUROC and mAP | probabilities, GB |")
    print("|---|---|---|---|---|---|")
    for classes in (10, 100, 1000):
        images, task = one_class(IMAGES, classes), Classification()
        cells = [
            seconds(task, OF_RANKING, images),
            seconds(task, SIMPLE, images, RESAMPLES),
            seconds(task, OF_COUNTS, images, RESAMPLES),
            seconds(task, OF_RANKING, images, RESAMPLES),
        ]
        told = " | ".join(f"{cell:.2f}" for cell in cells)
        print(f"| {classes} classes | {told} | {4e-9 * IMAGES * classes:.3f} |", flush=True)
    images, labels = several_labels(IMAGES, 80), MultiLabel()
    names = [metric.name for metric in (*MultiLabel.metrics, *MultiLabel.extra_metrics)]
    cells = [seconds(labels, names, images), seconds(labels, names, images, RESAMPLES)]
    print(f"| 80 labels | {cells[0]:.2f} | | | {cells[1]:.2f} (all metrics) | |")


if __name__ == "__main__":
    main()
