"""The images of a data set: one index per split, for any kind of source. Samplers and loaders use only numbers."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toolkit.config.choices import Fit, GrayRange
from toolkit.config.settings import Settings
from toolkit.data.images.preprocess import AS_STORED
from toolkit.data.sources.items import Items
from toolkit.data.sources.label_rows import multi_hot
from toolkit.data.sources.remote import BlockCache

ALONE = -1  # an image that is a single file
TAKEN = 2**18  # names taken at a time
COLUMNS = ("container", "offset", "length", "labels", "width", "height", "orientation")


class Names:
    """Many strings in two arrays; a list of a million strings would take ten times the memory in every process."""

    def __init__(self, blob: np.ndarray, ends: np.ndarray) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Names":
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    @classmethod
    def joined(cls, parts: Sequence["Names"]) -> "Names":
        starts = np.cumsum([0, *(len(part.blob) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate([part.blob for part in parts]), np.concatenate(ends))

    def take(self, ids: np.ndarray) -> "Names":
        """The names of some, in that order; a part at a time, since each byte's place takes eight."""
        starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64) if len(self.ends) else self.ends
        lengths = (self.ends - starts)[ids]
        ends, blob = np.cumsum(lengths, dtype=np.int64), np.empty(int(lengths.sum()), dtype=np.uint8)
        for first in range(0, len(ids), TAKEN):
            part = slice(first, first + TAKEN)
            shifts = np.repeat(starts[ids[part]] - (ends[part] - lengths[part]), lengths[part])
            begin, end = int(ends[first] - lengths[first]), int(ends[part][-1])
            blob[begin:end] = self.blob[np.arange(begin, end) + shifts]
        return Names(blob, ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        start = int(self.ends[i - 1]) if i else 0
        return self.blob[start : int(self.ends[i])].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


class Place(NamedTuple):
    """Location of an image's bytes: a file or URL, and a part of it in bytes; `length` None: the whole file."""

    path: str
    offset: int
    length: int | None


@dataclass(frozen=True)
class Index:
    """The images of one split; the id of an image is its number.

    `names[i]`: the name in messages, a path relative to `root`, or SHARD/MEMBER. `container[i]`: number in `containers`
    of the file that holds the image, -1 if it is a single file. `width`, `height`: px in upright orientation, 0 if the
    header could not be read. `orientation`: EXIF's. `stamp`: changes if a file is written again. `blocks`: reads the
    containers that are URLs. `items`: the data set passed from Python that gives the images, `offset[i]` being the
    position there; their sizes are only known once they are read. `gray`: how more than 8 bits become 8. `fit`: how
    images become square. `table`: the file that the columns are mapped from, see `index_tables`.
    """

    root: str
    names: Names
    containers: tuple[str, ...]
    container: np.ndarray  # int32
    offset: np.ndarray  # int64, bytes
    length: np.ndarray  # int64, bytes
    labels: np.ndarray  # int64; of a task of several labels, N rows of int64 or float32
    width: np.ndarray  # int32
    height: np.ndarray  # int32
    orientation: np.ndarray  # uint8
    stamp: str = ""
    blocks: BlockCache | None = None
    items: Items | None = None
    gray: GrayRange = AS_STORED
    fit: Fit = "crop"
    table: Path | None = None

    @classmethod
    def of_items(cls, items: Items, labels: np.ndarray) -> "Index":
        """An index of a data set passed from Python; `labels`: of each of its images."""
        index = cls.of_files(Path(f"data[{items.name!r}]"), [f"{items.name}/{i}" for i in range(items.count)], ())
        return replace(index, offset=np.arange(items.count, dtype=np.int64), labels=labels, items=items)

    @classmethod
    def of_files(cls, root: Path, names: Sequence[str], labels: Sequence[Any] | np.ndarray) -> "Index":
        """An index of images that are single files, whose sizes are not known yet; `labels`: N, or N rows."""
        count, given = len(names), np.asarray(labels)
        whole = given.dtype.kind != "f" or bool((given == np.rint(given)).all())
        pixels, size = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.int64)
        return cls(
            root=str(root),
            names=Names.of(names),
            containers=(),
            container=np.full(count, ALONE, dtype=np.int32),
            offset=size,
            length=size,
            labels=given.astype(np.int64 if whole else np.float32),
            width=pixels,
            height=pixels,
            orientation=np.ones(count, dtype=np.uint8),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, ids: np.ndarray) -> "Index":
        """The images `ids`, in that order."""
        columns = {name: getattr(self, name)[ids] for name in COLUMNS}
        return replace(self, names=self.names.take(ids), table=None, **columns)

    def seen_by(self, settings: Settings) -> "Index":
        """The same images, whose pixels a run with these settings sees as it does."""
        return replace(self, gray=settings.range, fit=settings.fit)

    def with_rows(self, classes: int) -> "Index":
        """The index with rows of C zeros and ones for labels, of one that has a single class for each image."""
        if self.labels.ndim > 1:
            return self
        return replace(self, labels=multi_hot([[label] for label in self.labels.tolist()], classes))

    def place(self, i: int) -> Place:
        if self.container[i] == ALONE:
            return Place(f"{self.root}/{self.names[i]}", 0, None)
        return Place(self.containers[self.container[i]], int(self.offset[i]), int(self.length[i]))

    def unreadable(self) -> np.ndarray:
        """Ids of the images whose header could not be read."""
        return np.flatnonzero(self.width == 0) if self.items is None else np.arange(0)

    def digest(self) -> str:
        """SHA-256 of names, labels, and sizes in bytes and px, in order."""
        digest = hashlib.sha256()
        for column in (self.names.blob, self.names.ends, self.labels, self.length, self.width, self.height):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()

    @cached_property
    def decoded_bytes(self) -> int:
        """Size of all images when decoded, bytes."""
        return int(3 * (self.width.astype(np.int64) * self.height).sum())


@dataclass(frozen=True)
class Splits:
    """A whole data set; `test` is None if there is no test split; `classes[label]` is the name of a label.

    `held_out`: the share of train that is `val`; None if the data has a validation split of its own.
    """

    train: Index
    val: Index
    test: Index | None
    classes: tuple[str, ...]
    source: str
    held_out: float | None = None

    def all(self) -> dict[str, Index]:
        """The splits that exist, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: index for name, index in named.items() if index is not None}

    def digests(self) -> dict[str, dict[str, Any]]:
        """Number and hash of the images of train, and of val, which selects the best model."""
        learned = {"train": self.train, "val": self.val}
        return {name: {"images": len(index), "sha256": index.digest()} for name, index in learned.items()}


class Found(NamedTuple):
    """The splits of a source; `val` and `test` are None if it has none. `name`: of the data; empty: its data root."""

    train: Index
    val: Index | None
    test: Index | None
    classes: Sequence[str]
    name: str = ""

    def seen_by(self, settings: Settings) -> "Found":
        """The same images, each split as `Index.seen_by`."""
        train, *others = self[:3]
        val, test = (index and index.seen_by(settings) for index in others)
        return self._replace(train=train.seen_by(settings), val=val, test=test)

    def with_rows(self) -> "Found":
        """The same images with rows of C zeros and ones for labels."""
        count = len(self.classes)
        val, test = (index and index.with_rows(count) for index in (self.val, self.test))
        return self._replace(train=self.train.with_rows(count), val=val, test=test)

    def splits(self) -> dict[str, Index]:
        """The splits that exist, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: index for name, index in named.items() if index is not None}
