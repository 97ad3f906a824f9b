"""What is measured of evaluated images: metrics, what is kept of each image, and weighings of the images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

BLOCK = 64  # weighings that are computed together: the weights of 50,000 images then fit into a processor's cache


@dataclass(frozen=True)
class Metric:
    """A value of an evaluation: its name in files and flags, and its title; in percent, or in its own unit.

    `scores`: it is computed from the probabilities of all classes; `costs`: it needs `--cost-matrix`.
    """

    name: str
    title: str
    percent: bool = True
    higher_is_better: bool = True
    scores: bool = False
    costs: bool = False

    @property
    def direction(self) -> str:
        """A note where less is better; empty else."""
        return "" if self.higher_is_better else "lower is better"

    def text(self, value: float) -> str:
        return f"{value:6.2f}%" if self.percent else f"{value:.4f}"

    def between(self, low: float, high: float) -> str:
        """An interval of its values, such as `79.90 - 82.41`."""
        digits = 2 if self.percent else 4
        return f"{low:.{digits}f} - {high:.{digits}f}"

    def gain(self, value: float, reference: float) -> float:
        """How much better `value` is than `reference`; negative if it is worse."""
        return value - reference if self.higher_is_better else reference - value


@dataclass(frozen=True)
class ImageValues:
    """What an evaluation keeps of N images at one eval spec, for a task with C `classes`.

    `labels`: N, or N x C. `record`: R x N, of `BoundTask.record`. `summed`: S x N, each image's part of `Task.summed`.
    `scores`: C x N probabilities. `costs`: C x C, of an image of one class (row) that is taken for another (column).
    None: not kept, or not given.
    """

    labels: np.ndarray
    record: np.ndarray
    classes: int
    summed: np.ndarray | None = None
    scores: np.ndarray | None = None
    costs: np.ndarray | None = None

    def at(self, places: np.ndarray) -> "ImageValues":
        """Those of some images, by their positions."""
        summed, scores = (None if rows is None else rows[:, places] for rows in (self.summed, self.scores))
        return replace(self, labels=self.labels[places], record=self.record[:, places], summed=summed, scores=scores)


@dataclass(frozen=True)
class Weighing:
    """B weights of each of N images, in blocks of N x at most BLOCK, float32.

    `once`: all are 1, so that sums are counts.
    """

    blocks: tuple[Tensor, ...]
    once: bool = False

    @classmethod
    def plain(cls, images: int) -> "Weighing":
        """One weight of 1 for each image."""
        return cls((torch.ones(images, 1),), once=True)

    @classmethod
    def bootstrap(cls, images: int, numbers: Sequence[int], seed: int = 0) -> "Weighing":
        """How often each image is drawn when as many as there are are drawn with replacement.

        The draw of a number depends on the seed and the number only.
        """
        return cls(
            tuple(
                torch.from_numpy(np.stack([_drawn(images, seed, number) for number in numbers[i : i + BLOCK]], 1))
                for i in range(0, len(numbers), BLOCK)
            )
        )

    @property
    def images(self) -> int:
        return len(self.blocks[0])

    @cached_property
    def sums(self) -> tuple[np.ndarray, ...]:
        """The sums of the weights, by block."""
        return tuple(block.sum(0, dtype=torch.float64).numpy() for block in self.blocks)

    def counts(self) -> Iterator[np.ndarray]:
        """The N weights of each weighing, as whole numbers."""
        for block in self.blocks:
            yield from block.T.numpy().astype(np.int64)

    def totals(self, values: np.ndarray) -> np.ndarray:
        """K x B: the weighted sums of K x N values."""
        rows = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
        return np.concatenate([(rows @ block.double()).numpy() for block in self.blocks], axis=1)

    def group_totals(self, groups: np.ndarray, count: int, chosen: np.ndarray | None = None) -> np.ndarray:
        """`count` x B: the weights of the images of each group, 0 to count - 1; of the `chosen` ones only."""
        order = np.argsort(groups, kind="stable")
        order = order if chosen is None else order[chosen[order]]
        return self.run_totals(order, np.searchsorted(groups[order], np.arange(count + 1)))

    def run_totals(self, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """G x B: the weights of images, by position in `rows`, from each of G + 1 `starts` to the next."""
        return np.concatenate([run_totals(block, rows, starts) for block in self.blocks], axis=1)


def by_measure(
    measure: Callable[..., dict[str, float]],
    summed: Sequence[str],
    names: Sequence[str],
    images: ImageValues,
    weighing: Weighing,
) -> dict[str, np.ndarray]:
    """`Task.weighted` by `Task.measure`, one weighing after the other; `summed`: the names of `images.summed`."""
    if images.summed is None:
        return {}
    found = []
    for counts in weighing.counts():
        drawn = replace(images, scores=None).at(np.repeat(np.arange(weighing.images), counts))
        assert drawn.summed is not None
        sums = dict(zip(summed, drawn.summed.sum(1).tolist(), strict=True))
        found.append(measure(sums, drawn.labels, drawn.record, images.classes))
    return {name: np.array([values[name] for values in found]) for name in names if name in found[0]}


def _drawn(images: int, seed: int, number: int) -> np.ndarray:
    rng = np.random.default_rng([seed, number])
    return np.bincount(rng.integers(images, size=images, dtype=np.uint32), minlength=images).astype(np.float32)


def run_totals(block: Tensor, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """G x b float64: the sums of a block's `rows`, from each of G + 1 `starts` to the next.

    Whole numbers are exact up to 2^24.
    """
    first, last = int(starts[0]), int(starts[-1])
    if first == last:
        return np.zeros((len(starts) - 1, block.shape[1]))
    offsets = torch.from_numpy(np.asarray(starts, dtype=np.int64) - first)
    indices = torch.from_numpy(np.asarray(rows[first:last], dtype=np.int64))
    found = embedding_bag(indices, block, offsets, mode="sum", include_last_offset=True)
    return found.numpy().astype(np.float64)
