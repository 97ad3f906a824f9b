"""How many levels of gray are left when more than 8 bits become 8."""

import io
from typing import NamedTuple

import numpy as np

from toolkit.config.choices import GrayRange
from toolkit.data.images.header import open_image, reason_of
from toolkit.data.images.preprocess import UNREADABLE, to_bytes

FEW_LEVELS = 32


class Levels(NamedTuple):
    """How many different values of gray an image has as stored, and as mapped to 8 bits."""

    stored: int
    mapped: int

    @property
    def few(self) -> bool:
        """Whether the mapping made most of them alike."""
        return self.mapped < min(FEW_LEVELS, self.stored)


def count_levels(content: bytes, gray: GrayRange) -> Levels:
    """The levels of an image with gray of more than 8 bits; raises ValueError with the reason."""
    try:
        with open_image(io.BytesIO(content)) as image:
            return Levels(len(np.unique(np.array(image))), len(np.unique(to_bytes(image, gray))))
    except UNREADABLE as error:
        raise ValueError(reason_of(error)) from None
