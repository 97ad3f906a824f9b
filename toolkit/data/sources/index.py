"""What images there are: one index per split, whatever they lie in. Samplers and loaders see numbers only."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toolkit.data.sources.remote import BlockCache

ALONE = -1  # an image that is a file of its own
COLUMNS = ("container", "offset", "length", "labels", "width", "height", "orientation")


class Names:
    """Many strings in two arrays: a list of a million would take ten times the memory in every process."""

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

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        start = int(self.ends[i - 1]) if i else 0
        return self.blob[start : int(self.ends[i])].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


class Place(NamedTuple):
    """Where an image's bytes are: a file or URL, and a part of it; `length` None: all of it."""

    path: str
    offset: int
    length: int | None


@dataclass(frozen=True)
class Index:
    """The images of one split; the id of an image is its number.

    `names[i]` is what a person calls it: a path relative to `root`, or SHARD/MEMBER. `container[i]` is the number in
    `containers` of the file that holds it, -1 where it is a file of its own; `width` and `height` are as seen upright,
    px, 0 where its header could not be read; `orientation` is EXIF's. `stamp` is another text once a file was written
    again. `blocks` reads the containers that are URLs.
    """

    root: str
    names: Names
    containers: tuple[str, ...]
    container: np.ndarray  # int32
    offset: np.ndarray  # int64, bytes
    length: np.ndarray  # int64, bytes
    labels: np.ndarray  # int64
    width: np.ndarray  # int32
    height: np.ndarray  # int32
    orientation: np.ndarray  # uint8
    stamp: str = ""
    blocks: BlockCache | None = None

    @classmethod
    def of_files(cls, root: Path, names: Sequence[str], labels: Sequence[int]) -> "Index":
        """Images that are files of their own, of sizes not known yet."""
        count = len(names)
        pixels, size = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.int64)
        return cls(
            root=str(root),
            names=Names.of(names),
            containers=(),
            container=np.full(count, ALONE, dtype=np.int32),
            offset=size,
            length=size,
            labels=np.array(labels, dtype=np.int64),
            width=pixels,
            height=pixels,
            orientation=np.ones(count, dtype=np.uint8),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, ids: np.ndarray) -> "Index":
        """Some of the images, in the order of `ids`."""
        names = Names.of(self.names[i] for i in ids.tolist())
        return replace(self, names=names, **{name: getattr(self, name)[ids] for name in COLUMNS})

    def place(self, i: int) -> Place:
        if self.container[i] == ALONE:
            return Place(f"{self.root}/{self.names[i]}", 0, None)
        return Place(self.containers[self.container[i]], int(self.offset[i]), int(self.length[i]))

    def unreadable(self) -> np.ndarray:
        """Ids of the images whose header could not be read."""
        return np.flatnonzero(self.width == 0)

    def digest(self) -> str:
        """A hash of names, labels and sizes, in bytes and px, in order."""
        digest = hashlib.sha256()
        for column in (self.names.blob, self.names.ends, self.labels, self.length, self.width, self.height):
            digest.update(column.tobytes())
        return digest.hexdigest()

    @cached_property
    def decoded_bytes(self) -> int:
        """What all images take when decoded, bytes."""
        return int(3 * (self.width.astype(np.int64) * self.height).sum())


@dataclass(frozen=True)
class Splits:
    """A whole data set; `test` is None where there is none; a label's name is `classes[label]`."""

    train: Index
    val: Index
    test: Index | None
    classes: tuple[str, ...]
    source: str

    def all(self) -> dict[str, Index]:
        """The splits that there are, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: index for name, index in named.items() if index is not None}

    def digests(self) -> dict[str, dict[str, Any]]:
        """Number and hash of the images that are trained on, and of those that select the best model, by split."""
        learned = {"train": self.train, "val": self.val}
        return {name: {"images": len(index), "sha256": index.digest()} for name, index in learned.items()}


class Found(NamedTuple):
    """What a source holds: `val` and `test` None where it has none."""

    train: Index
    val: Index | None
    test: Index | None
    classes: Sequence[str]
