"""Builds training and evaluation batches from batch specs."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from toolkit.data.images.augment import Augmenter, mirrored, seen_box
from toolkit.data.images.decode import Box, crop_and_resize
from toolkit.data.images.mixing import Mixer
from toolkit.data.loading.reader import ImageReader
from toolkit.data.loading.sampler import BatchSpec
from toolkit.data.sources.index import Index
from toolkit.strategies.base import Step
from toolkit.system.errors import BadSampleError, InputError

R = TypeVar("R", contravariant=True)
T = TypeVar("T", covariant=True)
Drawn = tuple[list[Box], list[bool]]  # as from Augmenter.draw
Keyed = tuple[int, int]  # id, and key of its random draws
MOST_SUBSTITUTES = 100  # consecutive unreadable images before training gives up


class Batch(NamedTuple):
    """A training micro-batch: N x 3 x S x S uint8 in channels-last memory, N labels, and N image ids.

    `mixing`: N x 5 as from Mixer.draw. `bad`: (name, reason) of each unreadable image that was replaced.
    """

    images: Tensor
    targets: Tensor
    ids: np.ndarray
    step: Step
    number: int  # optimizer step in the run, from 0
    mixing: Tensor | None = None
    bad: tuple[tuple[str, str], ...] = ()


class EvalBatch(NamedTuple):
    """An evaluation batch: one N x 3 x S x S uint8 tensor per size; `bad`: (name, reason) of each image left out."""

    images: dict[int, Tensor]
    targets: Tensor
    ids: np.ndarray
    bad: tuple[tuple[str, str], ...] = ()


class BatchBuilder(Protocol[R, T]):
    """Turns a batch spec into a batch: open, fill, close. Any thread may fill any slots, in any order."""

    def open(self, spec: R) -> tuple[int, Any]:
        """The number of slots, and the memory that `fill` writes to."""

    def fill(self, spec: R, memory: Any, slots: range) -> None: ...

    def close(self, spec: R, memory: Any) -> T: ...


def empty_batch(count: int, size: int) -> Tensor:
    """An uninitialized N x 3 x S x S uint8 batch, channels last; pinned if there is a GPU.

    torch reuses the pinned pages once their copy to the GPU has finished.
    """
    pin = torch.cuda.is_available() and get_worker_info() is None  # a forked worker process must not use the GPU
    return torch.empty(count, size, size, 3, dtype=torch.uint8, pin_memory=pin).permute(0, 3, 1, 2)


def _rows(batch: Tensor) -> np.ndarray:
    """N x S x S x 3 view for NumPy, which unlike torch starts no threads to copy."""
    return batch.permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class TrainBatchBuilder:
    """Decodes each image once, at the largest size of the step; the device derives the smaller views from it.

    `substitute`: replace an unreadable image by the next readable one of the index, with that image's own label. The
    choice is the same on every process. Otherwise raise BadSampleError.
    """

    pixels: ImageReader
    augmenter: Augmenter
    mixer: Mixer
    substitute: bool = False

    def open(self, spec: BatchSpec) -> tuple[int, Any]:
        count, drawn = len(spec.ids), self._draw(spec, spec.ids, spec.draw_keys)
        return count, (empty_batch(count, spec.step.sizes[-1]), spec.ids.copy(), drawn, [])

    def fill(self, spec: BatchSpec, memory: Any, slots: range) -> None:
        images, ids, drawn, bad = memory
        rows = _rows(images)
        for slot in slots:
            sample, key = int(ids[slot]), int(spec.draw_keys[slot])
            try:
                crop, mirror = self._crop(spec, (sample, key), drawn, slot)
            except BadSampleError as error:
                if not self.substitute:
                    raise
                bad.append((error.name, error.reason))
                (sample, key), crop, mirror = self._next_readable(spec, (sample, key), bad)
                ids[slot] = sample
            if mirror:
                crop = mirrored(crop)
            rows[slot] = self.augmenter.change(crop, spec.epoch, key, spec.regularization)

    def _draw(self, spec: BatchSpec, ids: np.ndarray, keys: np.ndarray) -> Drawn | None:
        """The boxes and mirrors of some images; None if their sizes are only known once they are read."""
        index = self.pixels.index
        if index.items is not None:
            return None
        return self.augmenter.draw(spec.epoch, keys, index.width[ids], index.height[ids], spec.regularization)

    def _crop(self, spec: BatchSpec, image: Keyed, drawn: Drawn | None, slot: int) -> tuple[np.ndarray, bool]:
        """An image at the step's largest size, and whether to mirror it; `drawn`: as from `_draw`, at `slot`."""
        sample, key = image
        if drawn is not None:
            return self.pixels.crop(sample, drawn[0][slot], spec.step.sizes[-1]), drawn[1][slot]
        pixels = self.pixels.item(sample, self.augmenter.seed, spec.epoch, key)
        height, width = (np.array([length]) for length in pixels.shape[:2])
        (box,), (mirror,) = self.augmenter.draw(spec.epoch, np.array([key]), width, height, spec.regularization)
        return crop_and_resize(pixels, box, spec.step.sizes[-1]), mirror

    def _next_readable(self, spec: BatchSpec, image: Keyed, bad: list[Any]) -> tuple[Keyed, np.ndarray, bool]:
        index, (sample, key) = self.pixels.index, image
        for step in range(1, MOST_SUBSTITUTES):
            other = (sample + step) % len(index)
            its_key = other + key - sample
            drawn = self._draw(spec, np.array([other]), np.array([its_key]))
            try:
                return (other, its_key), *self._crop(spec, (other, its_key), drawn, 0)
            except BadSampleError as error:
                bad.append((error.name, error.reason))
        raise InputError(
            f"{index.names[sample]} and the {MOST_SUBSTITUTES - 1} images after it cannot be read: "
            "is the data still there? `toolkit scan` checks all of it"
        )

    def close(self, spec: BatchSpec, memory: Any) -> Batch:
        images, ids, _, bad = memory
        targets = torch.from_numpy(self.pixels.index.labels[ids])
        mixing = self.mixer.draw(spec.epoch, spec.draw_keys, spec.regularization)
        return Batch(images, targets, ids, spec.step, spec.number, mixing, tuple(bad))


