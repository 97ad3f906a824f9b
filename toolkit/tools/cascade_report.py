"""Compute saved and accuracy lost by a cascade on evaluated images, and the choice of its confidence threshold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from toolkit.models import metrics
from toolkit.models.cascade import apply_cascade, cheapest_confidence
from toolkit.models.evaluation import Evaluation
from toolkit.strategies.base import at_size

MAX_LOSS = 0.5  # points of top-1


@dataclass(frozen=True)
class CascadeOptions:
    """Ascending `sizes`, px; empty: no cascade.

    `confidence` None: the cheapest threshold that loses at most `max_loss` points of top-1 on validation images.
    """

    sizes: tuple[int, ...] = ()
    confidence: float | None = None
    max_loss: float | None = None

    @property
    def needs_val(self) -> bool:
        """Whether the confidence is chosen on the run's own validation images."""
        return bool(self.sizes) and self.confidence is None


@dataclass(frozen=True)
class SplitCascade:
    """A cascade on one split, compared with its last size alone: top-1 in percent, mean cost of an image in GMACs.

    `shares`: share of images that exit at each size, in [0, 1].
    """

    top1: float
    alone_top1: float
    gmacs: float
    alone_gmacs: float
    shares: dict[int, float]


@dataclass(frozen=True)
class CascadeReport:
    """`splits` by name, all at `confidence`; `tuned_on`: the split `confidence` was tuned on, None if it was given."""

    sizes: tuple[int, ...]
    confidence: float
    tuned_on: str | None
    splits: dict[str, SplitCascade]


def report_cascade(
    options: CascadeOptions,
    gmacs: Mapping[str, float],
    evaluations: Mapping[str, Evaluation],
    evaluate_val: Callable[[], Evaluation],
) -> CascadeReport:
    """Apply the cascade to all splits; `gmacs` by size name. `evaluate_val` is called only to tune the confidence."""
    names = [at_size(size).name for size in options.sizes]
    costs = [gmacs[name] for name in names]
    confidence, tuned_on = options.confidence, None
    if confidence is None:
        max_loss = MAX_LOSS if options.max_loss is None else options.max_loss
        confidence, tuned_on = cheapest_confidence(evaluate_val().predictions, names, costs, max_loss), "val"
    splits = {
        split: _measure(evaluation, dict(zip(options.sizes, costs, strict=True)), confidence)
        for split, evaluation in evaluations.items()
    }
    return CascadeReport(options.sizes, confidence, tuned_on, splits)


def _measure(evaluation: Evaluation, gmacs: Mapping[int, float], confidence: float) -> SplitCascade:
    """The cascade on one split that was evaluated at every size; `gmacs` of one image by size, ascending."""
    names, costs = [at_size(size).name for size in gmacs], [*gmacs.values()]
    predictions = evaluation.predictions
    cascaded, alone = apply_cascade(predictions, names, confidence), predictions.of(names[-1])
    shares = np.bincount(cascaded.exit_index, minlength=len(gmacs)) / len(cascaded.exit_index)
    return SplitCascade(
        metrics.accuracy(cascaded.predictions),
        metrics.accuracy(alone),
        cascaded.cost(costs),
        costs[-1],
        dict(zip(gmacs, shares.tolist(), strict=True)),
    )
