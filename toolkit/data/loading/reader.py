"""Reads the pixels of an image by its number: from memory if it is cached there, else from its file or data set."""

import io
import mmap

import numpy as np
from torch.utils.data import get_worker_info

from toolkit.config.data_roots import is_url
from toolkit.data.images.decode import Box, crop_and_resize, decode, reduce_to
from toolkit.data.images.header import read_header
from toolkit.data.images.seeding import READ_STREAM, seed_globals
from toolkit.data.sources.index import Index
from toolkit.data.sources.read import read_bytes
from toolkit.system.errors import BadSampleError


class Memory:
    """Memory for all decoded images of an index, filled on first use; worker processes forked later share it.

    Takes at most `index.decoded_bytes`: pages that were never written take no memory.
    """

    def __init__(self, index: Index) -> None:
        self._shapes = np.stack([index.height, index.width], axis=1).tolist()
        sizes = 3 * index.width.astype(np.int64) * index.height
        self._starts = (np.cumsum(sizes) - sizes).tolist()
        self._bytes = mmap.mmap(-1, max(1, index.decoded_bytes))  # anonymous and shared
        self._there = np.frombuffer(mmap.mmap(-1, max(1, len(index))), dtype=np.uint8)
        self._pixels = np.frombuffer(self._bytes, dtype=np.uint8)

    def slot(self, i: int) -> np.ndarray:
        """The H x W x 3 memory of image i."""
        height, width = self._shapes[i]
        start = self._starts[i]
        return self._pixels[start : start + 3 * height * width].reshape(height, width, 3)

    def get(self, i: int) -> np.ndarray | None:
        return self.slot(i) if self._there[i] else None

    def put(self, i: int, pixels: np.ndarray) -> None:
        self.slot(i)[:] = pixels
        self._there[i] = 1


class ImageReader:
    """Reads the images of one index.

    `remember`: keep every decoded image in memory. `originals`: the index of the files to decode, if `index` gives
    smaller sizes to keep the images at.
    """

    def __init__(self, index: Index, remember: bool = False, originals: Index | None = None) -> None:
        self.index = index
        self._files = originals or index
        self._memory = Memory(index) if remember else None

    @property
    def remote(self) -> bool:
        """Whether every read goes to files in remote storage, not to memory or a local copy."""
        return self._memory is None and self.index.blocks is not None and is_url(self.index.containers[0])

    def whole(self, i: int) -> np.ndarray:
        """Image i in upright orientation, H x W x 3 uint8, decoded in full; raises BadSampleError."""
        if self._memory is None:
            return self._decode(i) if self.index.items is None else self.item(i, 0, 0, i)
        pixels = self._memory.get(i)
        if pixels is None:
            pixels = reduce_to(self._decode(i), int(self.index.height[i]), int(self.index.width[i]))
            self._memory.put(i, pixels)
        return pixels

    def item(self, i: int, seed: int, epoch: int, key: int) -> np.ndarray:
        """Image i of a data set passed from Python, as `whole`; raises InputError too.

        In worker processes, the global generators start from (seed, epoch, key), for a data set that draws from them.
        """
        items, position = self.index.items, int(self.index.offset[i])
        assert items is not None
        if get_worker_info() is not None:
            seed_globals(seed, READ_STREAM, epoch, key)
        pixels, label = items.read(position, self.index.gray)
        if items.labeled:
            items.check_label(position, label, self.index.labels[i])
        return pixels

    def crop(self, i: int, box: Box, size: int) -> np.ndarray:
        """The box of image i as size x size x 3 uint8, for training; raises BadSampleError.

        A JPEG is decoded at a fraction of its size if that is enough.
        """
        if self._memory is None:
            return self._decode(i, box, size)
        return crop_and_resize(self.whole(i), box, size)

    def _decode(self, i: int, box: Box | None = None, size: int | None = None) -> np.ndarray:
        files = self._files
        content = read_bytes(files, i)
        try:
            if not files.width[i]:  # unreadable when it was indexed: raise the reason
                read_header(io.BytesIO(content))
                raise ValueError("the file changed since it was indexed")
            pixels = decode(content, box, size, int(files.orientation[i]), files.gray, scaled=True)
            expected = int(files.height[i]), int(files.width[i])
            if box is None and pixels.shape[:2] != expected:
                raise ValueError(f"is now {pixels.shape[1]} x {pixels.shape[0]} px, not as it was indexed")
        except ValueError as error:
            raise BadSampleError(files.names[i], str(error)) from None
        return pixels
