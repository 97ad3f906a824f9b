"""Fetch a run from its store: its records, and the checkpoints that a resume needs, every byte of them verified."""

import logging
import shutil
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from toolkit.runs import committed
from toolkit.runs.committed import MANIFEST, STAGED
from toolkit.runs.mirror import layout
from toolkit.runs.mirror.layout import FETCHED
from toolkit.system.errors import InputError
from toolkit.system.stored import Stored
from toolkit.system.stores import ObjectStore, together

log = logging.getLogger(__name__)


def records_to_fetch(objects: Mapping[str, Stored]) -> list[str]:
    """The files of a run at its top, and those in folders that it goes on writing."""
    return [key for key in objects if layout.is_record(key) and ("/" not in key or key.split("/")[0] in FETCHED)]


def pull(store: ObjectStore, objects: Mapping[str, Stored], folder: Path, step: int | None = None) -> None:
    """Fetch a run into an empty folder: its records, the newest whole checkpoint, and the one of `step`.

    Also those of the best model that these name. Raises StoreError, OSError, and InputError if every checkpoint is
    damaged.
    """
    keys = records_to_fetch(objects)
    size = sum(objects[key].size for key in keys)
    log.info("resume    fetching %d files (%.1f MB) from %s", len(keys), size / 1e6, store.url)
    fetch(store, keys, folder)
    steps = [layout.step_of(name) for name in layout.committed(objects)]
    newest = next((found for found in reversed(steps) if fetch_checkpoint(store, objects, folder, found)), None)
    if steps and newest is None:
        raise InputError(
            f"{store.url}/{layout.CHECKPOINTS}: every checkpoint is damaged ({len(steps)}), and starting over in "
            "silence would lose a run: take another --output-dir, or restore them from a copy"
        )
    if step in steps and step != newest:
        fetch_checkpoint(store, objects, folder, step)
    for found in [found for found in steps if found in (newest, step)]:
        best = layout.best_step((folder / layout.step_folder(found) / MANIFEST).read_bytes())
        if best in steps and not (folder / layout.step_folder(best)).exists():
            fetch_checkpoint(store, objects, folder, best)


def fetch(store: ObjectStore, keys: Collection[str], folder: Path) -> None:
    """Fetch objects to files of the same names."""
    together(partial(store.fetch, key, folder / key) for key in keys)


def fetch_checkpoint(store: ObjectStore, objects: Mapping[str, Stored], folder: Path, step: int) -> bool:
    """Fetch and verify a committed checkpoint; False, with a warning and nothing kept, if it is damaged."""
    name = layout.step_folder(step)
    source = layout.source_of(name, objects)
    keys = layout.files_of(source, objects)
    final = folder / name
    staging = final.with_name(f"{STAGED}fetched-{final.name}")
    shutil.rmtree(staging, ignore_errors=True)
    size = sum(objects[key].size for key in keys)
    log.info("resume    fetching %s (%.1f MB) from %s", final.name, size / 1e6, store.url)
    together(partial(store.fetch, key, staging / key.removeprefix(f"{source}/")) for key in keys)
    if fault := committed.fault(staging, hashes=True):
        log.warning("%s/%s: %s; the one before it is used", store.url, source, fault)
        shutil.rmtree(staging)
        return False
    staging.rename(final)
    return True
