"""Map-style data sets passed from Python: `{"train": ..., "val": ..., "test": ...}` becomes an index per split.

Labels come from `targets`, class names from `classes` of train; torch's Subset is looked through for both.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, Subset

from toolkit.config.data_roots import PYTHON_DATA
from toolkit.data.sources.index import Found, Index
from toolkit.data.sources.items import Items
from toolkit.data.sources.label_rows import ADVICE, as_rows, count_in
from toolkit.data.sources.labels import MOST_CLASSES, check_splits, count_classes
from toolkit.system.errors import BadSampleError, InputError, first_line, nearest

SPLITS = ("train", "val", "test")

# The labels of the items at some positions, in order; in place of that of an item which cannot be read, its error.
ReadLabels = Callable[[Items, Sequence[int]], Sequence[Any]]


def data_modules(data: Mapping[str, Any] | None) -> set[str]:
    """The modules that define the data sets, but for Python's own."""
    return {type(_looked_through(part)).__module__ for part in (data or {}).values()} - {"builtins"}


def data_name(data: Mapping[str, Any]) -> str:
    """What config.yaml calls the data sets; raises InputError unless they are a mapping that has train."""
    check_names(data)
    if "train" not in data:
        raise InputError(f"data has no 'train'; it has {', '.join(map(repr, data)) or 'nothing'}")
    kind = type(_looked_through(data["train"]))
    return f"{PYTHON_DATA}{kind.__module__}:{kind.__qualname__}"


def check_names(data: Mapping[str, Any]) -> None:
    """Raise InputError unless the data sets are a mapping of splits that there are."""
    if not isinstance(data, Mapping):
        raise InputError(
            f"data must be a mapping of 'train', 'val' and 'test' to data sets, not a {type(data).__name__}"
        )
    for name in data:
        if name not in SPLITS:
            raise InputError(
                f"data has no place for {name!r}: the splits are train, val, test{nearest(str(name), SPLITS)}"
            )


def index_data(data: Mapping[str, Any], read_labels: ReadLabels, strict: bool, several: bool = False) -> Found:
    """The index of each split, with its labels checked; raises InputError naming the data set and item at fault.

    `strict`: the first item of each must be readable. `several`: an image has any number of classes.
    """
    name, known, indices = data_name(data), len(given_names(data["train"])), {}
    for split in SPLITS:
        if split in data:
            indices[split] = index_split(split, data[split], read_labels, strict, known if several else None)
            known = indices["train"].labels.shape[-1]
    labels = indices["train"].labels
    count = labels.shape[1] if labels.ndim > 1 else count_classes(indices["train"], "data: train")
    classes = given_names(data["train"]) or tuple(map(str, range(count)))
    return check_splits(Found(indices["train"], indices.get("val"), indices.get("test"), classes, name), "data")


def index_split(name: str, data: Any, read_labels: ReadLabels, strict: bool, classes: int | None = None) -> Index:
    """The index of one data set. Its first item is read, and all of them where it does not tell its `targets`.

    `classes`: their number where an image has any number of them, 0 if only the labels tell; else None.
    """
    items = open_items(name, data)
    known = _targets(data)
    where = f"data[{name!r}]" + (".targets" if known is not None else "")
    values = _all_labels(items, read_labels) if known is None else known
    if classes is None:
        labels = as_labels(values, where)
    else:
        values = values.tolist() if hasattr(values, "tolist") else values
        classes = classes or count_in(values, where)
        labels, items = as_rows(values, classes, where), replace(items, classes=classes)
    if known is not None:
        if len(labels) != items.count:
            raise InputError(f"data[{name!r}] has {items.count} images, but {len(labels)} targets")
        (first,) = read_labels(items, [0])
        if not isinstance(first, BadSampleError):
            items.check_label(0, first, labels[0])
        elif strict:
            raise first
    return Index.of_items(items, labels)


def index_unlabeled(data: Any) -> Index:
    """The index of a data set to predict: items are images, with or without labels, which are not used."""
    items = open_items("data", data, labeled=False)
    return Index.of_items(items, np.zeros(items.count, dtype=np.int64))


def open_items(name: str, data: Any, labeled: bool = True) -> Items:
    """The items of a data set, not read yet; raises InputError unless it is map-style and not empty."""
    if isinstance(data, IterableDataset) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise InputError(
            f"data[{name!r}] is a {type(data).__name__}: it must be map-style, with len(data) and data[i], so that a "
            "run can be resumed at any image"
        )
    try:
        count = len(data)
    except Exception as error:  # a user's code raises any type of exception
        raise InputError(f"data[{name!r}] has no length: {type(error).__name__}: {first_line(error)}") from error
    if not count:
        raise InputError(f"data[{name!r}] has no images")
    return Items(data, name, count, labeled)


def as_labels(values: Any, where: str) -> np.ndarray:
    """Labels as N int64, or N rows of numbers; raises InputError naming the first that is neither."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if all(type(value) is int and abs(value) < MOST_CLASSES for value in values):
        return np.array(values, dtype=np.int64)
    arrays = [np.asarray(value) for value in values]
    for i, array in enumerate(arrays):
        if array.dtype.kind not in ("iu" if array.ndim == 0 else "iuf"):
            raise InputError(f"{where}[{i}]: label {array.tolist()!r:.80} is not a whole number below {MOST_CLASSES}")
        if array.shape != arrays[0].shape or array.ndim > 1:
            raise InputError(f"{where}[{i}]: label of shape {array.shape}, others of {arrays[0].shape}; {ADVICE}")
    labels = np.stack(arrays)
    whole = labels.dtype.kind in "iu" or bool((labels == np.rint(labels)).all())
    return labels.astype(np.int64 if whole else np.float32)


def given_names(data: Any) -> tuple[str, ...]:
    """`classes` of a data set, a number appended where two are called alike; empty if it has none."""
    given = getattr(_looked_through(data), "classes", None)
    if given is None:
        return ()
    names = [", ".join(map(str, name)) if isinstance(name, tuple | list) else str(name) for name in given]
    counts = Counter(names)
    return tuple(f"{name} ({label})" if counts[name] > 1 else name for label, name in enumerate(names))


def _looked_through(data: Any) -> Any:
    return _looked_through(data.dataset) if isinstance(data, Subset) else data


def _targets(data: Any) -> Any:
    """`targets` of a data set; None if it has none."""
    if isinstance(data, Subset):
        known = _targets(data.dataset)
        return None if known is None else [known[i] for i in data.indices]
    return getattr(data, "targets", None)


def _all_labels(items: Items, read_labels: ReadLabels) -> Sequence[Any]:
    labels = read_labels(items, range(items.count))
    bad = next((label for label in labels if isinstance(label, BadSampleError)), None)
    if bad is not None:
        raise InputError(
            f"{bad}; so its label is not known either: give the data set `targets`, or leave the image out"
        )
    return labels
