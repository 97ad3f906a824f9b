"""Weights of classes in the loss, from their numbers of training images; timm's."""

import numpy as np
from timm.loss import compute_class_weights

from toolkit.config.choices import ClassWeights

METHODS = {"inverse": "inv_freq", "effective": "effective_num"}  # timm's names


def weights_of(counts: np.ndarray, kind: ClassWeights, power: float) -> np.ndarray:
    """C weights with mean 1: `power` of 1 / images, or of 1 / effective number of images (arXiv:1901.05555, 0.999)."""
    _, weights = compute_class_weights(counts.tolist(), max(1, int(counts.sum())), METHODS[kind])
    raised: np.ndarray = weights.double().numpy() ** power
    return raised / raised.mean()
