"""Threads that turn requests into uint8 batches, in order, a few batches ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from toolkit.contract import Step
from toolkit.data.augment import Augmenter, center_square
from toolkit.data.decode import crop_and_resize, read_pixels
from toolkit.data.index import Index
from toolkit.data.sampler import Request

R = TypeVar("R")
T = TypeVar("T")
AHEAD = 2  # batches in flight beyond one per thread


class Batch(NamedTuple):
    """A training micro-batch: N x 3 x S x S uint8 in channels-last memory, N labels, and where they come from."""

    images: Tensor
    targets: Tensor
    ids: np.ndarray
    step: Step
    number: int  # of the optimizer step in the run


class EvalBatch(NamedTuple):
    """An evaluation batch: one N x 3 x S x S uint8 tensor per size."""

    images: dict[int, Tensor]
    targets: Tensor
    ids: np.ndarray


def in_order(requests: Iterable[R], load: Callable[[R], T], threads: int) -> Iterator[T]:
    """`map(load, requests)` with threads working ahead; an error comes out where its batch would have."""
    if threads == 0:
        yield from map(load, requests)
        return
    pool, pending = ThreadPoolExecutor(threads), deque[Future[T]]()
    try:
        for request in requests:
            pending.append(pool.submit(load, request))
            if len(pending) > threads + AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def empty_batch(count: int, size: int) -> Tensor:
    return torch.empty(count, size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)


def load_train(index: Index, augmenter: Augmenter, request: Request) -> Batch:
    """Decode once at the largest size of the step; smaller views are derived from it on the device."""
    size = request.step.sizes[-1]
    images = empty_batch(len(request.ids), size)
    for slot, sample in enumerate(request.ids.tolist()):
        pixels = read_pixels(index.paths[sample])
        height, width = pixels.shape[:2]
        box, mirror = augmenter.draw(request.epoch, sample, width, height, request.strength)
        crop = crop_and_resize(pixels, box, size)
        images[slot] = crop.flip(-1) if mirror else crop
    targets = torch.from_numpy(index.labels[request.ids])
    return Batch(images, targets, request.ids, request.step, request.number)


def load_eval(index: Index, sizes: Iterable[int], ids: np.ndarray) -> EvalBatch:
    """Each size straight from the decoded original, so that no figure depends on which other sizes are asked for."""
    images = {size: empty_batch(len(ids), size) for size in sizes}
    for slot, sample in enumerate(ids.tolist()):
        pixels = read_pixels(index.paths[sample])
        box = center_square(pixels.shape[1], pixels.shape[0])
        for size, batch in images.items():
            batch[slot] = crop_and_resize(pixels, box, size)
    return EvalBatch(images, torch.from_numpy(index.labels[ids]), ids)
