"""Opens the data of a run, also data sets passed from Python; what these give is read in worker processes."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.config.choices import GrayRange
from toolkit.config.settings import Settings
from toolkit.data.loading.reader import ImageReader
from toolkit.data.loading.workers import call_in_processes
from toolkit.data.sources.index import Found, Splits
from toolkit.data.sources.items import Items
from toolkit.data.sources.python_data import ReadLabels
from toolkit.data.sources.splits import find_splits, open_splits
from toolkit.system import host
from toolkit.system.errors import BadSampleError

log = logging.getLogger(__name__)

PIECE = 64  # items that one worker reads at a time
PATIENCE_S = 300.0


def open_data(settings: Settings, largest: int, data: Mapping[str, Any] | None = None) -> Splits:
    """The data of a run, with a validation split: `data`, or else what `--data-root` names; as `open_splits`."""
    return open_splits(settings, largest, data, label_reader(settings))


def find_data(settings: Settings, largest: int, data: Mapping[str, Any] | None = None) -> Found:
    """The splits that `data`, or else `--data-root`, itself has; as `find_splits`."""
    return find_splits(settings, largest, data, label_reader(settings))


def label_reader(settings: Settings) -> ReadLabels:
    """Reads the labels of items in worker processes."""
    workers = host.loader_threads() if settings.num_workers is None else settings.num_workers

    def read_labels(items: Items, positions: Sequence[int]) -> list[Any]:
        if len(positions) > 1:
            log.info("data      reading the labels of %d images once: data[%r] has no targets", items.count, items.name)
        pieces = [positions[start : start + PIECE] for start in range(0, len(positions), PIECE)]
        at_once = min(max(1, workers), len(pieces))
        labels = call_in_processes(_labels_of(items, settings.range), pieces, at_once, settings.loader_timeout_s)
        return [label for piece in labels for label in piece]

    return read_labels


def _labels_of(items: Items, gray: GrayRange) -> Callable[[Sequence[int]], list[Any]]:
    def read(positions: Sequence[int]) -> list[Any]:
        return [label_of(position) for position in positions]

    def label_of(position: int) -> Any:
        try:
            return np.asarray(items.read(position, gray)[1])
        except BadSampleError as error:
            return error

    return read


def read_few(images: ImageReader, ids: Iterable[int]) -> Iterator[np.ndarray | None]:
    """A few images, each H x W x 3 uint8 as `ImageReader.whole`; None for one that cannot be read."""

    def whole(i: int) -> np.ndarray | None:
        try:
            return images.whole(i)
        except BadSampleError:
            return None

    return map(whole, ids) if images.index.items is None else call_in_processes(whole, ids, 1, PATIENCE_S)
