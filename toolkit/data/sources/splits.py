"""Opens the splits of a data set from `--data-root`, for any kind of source."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.config.data_roots import BUILT_IN, HUB, PYTHON_DATA, is_url
from toolkit.config.settings import Settings
from toolkit.data.sources import index_tables
from toolkit.data.sources.base import SourceOptions
from toolkit.data.sources.detect import find_source, own_source
from toolkit.data.sources.index import Found, Index, Splits
from toolkit.data.sources.label_rows import has_several_labels
from toolkit.data.sources.labels import without_images
from toolkit.data.sources.layouts import find_layout, innermost
from toolkit.data.sources.python_data import ReadLabels, index_data
from toolkit.data.sources.unusable import PREFIXED, why_unread
from toolkit.system import places, storage
from toolkit.system.errors import InputError

log = logging.getLogger(__name__)

GB = 1e9
DEFAULT_VAL_SPLIT = 0.1
MISSING = ("nan", "none", "null", "na", "n/a", "?", "")  # labels that programs write where there is none
MOST_NAMED = 3  # classes that a line lists


def open_splits(
    settings: Settings, largest: int, data: Mapping[str, Any] | None = None, read_labels: ReadLabels | None = None
) -> Splits:
    """The data of a run, with a validation split; arguments and errors as in `find_splits`.

    Raises InputError also if `--label-column` or `--hf-config` would be ignored.
    """
    _check_used(settings, data)
    return with_validation(find_splits(settings, largest, data, read_labels), settings)


def _check_used(settings: Settings, data: Mapping[str, Any] | None) -> None:
    """Raise InputError if a setting for other kinds of data is given."""
    root = settings.data_root
    named = data is None and not is_url(root) and root not in BUILT_IN
    hub = named and root.startswith(HUB)
    if settings.hf_config is not None and not hub:
        raise InputError(f"--hf-config {settings.hf_config} would be ignored: {root} does not begin with {HUB}")
    if settings.label_column is None or hub or (named and own_source(root)):
        return
    layout = find_layout(innermost(places.expanded(root))) if named else None
    if layout is None or layout.kind != "manifest":
        flag = f"--label-column {settings.label_column}"
        raise InputError(f"{flag} would be ignored: {root} is neither CSV files nor a data set of Hugging Face")


def with_validation(found: Found, settings: Settings) -> Splits:
    """The splits that were found; if there is none for validation, one that is held out from train."""
    train, val, test, classes, source = found
    share = None
    if val is None:
        share = settings.val_split or DEFAULT_VAL_SPLIT
        train, val = _hold_out(train, share, settings.seed, classes)
        if val.labels.ndim > 1:  # held out whatever the labels are
            _tell_untested({"val": val}, classes)
    elif settings.val_split is not None:
        raise InputError(f"--val-split would be ignored: {source} has a validation split of its own")
    return Splits(train, val, test, tuple(classes), source, share)


def find_splits(
    settings: Settings, largest: int, data: Mapping[str, Any] | None = None, read_labels: ReadLabels | None = None
) -> Found:
    """The splits that `data` or else `--data-root` itself has, with the name of the data.

    `largest`: the largest size of the run, px. `data`: data sets passed from Python; `read_labels`: reads them in
    worker processes. Raises InputError naming the folder, file, row or item at fault.
    """
    root, cache = settings.data_root, settings.cache_dir or places.cache_dir()
    if not root.strip():
        raise InputError("--data-root is empty: name a folder, or leave the flag out for the built-in images")
    options = SourceOptions(
        cache=cache,
        cache_bytes=round(settings.cache_gb * GB),
        largest=largest,
        seed=settings.seed,
        synthetic_size=settings.synthetic_size,
        synthetic_count=settings.synthetic_count,
        synthetic_classes=settings.synthetic_classes,
        label_column=settings.label_column,
        hf_config=settings.hf_config,
        several_labels=(several := has_several_labels(settings.task)),
    )
    found: Found | Mapping[str, Any]
    if data is not None:
        found = data
    elif root.startswith(PYTHON_DATA):
        raise InputError(
            f"{root}: these cannot be opened by name: from Python pass data=, on the command line let --data-root name "
            "their images"
        )
    else:
        with _errors_named(cache):
            place = root if find_source(root) else str(innermost(places.expanded(root)))
            source = find_source(place)
            if source is None:
                raise InputError(why_unread(root))
            found = source.read(place, options)
        if place != root:
            log.info("data      the data set in %s is %s", root, place)
    if isinstance(found, Found):
        found = found.with_rows() if several else found
        _tell_untested(found.splits(), found.classes)
        _warn_of_names(found.classes)
        return found._replace(name=found.name or absolute(root)).seen_by(settings)
    if read_labels is None:
        raise InputError(f"{root}: gives data sets of Python, whose images are not files")
    indexed = index_data(found, read_labels, strict=settings.on_bad_sample == "fail", several=several)
    return (indexed if data is not None else indexed._replace(name=absolute(root))).seen_by(settings)


def _warn_of_names(classes: Sequence[str]) -> None:
    """Warn of classes that are probably none, or the same one."""
    for name in classes:
        if name.strip().lower() in MISSING:
            log.warning("%r is taken for a class: if it stands for a missing label, remove its images", name)
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(name.strip().casefold(), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            told = ", ".join(names)
            log.warning("classes %s differ only in case or blanks: they are learned as different ones", told)


def _tell_untested(splits: Mapping[str, Index], classes: Sequence[str]) -> None:
    """Log the classes that a split has no image of: its metrics say nothing about them. Train is judged by the task."""
    for split, index in splits.items():
        if split != "train" and (names := without_images(index, classes)):
            some = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
            log.info("data      %s has no images of %d of %d classes: %s", split, len(names), len(classes), some)


@contextlib.contextmanager
def _errors_named(cache: Path) -> Iterator[None]:
    """Turns an OSError into an InputError that names the place; in the cache also the flag that moves it."""
    try:
        yield
    except OSError as error:
        if not storage.concerns_place(error):
            raise
        place = Path(storage.file_of(error) or cache)
        ours = place in (cache, *cache.parents) or cache in place.parents
        remedy = "; the cache cannot be used; --cache-dir names another place for it" if ours else ""
        raise InputError(f"{place}: {storage.explain(error, place)}{remedy}") from None


def absolute(data_root: str) -> str:
    """The data root as an absolute path, independent of the working directory; URLs and names stay unchanged."""
    if is_url(data_root) or data_root in BUILT_IN or data_root.startswith(PYTHON_DATA):
        return data_root
    scheme = HUB if data_root.startswith(HUB) else ""
    folder = places.expanded(data_root.removeprefix(scheme))
    resolved = f"{scheme}{folder.resolve()}"
    if own := own_source(data_root):  # only it knows whether it is a path
        again = own_source(resolved) if folder.exists() else None
        return resolved if again and again.name == own.name else data_root
    return resolved if folder.is_dir() or not (scheme or PREFIXED.match(data_root)) else data_root


def _hold_out(index: Index, share: float, seed: int, classes: Sequence[str]) -> tuple[Index, Index]:
    """Split off a seeded random sample for validation: the same share of each class, at least one image.

    Where an image has several labels, the same share of all images.
    """

    @functools.cache
    def held() -> np.ndarray:
        """Whether an image is held out."""
        rng, mask = np.random.default_rng((seed, 0)), np.zeros(len(index), dtype=bool)
        if index.labels.ndim > 1:
            count = min(len(index) - 1, max(1, round(share * len(index))))
            mask[rng.permutation(len(index))[:count]] = True
            return mask
        by_class = np.argsort(index.labels, kind="stable")
        ends = np.searchsorted(index.labels[by_class], np.arange(len(classes)), side="right")
        for name, members in zip(classes, np.split(by_class, ends)[: len(classes)], strict=True):
            if len(members) < 2:
                raise InputError(f"--val-split: class {name!r} has {len(members)} image, too few to hold one out")
            count = min(len(members) - 1, max(1, round(share * len(members))))
            mask[rng.permutation(members)[:count]] = True
        return mask

    key = f"held out {share} {seed} {len(classes)} {np.__version__}"
    train = index_tables.subset(index, f"{key}: train", lambda: np.flatnonzero(~held()))
    return train, index_tables.subset(index, f"{key}: val", lambda: np.flatnonzero(held()))
