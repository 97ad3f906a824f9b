"""Tries a transform of the user's own on a training image before a run writes anything."""

from collections.abc import Iterable

import numpy as np

from toolkit.data.images.augment import seen_box
from toolkit.data.images.decode import crop_and_resize
from toolkit.data.images.transform import FLAG, Transform
from toolkit.data.loading.reader import ImageReader
from toolkit.data.loading.workers import call_in_processes
from toolkit.data.sources.index import Index
from toolkit.system.errors import BadSampleError, InputError

SEEDS = 4  # each is tried twice
MOST_UNREADABLE = 100


def try_transform(transform: Transform, train: Index, sizes: Iterable[int], timeout_s: float) -> None:
    """Call the transform at every size, px, in a worker process, and with each of a few seeds twice.

    Raises InputError if it fails, changes shape or type, or differs for the same seed.
    """
    reader = ImageReader(train)

    def trial(size: int) -> None:
        pixels = _square(reader, size)
        first, again = ([transform.apply(pixels, 0, epoch, 0) for epoch in range(SEEDS)] for _ in range(2))
        if not all(map(np.array_equal, first, again)):
            raise InputError(
                f"{FLAG} {transform.name}: differs at {size} px for the same seed: it must draw from Python's, NumPy's "
                "and torch's global generators only, and keep no state; give albumentations' object itself"
            )

    for _ in call_in_processes(trial, sizes, 1, timeout_s):
        pass


def _square(reader: ImageReader, size: int) -> np.ndarray:
    """The first readable image as evaluation sees it at `size` px."""
    for i in range(min(len(reader.index), MOST_UNREADABLE)):
        try:
            pixels = reader.whole(i)
        except BadSampleError as error:
            unreadable = error
            continue
        return crop_and_resize(pixels, seen_box(pixels.shape[1], pixels.shape[0], reader.index.fit), size)
    raise unreadable
