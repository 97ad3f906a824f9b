"""Looks at a few training images before a run: does gray of more than 8 bits keep its levels in 8 bits?"""

import io

import numpy as np

from toolkit.data.images.gray import FEW_LEVELS, count_levels
from toolkit.data.images.header import read_header
from toolkit.data.images.preprocess import is_deep
from toolkit.data.sources.index import Index
from toolkit.data.sources.read import read_bytes
from toolkit.system.errors import BadSampleError

LOOKED_AT = 32  # images, evenly spaced


def few_levels(train: Index) -> str:
    """A warning that names how many images come out nearly black or white, and the flag; empty if none does.

    Empty for images in remote storage, which are not fetched for it, and for data sets passed from Python.
    """
    if train.blocks is not None or train.items is not None:
        return ""
    ids = np.unique(np.linspace(0, len(train) - 1, LOOKED_AT).round().astype(int)).tolist()
    few = sum(_has_few(train, i) for i in ids)
    if not few:
        return ""
    other = {"minmax": "percentile", "percentile": "minmax"}.get(train.gray, "minmax or percentile")
    return (
        f"--range {train.gray} leaves fewer than {FEW_LEVELS} levels of gray to {few} of {len(ids)} images looked at, "
        f"whose files have more than 8 bits: --range {other} maps each image by its own; `toolkit scan` lists all"
    )


def _has_few(train: Index, i: int) -> bool:
    try:
        content = read_bytes(train, i)
        return is_deep(read_header(io.BytesIO(content)).mode) and count_levels(content, train.gray).few
    except (BadSampleError, ValueError):  # told where it is read for training
        return False
