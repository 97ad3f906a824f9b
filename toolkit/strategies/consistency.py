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


def kl(larger: Tensor, smaller: Tensor) -> Tensor:
    """KL(softmax(larger) || softmax(smaller)), mean over the batch; N x C logits, C >= 2, temperature 1."""
    return F.kl_div(
        F.log_softmax(smaller.float(), 1),
        F.log_softmax(larger.detach().float(), 1),
        reduction="batchmean",
        log_target=True,
    )


def mse(larger: Tensor, smaller: Tensor) -> Tensor:
    """Squared error of the logits, mean over batch and classes."""
    return F.mse_loss(smaller.float(), larger.detach().float())


def js(larger: Tensor, smaller: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the predictions in nats, mean over the batch; at most log 2."""
    teacher, student = F.log_softmax(larger.detach().float(), 1), F.log_softmax(smaller.float(), 1)
    middle = torch.logsumexp(torch.stack([teacher, student]), 0) - torch.log(torch.tensor(2.0))
    divergences = [F.kl_div(middle, side, reduction="batchmean", log_target=True) for side in (teacher, student)]
    return torch.stack(divergences).mean()


CONSISTENCY: dict[ConsistencyForm, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl, "mse": mse, "js": js}


def consistency(logits: Sequence[Tensor], form: ConsistencyForm) -> Tensor:
    """Mean consistency loss over all pairs (larger, smaller) of logits, given in ascending order of size."""
    pairs = [CONSISTENCY[form](larger, smaller) for smaller, larger in combinations(logits, 2)]
    return torch.stack(pairs).mean()
