"""What a lenient look at a data set gives: the images and classes of a split as stored, and what is wrong with them."""

from typing import NamedTuple


class Finding(NamedTuple):
    """A fault; `name` is that of an image, a class or a manifest."""

    split: str
    name: str
    kind: str
    reason: str


class Listing(NamedTuple):
    """A split as stored: file and classes of each image, one or any number of them, and all classes that it names."""

    images: list[tuple[str, tuple[str, ...]]]
    classes: frozenset[str]
