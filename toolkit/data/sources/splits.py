"""Opens the splits of a data set from `--data-root`, for any kind of source."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from toolkit.config.settings import HUB, SYNTHETIC, Settings, is_url
from toolkit.data.sources import synthetic
from toolkit.data.sources.detect import SourceKind, detect
from toolkit.data.sources.folders import read_folders
from toolkit.data.sources.hub import read_hub
from toolkit.data.sources.index import Found, Index, Splits
from toolkit.data.sources.manifests import read_manifests
from toolkit.data.sources.shards import read_shards
from toolkit.system import files
from toolkit.system.errors import InputError

GB = 1e9
DEFAULT_VAL_SPLIT = 0.1


def open_splits(settings: Settings, largest: int) -> Splits:
    """The data of `--data-root`, with a validation split; `largest` and errors as in `find_splits`."""
    (train, val, test, classes), source = find_splits(settings, largest)
    if val is None:
        train, val = _hold_out(train, settings.val_split or DEFAULT_VAL_SPLIT, settings.seed, classes)
    elif settings.val_split is not None:
        raise InputError(f"--val-split would be ignored: {source} has a validation split of its own")
    return Splits(train, val, test, tuple(classes), source)


def find_splits(settings: Settings, largest: int) -> tuple[Found, str]:
    """The splits that `--data-root` itself has, and the name of the source.

    `largest`: native size in px of the built-in images, unless the settings give one. Raises InputError naming the
    folder, file or row at fault.
    """
    cache = settings.cache_dir or files.cache_dir()
    root, source = settings.data_root, absolute(settings.data_root)
    with _errors_named(cache):
        kind = detect(root)
    if kind is SourceKind.SYNTHETIC:
        size = settings.synthetic_size or largest
        root = str(synthetic.prepare(size, settings.synthetic_count or synthetic.COUNT))
        kind, source = SourceKind.FOLDERS, f"built-in, {size} px"
    with _errors_named(cache):
        return _read(kind, root, cache, round(settings.cache_gb * GB)), source


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
    if is_url(data_root) or data_root == SYNTHETIC:
        return data_root
    scheme = HUB if data_root.startswith(HUB) else ""
    folder = Path(data_root.removeprefix(scheme)).expanduser()
    return f"{scheme}{folder.resolve()}" if folder.is_dir() or not scheme else data_root


def _read(kind: SourceKind, data_root: str, cache: Path, cache_bytes: int) -> Found:
    root = Path(data_root).expanduser()
    match kind:
        case SourceKind.URL:
            return read_shards(data_root, cache, cache_bytes)
        case SourceKind.HUB:
            return read_hub(data_root.removeprefix(HUB), cache)
        case SourceKind.MISSING:
            raise InputError(f"--data-root {data_root}: no such folder")
        case SourceKind.MANIFESTS:
            return read_manifests(root, cache)
        case SourceKind.SHARDS:
            return read_shards(str(root), cache, cache_bytes)
    return read_folders(root, cache)  # which names what a folder lacks


def _hold_out(index: Index, share: float, seed: int, classes: Sequence[str]) -> tuple[Index, Index]:
    """Split off a seeded random sample for validation: the same share of each class, at least one image."""
    rng = np.random.default_rng((seed, 0))
    held: list[int] = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(index.labels == label)
        if len(members) < 2:
            raise InputError(f"--val-split: class {name!r} has {len(members)} image, too few to hold one out")
        count = min(len(members) - 1, max(1, round(share * len(members))))
        held += rng.permutation(members)[:count].tolist()
    mask = np.zeros(len(index), dtype=bool)
    mask[held] = True
    return index.take(np.flatnonzero(~mask)), index.take(np.flatnonzero(mask))