class Images(Protocol):
    """The images of an index, as evaluation reads them."""

    index: Index

    def whole(self, i: int) -> np.ndarray:
        """Image i in upright orientation, H x W x 3 uint8, decoded in full; raises BadSampleError."""


@dataclass(frozen=True)
class EvalBatchBuilder:
    """Resizes the decoded original directly to each size, so that no metric depends on the other sizes evaluated.

    `leave_out`: leave unreadable images out of the batch and list them in its `bad`. Otherwise raise BadSampleError.
    """

    pixels: Images
    sizes: tuple[int, ...]
    leave_out: bool = False

    def open(self, ids: np.ndarray) -> tuple[int, Any]:
        return len(ids), ({size: empty_batch(len(ids), size) for size in self.sizes}, {})

    def fill(self, ids: np.ndarray, memory: Any, slots: range) -> None:
        images, bad = memory
        for slot in slots:
            try:
                pixels = self.pixels.whole(int(ids[slot]))
            except BadSampleError as error:
                if not self.leave_out:
                    raise
                bad[slot] = (error.name, error.reason)
                continue
            box = seen_box(pixels.shape[1], pixels.shape[0], self.pixels.index.fit)
            for size, batch in images.items():
                _rows(batch)[slot] = crop_and_resize(pixels, box, size)

    def close(self, ids: np.ndarray, memory: Any) -> EvalBatch:
        images, bad = memory
        if bad:
            kept = np.array([slot for slot in range(len(ids)) if slot not in bad], dtype=np.int64)
            images, ids = {size: batch[torch.from_numpy(kept)] for size, batch in images.items()}, ids[kept]
        targets = torch.from_numpy(self.pixels.index.labels[ids])
        return EvalBatch(images, targets, ids, tuple(bad[slot] for slot in sorted(bad)))


def load(builder: BatchBuilder[R, T], spec: R) -> T:
    """Build one batch in the calling thread."""
    count, memory = builder.open(spec)
    builder.fill(spec, memory, range(count))
    return builder.close(spec, memory)
