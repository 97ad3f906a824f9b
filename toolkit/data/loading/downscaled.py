"""Downscaled copies of the images for low-resolution phases: in memory, or as JPEGs that are written once."""

import math
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from tqdm import tqdm

from toolkit.data.images.decode import reduce_to
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.index import ALONE, Index
from toolkit.system import files, host
from toolkit.system.errors import BadSampleError
from toolkit.system.locks import locked

VERSION = 6  # of the file format and of how images are decoded
# Training uses a copy at half of its size or less. There, halved chroma still has a value for each pixel, and decoding
# takes a third less time.
JPEG_QUALITY, CHROMA = 92, "420"
MARGIN = 2  # the copy's shorter side is at least this many times the training size
WORTHWHILE = 2  # the original's shorter side is at least this many times the copy's: a quarter of the pixels
COLUMNS = ("offset", "length", "width", "height")


def downscaled_side(size: int, crop_scale: float) -> int:
    """The shorter side in px of the copies for training at `size` px, so that no crop has to be enlarged."""
    return math.ceil(size * max(MARGIN, 1 / math.sqrt(crop_scale)))


def is_worthwhile(index: Index, side: int) -> bool:
    """Whether at least half of the images are large enough for a downscaled copy to save time."""
    return float(np.median(np.minimum(index.width, index.height))) >= WORTHWHILE * side


def shrunk(index: Index, side: int) -> Index:
    """The same images with a shorter side of at most `side` px: the sizes at which memory keeps them."""
    shorter = np.maximum(1, np.minimum(index.width, index.height))
    scale = np.minimum(1, side / shorter)
    width, height = (
        np.where(length > 0, np.maximum(1, np.rint(length * scale)), 0).astype(np.int32)
        for length in (index.width, index.height)
    )
    return replace(index, width=width, height=height, table=None)


def open_downscaled(index: Index, side: int, cache: Path) -> Index:
    """The same images with a shorter side of at most `side` px; writes the copy under `cache` if it is missing.

    An unreadable image keeps its original file, so that reading it raises the reason. Raises OSError if the disk is
    full.
    """
    folder = cache / "tiers" / f"{_key(index)}-{side}px-v{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{folder}.lock"):
        arrays = _read(folder)
        if arrays is None:
            shutil.rmtree(folder, ignore_errors=True)
            staging = folder.with_name(f".tmp-{folder.name}")
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            _write(index, side, staging)
            os.replace(staging, folder)
            arrays = _read(folder)
    assert arrays is not None
    written = arrays["length"] > 0
    columns: dict[str, Any] = {name: np.where(written, arrays[name], getattr(index, name)) for name in COLUMNS}
    originals = np.where(index.container == ALONE, ALONE, index.container + 1).astype(np.int32)
    return replace(
        index,
        containers=(str(folder / "images.bin"), *index.containers),
        container=np.where(written, np.int32(0), originals),
        orientation=np.where(written, np.uint8(1), index.orientation),
        **columns,
    )


def _read(folder: Path) -> dict[str, np.ndarray] | None:
    """The columns of a downscaled copy; None if the copy is missing or incomplete, as after an interrupted transfer."""
    arrays, images = files.read_arrays(folder / "index.npz", COLUMNS), folder / "images.bin"
    if arrays is None or not images.exists():
        return None
    return arrays if images.stat().st_size == int(np.max(arrays["offset"] + arrays["length"], initial=0)) else None


def _key(index: Index) -> str:
    columns = (index.names.blob, index.names.ends, index.offset, index.length, index.width, index.height)
    gray = [index.gray] if index.gray != "16bit" else []  # so that copies of earlier versions stay in use
    return files.key(index.root, index.stamp, *gray, *(column.tobytes() for column in columns))


def _write(index: Index, side: int, folder: Path) -> None:
    """Write images.bin, which holds one JPEG after the other, and index.npz."""
    columns = {name: np.zeros(len(index), dtype=np.int64 if name in COLUMNS[:2] else np.int32) for name in COLUMNS}
    end = 0
    with (folder / "images.bin").open("wb") as file:
        small = _encode_all(ImageReader(index), shrunk(index, side))
        bar = tqdm(small, f"writing {side} px images", len(index), unit="image", disable=None)
        for i, (content, width, height) in enumerate(bar):
            file.write(content)
            for name, value in zip(COLUMNS, (end, len(content), width, height), strict=True):
                columns[name][i] = value
            end += len(content)
    files.sync(folder / "images.bin")
    files.write_arrays(folder / "index.npz", columns)


def _encode_all(pixels: ImageReader, small: Index) -> Iterator[tuple[bytes, int, int]]:
    """Encode every image on all cores; yields the results in order."""
    pending: deque[Future[tuple[bytes, int, int]]] = deque()
    with ThreadPoolExecutor(host.cpu_quota()) as pool:
        for i in range(len(pixels.index)):
            pending.append(pool.submit(_encode, pixels, i, int(small.width[i]), int(small.height[i])))
            if len(pending) > 64:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _encode(pixels: ImageReader, i: int, width: int, height: int) -> tuple[bytes, int, int]:
    """One image as a JPEG, and its width and height in px; empty bytes and zeros if it cannot be read."""
    try:
        image = np.ascontiguousarray(reduce_to(pixels.whole(i), height, width))
    except BadSampleError:
        return b"", 0, 0
    return simplejpeg.encode_jpeg(image, quality=JPEG_QUALITY, colorsubsampling=CHROMA), width, height
