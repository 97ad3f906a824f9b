"""A task from outside the package: any number of classes an image; labels are N x C of 0 and 1."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from toolkit import InputError, Metric, Task
from toolkit.models.classification import BinaryCrossEntropy


@dataclass(frozen=True)
class Tags(Task):
    metrics = (Metric("exact", "all right"), Metric("loss", "loss", percent=False, higher_is_better=False))
    summed = ("exact", "loss")

    def check_labels(self, labels, classes):
        if labels.ndim != 2 or labels.shape[1] != classes:
            raise InputError(f"labels of shape {labels.shape}: tags are N x {classes}")

    def class_counts(self, labels, classes):
        return labels.sum(0)

    def columns(self, classes):
        return (*(f"p_{name}" for name in classes), "p_all")

    def measure(self, sums, labels, record, classes):
        return {"exact": 100 * sums["exact"] / len(labels), "loss": sums["loss"] / len(labels)}

    def answer(self, probabilities, classes):
        return "|".join(name for name, p in zip(classes, probabilities, strict=True) if p > 0.5)

    def bind(self, class_counts, device):
        return BoundTags(len(class_counts), smoothing=0.0, weights=None)


class BoundTags(BinaryCrossEntropy):
    def mixable(self, labels):
        return labels.float()

    targets = mixable

    def confidence(self, probabilities):
        return torch.maximum(probabilities, 1 - probabilities).min(1).values

    def sums(self, averaged, labels, dtype):
        right = ((averaged > 0) == (labels > 0)).all(1).sum()
        losses = F.binary_cross_entropy_with_logits(averaged.to(dtype), labels.to(dtype), reduction="none")
        return torch.stack([right.to(dtype), losses.mean(1).sum()])

    def record(self, averaged, labels):
        p = averaged.sigmoid()
        return torch.cat([p, torch.where(labels > 0, p, 1 - p).prod(1, keepdim=True)], 1).T
