"""Balanced sampling: how often each image comes in an epoch, a pure function of labels, seed and epoch."""

from dataclasses import dataclass

import numpy as np

from toolkit.config.settings import Settings
from toolkit.data.sources.index import Splits
from toolkit.data.sources.label_rows import images_of_classes
from toolkit.system.errors import InputError

BALANCE_STREAM = 1  # separates this generator from that of the order
DIGITS = 6  # of draws: sums of fractions miss whole numbers by less
GOLDEN = (5**0.5 - 1) / 2  # its multiples, without their whole parts, spread evenly over 0 to 1


@dataclass(frozen=True)
class Balance:
    """Images in groups that come equally often: those of a class, where an image has one.

    `groups`: the ids of each, in random order. `weights`: how often an image of each comes, relative to the others.
    """

    groups: tuple[np.ndarray, ...]
    weights: np.ndarray

    @property
    def images(self) -> int:
        return sum(map(len, self.groups))

    @property
    def draws(self) -> np.ndarray:
        """How many images each group is to have in an epoch, on average over epochs; they add up to all images."""
        shares = self.weights * [len(group) for group in self.groups]
        drawn: np.ndarray = self.images * shares / shares.sum()
        return drawn

    def counts(self, epoch: int) -> np.ndarray:
        """How often each image comes in an epoch, N numbers that add up to N.

        The numbers of two images of a group differ by at most 1, in every epoch and over all epochs up to it: a group
        is passed through again and again, and each epoch begins where the last one ended.
        """
        ends = np.round(np.cumsum(self.draws), DIGITS)
        before = sum((_whole(ends, earlier) for earlier in range(epoch)), np.zeros(len(ends), dtype=np.int64))
        counts = np.zeros(self.images, dtype=np.int64)
        for group, start, drawn in zip(self.groups, before.tolist(), _whole(ends, epoch).tolist(), strict=True):
            counts[group] = drawn // len(group)
            counts[group[(start + np.arange(drawn % len(group))) % len(group)]] += 1
        return counts


def _whole(ends: np.ndarray, epoch: int) -> np.ndarray:
    """The draws of each group in an epoch, rounded up or down so that the sum is exact; `ends`: cumulated draws."""
    return np.diff(np.floor(ends + epoch * GOLDEN % 1), prepend=0).astype(np.int64)


def make_balance(labels: np.ndarray, power: float, seed: int) -> Balance:
    """An image comes in proportion to 1 / (images of its class) to the `power`; raises InputError without classes.

    Where an image has several, its rarest one counts (the repeat factor of LVIS, arXiv:1908.03195); one that has none
    comes as seldom as any.
    """
    images, rarest = _rarest(labels)
    order = np.random.default_rng((seed, BALANCE_STREAM)).permutation(len(labels))
    by_kind = order[np.argsort(rarest[order], kind="stable")]
    used, sizes = np.unique(rarest, return_counts=True)
    groups = np.split(by_kind, np.cumsum(sizes)[:-1])
    return Balance(tuple(groups), np.maximum(images[used], 1.0) ** -power)


def _rarest(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images of each class, with those of the commonest once more for images without a class; each image's rarest."""
    if labels.dtype.kind not in "iu" or (labels.ndim > 1 and not np.isin(labels, (0, 1)).all()):
        raise InputError(
            f"--sampling balanced: labels of type {labels.dtype} and shape {labels.shape[1:]} are neither classes nor "
            "a 0 or 1 for each class; drop the flag"
        )
    if labels.ndim == 1:
        _, kinds, images = np.unique(labels, return_inverse=True, return_counts=True)
        return images, kinds
    images = labels.sum(0)
    images = np.append(images, images.max())
    order = np.argsort(images[:-1], kind="stable")  # the rarest first
    first = labels[:, order].argmax(1)
    return images, np.where(labels.any(1), order[first], len(order))


def balance_of(settings: Settings, labels: np.ndarray) -> Balance | None:
    """That of the settings; None for plain sampling."""
    return None if settings.sampling == "plain" else make_balance(labels, settings.sampling_power, settings.seed)


def describe_balance(settings: Settings, splits: Splits) -> list[str]:
    """Lines for the plan of a run; none for plain sampling. Raises InputError as `make_balance`."""
    labels = splits.train.labels
    balance = balance_of(settings, labels)
    if balance is None:
        return []
    images = images_of_classes(labels, len(splits.classes))
    rare, common = int(np.where(images, images, len(labels)).argmin()), int(images.argmax())
    many = float((balance.draws / [len(group) for group in balance.groups]).max())
    few = many * float(images[rare] / images[common]) ** settings.sampling_power
    head = f"sampling  balanced, power {settings.sampling_power:g}"
    if images[rare] == images[common]:
        return [f"{head}: the same as plain, because all classes have {images[common]} images"]
    alone = " and no rarer one" if labels.ndim > 1 else ""
    lines = [
        f"{head}: on average an image of {splits.classes[rare]!r}, the rarest class ({images[rare]} image(s)), comes "
        f"{many:.3g} times an epoch, one of {splits.classes[common]!r}, the commonest ({images[common]}){alone}, "
        f"{few:.3g} times"
    ]
    if settings.class_weights != "none":
        lines.append(
            f"warning   --class-weights {settings.class_weights} and --sampling balanced both favor rare classes, and "
            "their factors multiply: one of them is usually enough"
        )
    return lines


def repeats(order: np.ndarray) -> np.ndarray:
    """How often each image of an order has come before in it."""
    by_image = np.argsort(order, kind="stable")
    grouped = order[by_image]
    first = np.flatnonzero(np.diff(grouped, prepend=-1))  # where each image begins
    before = np.empty(len(order), dtype=np.int64)
    before[by_image] = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    return before
