"""Exact evaluation: each sample counted once on any number of processes; counts summed, then divided once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from toolkit.contract import EvalSpec
from toolkit.data.jobs import EvalJob
from toolkit.data.loader import by_threads
from toolkit.data.pixels import Pixels
from toolkit.errors import InputError
from toolkit.images import views
from toolkit.models import MultiView, copy_state
from toolkit.rundir import Quarantine


@dataclass(frozen=True)
class Score:
    """One figure: top-1 and top-5 in percent, loss in nats; `borrowed` names the scale whose normalisation served."""

    top1: float
    top5: float
    loss: float
    images: int
    borrowed: int | None = None
    unreadable: int = 0  # images that are left out of all of the above

    def brief(self) -> str:
        return f"{self.top1:.2f}%" + (f" ({self.unreadable} unreadable left out)" if self.unreadable else "")

    def figures(self) -> dict[str, float]:
        """What is recorded at each evaluation."""
        masked = {"unreadable": self.unreadable} if self.unreadable else {}
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss, **masked}

    def __str__(self) -> str:
        mark = f" (normalisation of {self.borrowed} px)" if self.borrowed else ""
        mark += f" ({self.unreadable} unreadable left out)" if self.unreadable else ""
        return f"top-1 {self.top1:6.2f}%  top-5 {self.top5:6.2f}%  loss {self.loss:.4f}{mark}"


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a copy of the model, so that evaluating changes nothing of the training's state.

    `model` is that copy; `batch_size` images are decoded per process and batch by `threads` threads. `quarantine`:
    images that cannot be read are left out, counted and listed in it; without one they raise BadSampleError.
    `between` is called between batches, on every process equally often; it may raise to leave.
    """

    accelerator: Accelerator
    model: MultiView
    mean: Tensor
    std: Tensor
    batch_size: int
    threads: int
    timeout_s: float = 300.0
    quarantine: Quarantine | None = None
    between: Callable[[], None] = lambda: None

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over parameters and buffers; rank 0's buffers, since BatchNorm statistics differ between ranks."""
        copy_state(state, self.model)
        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                buffer.copy_(broadcast(buffer, from_process=0))

    @torch.no_grad()
    def score(self, images: Pixels, specs: Sequence[EvalSpec]) -> dict[str, Score]:
        """Every figure of `specs` on all of the images; raises InputError where none of them can be read."""
        device, model = self.accelerator.device, self.model.eval()
        sizes = tuple(sorted({size for spec in specs for size in spec.sizes}))
        own = np.arange(self.accelerator.process_index, len(images.index), self.accelerator.num_processes)
        requests = [own[first : first + self.batch_size] for first in range(0, len(own), self.batch_size)]
        # rows: specs, then unreadable images; columns: right, right within 5, loss, images. Counts are exact in
        # float64, and to 2^24 in float32
        exact = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
        sums = torch.zeros(len(specs) + 1, 4, dtype=exact, device=device)
        job = EvalJob(images, sizes, leave_out=self.quarantine is not None)
        in_common = -(-(len(images.index) // self.accelerator.num_processes) // self.batch_size)
        for i, batch in enumerate(by_threads(requests, job, self.threads, self.timeout_s)):
            if i < in_common:
                self.between()
            if self.quarantine is not None:
                self.quarantine.add(batch.bad)
            sums[-1] += len(batch.bad)
            if not len(batch.ids):
                continue
            targets = batch.targets.to(device)
            pixels = [views(batch.images[size].to(device), (size,), self.mean, self.std)[0] for size in sizes]
            with self.accelerator.autocast():
                logits = dict(zip(sizes, model(*pixels), strict=True))
            for row, spec in enumerate(specs):
                sums[row] += _count([logits[size].float() for size in spec.sizes], targets, exact)
        *totals, (bad, *_) = self.accelerator.reduce(sums, "sum").tolist()
        if bad == len(images.index):
            raise InputError(f"{images.index.root}: none of the {len(images.index)} images to evaluate can be read")
        return {
            spec.name: Score(100 * right / n, 100 * near / n, loss / n, round(n), self._borrowed(spec), round(bad))
            for spec, (right, near, loss, n) in zip(specs, totals, strict=True)
        }

    def _borrowed(self, spec: EvalSpec) -> int | None:
        return next((scale for size in spec.sizes if (scale := self.model.borrowed_norm(size))), None)


def _count(logits: Sequence[Tensor], targets: Tensor, exact: torch.dtype) -> Tensor:
    """(right, right within 5, summed loss, images) of the mean probabilities of N x C logits."""
    log_probabilities = torch.logsumexp(torch.stack([F.log_softmax(x, 1) for x in logits]), 0) - np.log(len(logits))
    ranked = log_probabilities.topk(min(5, log_probabilities.shape[1]), 1).indices
    right = ranked == targets[:, None]
    loss = F.nll_loss(log_probabilities.to(exact), targets, reduction="sum")
    images = torch.full_like(loss, len(targets))
    return torch.stack([right[:, 0].sum().to(exact), right.sum().to(exact), loss, images])
