"""BatchNorm statistics for sizes that a model was not trained at, estimated on training images."""

from collections.abc import Sequence

import numpy as np
import torch

from toolkit.data.loading.batches import EvalBatchBuilder
from toolkit.data.loading.reader import ImageReader
from toolkit.data.loading.workers import by_need
from toolkit.models.evaluator import Evaluator
from toolkit.models.multiview import BATCH_NORMS

IMAGES = 2048


def unseen(evaluator: Evaluator, sizes: Sequence[int]) -> list[int]:
    """The `sizes`, px, without BatchNorm statistics of their own; empty if the model has no BatchNorm."""
    model = evaluator.model
    has_statistics = any(isinstance(module, BATCH_NORMS) for module in model.modules())
    return [size for size in sizes if has_statistics and size not in model.policy.scales]


@torch.no_grad()
def recalibrate(evaluator: Evaluator, images: ImageReader, sizes: Sequence[int], seed: int) -> int:
    """Give `sizes` px their own statistics: means over full batches of training images, prepared as for evaluation.

    Every rank uses the same images, so all get the same result. Returns the number of images used, at most 2048.
    Source: train-test resolution discrepancy (arXiv 1906.06423); precise BatchNorm (arXiv 2105.07576).
    """
    model, batch_size = evaluator.model.eval(), evaluator.batch_size
    for norm in model.own_norms(sizes):
        assert isinstance(norm, BATCH_NORMS)
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches instead of a moving average
        norm.train()
    chosen = np.random.default_rng((seed, 1)).permutation(len(images.index))[:IMAGES]  # the index is sorted by class
    batch_size = min(max(2, batch_size), len(chosen))
    batch_specs = [chosen[i : i + batch_size] for i in range(0, len(chosen) - batch_size + 1, batch_size)]
    taken = 0
    builder = EvalBatchBuilder(images, tuple(sizes), leave_out=True)
    for batch in by_need(images.index)(batch_specs, builder, evaluator.threads, evaluator.timeout_s):
        if len(batch.ids) < 2:  # a single image has no variance
            continue
        with evaluator.accelerator.autocast():
            model(*evaluator.views(batch.images))
        taken += len(batch.ids)
    model.eval()
    return taken
