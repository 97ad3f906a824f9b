"""What an evaluation gathers: values of all images at each eval spec, of which each rank adds those of its own."""

import logging

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from toolkit.models.collectives import gather_objects
from toolkit.strategies.base import BoundTask
from toolkit.strategies.measures import ImageValues
from toolkit.system import host
from toolkit.system.errors import InputError

CHUNK_BYTES = 64 * 2**20  # of probabilities that ranks exchange at a time
MOST_OF_FREE = 0.5  # of a machine's free memory, for the probabilities of all classes

log = logging.getLogger(__name__)


class Gathered:
    """`rows`: of the task's record; `summed`: names of `Task.summed`, or none if they are not kept of each image.

    Probabilities of all classes, if they are kept, wait in host memory, of this rank's images only.
    """

    def __init__(
        self, accelerator: Accelerator, images: int, specs: int, rows: int, summed: int, classes: int | None
    ) -> None:
        device = accelerator.device
        # Counts are exact in float64, and up to 2^24 in float32.
        self.exact = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
        self.accelerator, self.images, self.rows = accelerator, images, rows
        self.packed = torch.zeros(specs, 1 + rows + summed, images, dtype=self.exact, device=device)
        own = len(range(accelerator.process_index, images, accelerator.num_processes))
        self.scores = [torch.zeros(classes, own) for _ in range(specs)] if classes else []

    def add(self, row: int, ids: np.ndarray, bound: BoundTask, averaged: Tensor, labels: Tensor) -> None:
        """The values of some images at one eval spec; `averaged`: their N x C logits, `labels` on the device."""
        places = torch.from_numpy(ids).to(averaged.device)
        self.packed[row, 0, places] = 1
        self.packed[row, 1 : 1 + self.rows, places] = bound.record(averaged, labels).to(self.exact)
        if self.packed.shape[1] > 1 + self.rows:
            self.packed[row, 1 + self.rows :, places] = bound.each(averaged, labels, self.exact)
        if self.scores:
            own = torch.from_numpy((ids - self.accelerator.process_index) // self.accelerator.num_processes)
            self.scores[row][:, own] = bound.probabilities(averaged).float().T.cpu()

    def records(self) -> np.ndarray:
        """The values of all ranks, by eval spec: 1 for an image that was read, the record, and what is summed."""
        return self.accelerator.reduce(self.packed, "sum").cpu().numpy()

    def values(
        self, row: int, gathered: np.ndarray, labels: np.ndarray, classes: int, costs: np.ndarray | None
    ) -> ImageValues:
        """The values of the images that were read at one eval spec, once; every rank must call it.

        `gathered`: what `records` has of this spec.
        """
        there = gathered[0] > 0
        record, summed = gathered[1 : 1 + self.rows, there], gathered[1 + self.rows :, there]
        scores = self._scores(row) if self.scores else None
        if scores is not None and not there.all():
            scores = scores[:, there]
        return ImageValues(labels[there], record, classes, summed if len(summed) else None, scores, costs)

    def _scores(self, row: int) -> np.ndarray:
        """C x N probabilities of all ranks, some classes at a time."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        own, self.scores[row] = self.scores[row], torch.empty(0)
        if ranks == 1:
            return own.numpy()
        step = max(1, CHUNK_BYTES // (4 * self.images))
        parts: list[np.ndarray] = []
        for chunk in own.split(step):
            spread = torch.zeros(len(chunk), self.images, device=self.accelerator.device)
            spread[:, rank::ranks] = chunk.to(spread.device)
            parts.append(self.accelerator.reduce(spread, "sum").cpu().numpy())
        return np.concatenate(parts)


def scores_fit(images: int, classes: int, specs: int, accelerator: Accelerator, kept: bool = False) -> bool:
    """Whether host memory has room for the probabilities of all classes, logging it if not; every rank must call it.

    `kept`: those of all eval specs stay.
    """
    if told := _too_large(images, classes, specs, accelerator, kept):
        log.warning("AUROC, average precision and least expected cost left out: %s", told)
    return not told


def check_memory(flag: str, images: int, classes: int, accelerator: Accelerator) -> None:
    """Raise InputError, on all ranks, if host memory has no room for the probabilities of all classes."""
    if told := _too_large(images, classes, 1, accelerator, kept=False):
        raise InputError(f"{flag}: {told}: select by another metric, or validate on fewer images")


def _too_large(images: int, classes: int, specs: int, accelerator: Accelerator, kept: bool) -> str:
    """How much memory is missing; empty if there is enough on all ranks."""
    whole, ranks = 4e-9 * images * classes, accelerator.num_processes
    needed = whole * specs / ranks + whole * (specs if kept and ranks > 1 else 1)
    free = min(gather_objects(host.free_memory_gb() / host.local_processes()))
    if needed <= MOST_OF_FREE * free:
        return ""
    sizes = f" at {specs} sizes" if specs > 1 else ""
    return (
        f"the probabilities of {images} images and {classes} classes{sizes} take {needed:.1f} GB a process, and half "
        f"of the {free:.1f} GB free is allowed"
    )
