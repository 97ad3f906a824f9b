"""Opens the splits of a data set from `--data-root`, for any kind of source."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.config.data_roots import HUB, PYTHON_DATA, SYNTHETIC, is_url
from toolkit.config.settings import Settings
from toolkit.data.sources.base import SourceOptions
from toolkit.data.sources.detect import find_source, own_source
from toolkit.data.sources.folders import read_folders
from toolkit.data.sources.index import Found, Index, Splits
from toolkit.data.sources.python_data import ReadLabels, index_data
from toolkit.system import files
from toolkit.system.errors import InputError

GB = 1e9
DEFAULT_VAL_SPLIT = 0.1
PREFIXED = re.compile(r"[\w-]+:")  # such as mine:photos, of a source of the user's own


def open_splits(
    settings: Settings, largest: int, data: Mapping[str, Any] | None = None, read_labels: ReadLabels | None = None
) -> Splits:
    """The data of a run, with a validation split; arguments and errors as in `find_splits`."""
    return with_validation(find_splits(settings, largest, data, read_labels), settings)


def with_validation(found: Found, settings: Settings) -> Splits:
    """The splits that were found; if there is none for validation, one that is held out from train."""
    train, val, test, classes, source = found
    if val is None:
        train, val = _hold_out(train, settings.val_split or DEFAULT_VAL_SPLIT, settings.seed, classes)
    elif settings.val_split is not None:
        raise InputError(f"--val-split would be ignored: {source} has a validation split of its own")
    return Splits(train, val, test, tuple(classes), source)


def find_splits(
    settings: Settings, largest: int, data: Mapping[str, Any] | None = None, read_labels: ReadLabels | None = None
) -> Found:
    """The splits that `data` or else `--data-root` itself has, with the name of the data.

    `largest`: the largest size of the run, px. `data`: data sets passed from Python; `read_labels`: reads them in
    worker processes. Raises InputError naming the folder, file, row or item at fault.
    """
    root, cache = settings.data_root, settings.cache_dir or files.cache_dir()
    options = SourceOptions(
        cache=cache,
        cache_bytes=round(settings.cache_gb * GB),
        largest=largest,
        seed=settings.seed,
        synthetic_size=settings.synthetic_size,
        synthetic_count=settings.synthetic_count,
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
            source = find_source(root)
            found = source.read(root, options) if source else _read_incomplete(root, cache)
    if isinstance(found, Found):
        return found._replace(name=found.name or absolute(root))
    if read_labels is None:
        raise InputError(f"{root}: gives data sets of Python, whose images are not files")
    indexed = index_data(found, read_labels, strict=settings.on_bad_sample == "fail")
    return indexed if data is not None else indexed._replace(name=absolute(root))


@contextlib.contextmanager
def _errors_named(cache: Path) -> Iterator[None]:
    """Turns an OSError into an InputError that names the place; in the cache also the flag that moves it."""
    try:
        yield
    except OSError as error:
        place = Path(error.filename or cache)
        ours = place in (cache, *cache.parents) or cache in place.parents
        remedy = ": the cache cannot be used; --cache-dir names another place for it" if ours else ""
        raise InputError(f"{place}: {error.strerror}{remedy}") from None


def absolute(data_root: str) -> str:
    """The data root as an absolute path, independent of the working directory; URLs and names stay unchanged."""
    if is_url(data_root) or data_root == SYNTHETIC or data_root.startswith(PYTHON_DATA):
        return data_root
    scheme = HUB if data_root.startswith(HUB) else ""
    folder = Path(data_root.removeprefix(scheme)).expanduser()
    resolved = f"{scheme}{folder.resolve()}"
    if own := own_source(data_root):  # only it knows whether it is a path
        again = own_source(resolved) if folder.exists() else None
        return resolved if again and again.name == own.name else data_root
    return resolved if folder.is_dir() or not (scheme or PREFIXED.match(data_root)) else data_root


def _read_incomplete(data_root: str, cache: Path) -> Found:
    """Raise InputError naming what is not there: no source recognized the data root."""
    root = Path(data_root).expanduser()
    if not root.is_dir():
        own = "; a source of your own needs --import MODULE" if PREFIXED.match(data_root) else ""
        raise InputError(f"--data-root {data_root}: no such folder{own}")
    return read_folders(root, cache)


def _hold_out(index: Index, share: float, seed: int, classes: Sequence[str]) -> tuple[Index, Index]:
    """Split off a seeded random sample for validation: the same share of each class, at least one image.

    Where an image has several labels, the same share of all images.
    """
    rng = np.random.default_rng((seed, 0))
    held: list[int] = []
    if index.labels.ndim > 1:
        count = min(len(index) - 1, max(1, round(share * len(index))))
        held, classes = rng.permutation(len(index))[:count].tolist(), ()
    for label, name in enumerate(classes):
        members = np.flatnonzero(index.labels == label)
        if len(members) < 2:
            raise InputError(f"--val-split: class {name!r} has {len(members)} image, too few to hold one out")
        count = min(len(members) - 1, max(1, round(share * len(members))))
        held += rng.permutation(members)[:count].tolist()
    mask = np.zeros(len(index), dtype=bool)
    mask[held] = True
    return index.take(np.flatnonzero(~mask)), index.take(np.flatnonzero(mask))
