"""The images of a map-style data set passed from Python, read one by one by its own code."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from toolkit.config.choices import GrayRange
from toolkit.data.images.decode import from_pil
from toolkit.data.images.header import reason_of
from toolkit.data.images.preprocess import AS_STORED, UNREADABLE
from toolkit.data.sources.faults import FAULTS_OF_FILES
from toolkit.data.sources.label_rows import as_row
from toolkit.system.errors import BadSampleError, InputError, LoaderError, first_line

FORM = "must be (PIL image or H x W x 3 uint8 array, label)"


@dataclass(frozen=True)
class Items:
    """A data set of `count` images, which `train(data=...)` calls `name`.

    `labeled`: if False, as in prediction, an item may also be the image alone. `classes`: their number, where an image
    may have any number of them.
    """

    data: Any
    name: str
    count: int
    labeled: bool = True
    classes: int | None = None

    def read(self, position: int, gray: GrayRange = AS_STORED) -> tuple[np.ndarray, Any]:
        """The image, H x W x 3 uint8, and the label of an item. `gray`: how more than 8 bits become 8.

        Raises BadSampleError if the data set raises or the image cannot be read, LoaderError if its storage failed, and
        InputError if the data set changed its length or the item is of another form.
        """
        if len(self.data) != self.count:
            raise InputError(
                f"data[{self.name!r}] has now {len(self.data)} images, {self.count} when its labels were read"
            )
        try:
            item = self.data[position]
        except Exception as error:  # a user's code raises any type of exception
            reason = f"{type(error).__name__}: {first_line(error)}"
            if isinstance(error, OSError) and error.errno not in FAULTS_OF_FILES:
                raise LoaderError(f"{self.title(position)}: {reason}: the storage failed, not the image") from None
            raise BadSampleError(f"{self.name}/{position}", reason) from error
        image, label = self._split(item, position)
        return self._pixels(image, position, gray), label

    def title(self, position: int) -> str:
        """How messages about its form call an item."""
        return f"data[{self.name!r}][{position}]" if self.labeled else f"data[{position}]"

    def check_label(self, position: int, label: Any, expected: Any) -> None:
        """Raise InputError unless an item's label is the expected one, as the data set told it before."""
        known = np.asarray(expected)
        found = np.asarray(label) if self.classes is None else as_row(label, self.classes, self.title(position))
        if known.dtype.kind == "f" and found.dtype.kind in "iuf":  # an index keeps rows as float32
            found = found.astype(known.dtype)
        if not np.array_equal(found, known):
            raise InputError(
                f"{self.title(position)}: its label is {label!r:.80}, but the data set told {expected} before: a run "
                "needs one and the same label"
            )

    def _split(self, item: Any, position: int) -> tuple[Any, Any]:
        if isinstance(item, tuple | list) and len(item) == 2:
            return item[0], item[1]
        if not self.labeled and not isinstance(item, tuple | list):
            return item, None
        parts = f" of {len(item)} parts" if isinstance(item, tuple | list) else ""
        raise InputError(f"{self.title(position)}: {FORM}, not a {type(item).__name__}{parts}")

    def _pixels(self, image: Any, position: int, gray: GrayRange) -> np.ndarray:
        if isinstance(image, Image.Image):
            try:
                return from_pil(image, gray)
            except UNREADABLE as error:
                raise BadSampleError(f"{self.name}/{position}", reason_of(error)) from None
        is_array = isinstance(image, np.ndarray)
        if is_array and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return np.require(image, requirements="W")  # torch warns of others
        shape = f" of shape {tuple(image.shape)} and type {image.dtype}" if hasattr(image, "shape") else ""
        raise InputError(f"{self.title(position)}: {FORM}; the image is a {type(image).__name__}{shape}")
