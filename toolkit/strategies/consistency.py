"""Consistency losses between the predictions at two scales: pure functions, in float32 under any precision.

In all of them the larger scale is the teacher: its logits are detached, so that only the labels train it
(RS-Nets, arXiv:2007.00193, without their ensemble teacher).
"""

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.config.choices import ConsistencyForm
from toolkit.strategies.base import BoundTask


def kl(larger: Tensor, smaller: Tensor, task: BoundTask) -> Tensor:
    """KL(larger || smaller) of the predicted probabilities, mean over the batch; N x C logits, temperature 1."""
    return F.kl_div(
        task.log_probabilities(smaller),
        task.log_probabilities(larger.detach()),
        reduction="batchmean",
        log_target=True,
    )


def mse(larger: Tensor, smaller: Tensor, task: BoundTask) -> Tensor:
    """Squared error of the logits, mean over batch and classes."""
    return F.mse_loss(smaller.float(), larger.detach().float())


def js(larger: Tensor, smaller: Tensor, task: BoundTask) -> Tensor:
    """Jensen-Shannon divergence of the predictions in nats, mean over the batch; at most log 2 for one label."""
    teacher, student = task.log_probabilities(larger.detach()), task.log_probabilities(smaller)
    middle = torch.logsumexp(torch.stack([teacher, student]), 0) - torch.log(torch.tensor(2.0))
    divergences = [F.kl_div(middle, side, reduction="batchmean", log_target=True) for side in (teacher, student)]
    return torch.stack(divergences).mean()


CONSISTENCY: dict[ConsistencyForm, Callable[[Tensor, Tensor, BoundTask], Tensor]] = {"kl": kl, "mse": mse, "js": js}


def consistency(logits: Sequence[Tensor], form: ConsistencyForm, task: BoundTask) -> Tensor:
    """Mean consistency loss over all pairs (larger, smaller) of logits, given in ascending order of size."""
    pairs = [CONSISTENCY[form](larger, smaller, task) for smaller, larger in combinations(logits, 2)]
    return torch.stack(pairs).mean()
