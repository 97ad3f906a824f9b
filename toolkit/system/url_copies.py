"""Local copies of objects at URLs, in the cache, fetched again once they change there. Imports no torch."""

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from toolkit.system import files, places, run_urls, stores
from toolkit.system.errors import InputError, StoreError
from toolkit.system.locks import locked
from toolkit.system.stored import FileVersion
from toolkit.system.stores import START_S, ObjectStore, together, within

log = logging.getLogger(__name__)

KNOWN = "copies.json"  # beside the folder of the copies: what they are copies of
LONG = 50e6  # bytes, from which on fetching is worth a line
ADVICE = "are the name, the credentials and the network right?"


def copy_folder(url: str, kind: str) -> Path:
    """Where copies of what is under a URL are kept; `kind`: a name for what they are used for."""
    return places.cache_dir() / kind / files.key(url) / run_urls.name_of(url)


def refresh(store: ObjectStore, wanted: Mapping[str, FileVersion], folder: Path) -> Path:
    """Make a folder hold the wanted objects as they are now, and nothing else; returns it.

    Processes of a machine share the folder. Raises StoreError, OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / ".lock"):
        note = folder.parent / KNOWN
        known = _known(note)
        here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for key in here - wanted.keys():
            (folder / key).unlink()
        missing = {
            key: version
            for key, version in wanted.items()
            if key not in here or not version.version or known.get(key) != [*version]
        }
        size = sum(version.size for version in missing.values())
        if size > LONG:
            log.info("fetching  %.0f MB from %s", size / 1e6, store.url)
        within(START_S, lambda: together(partial(store.fetch, key, folder / key) for key in missing), store)
        folder.mkdir(exist_ok=True)
        files.write_json(note, wanted)
    return folder


def _known(note: Path) -> dict[str, list[object]]:
    try:
        return dict(json.loads(note.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def local_file(url: str, flag: str) -> Path:
    """A copy of a file at a URL; raises InputError in one line that names the flag."""
    parent, _, name = url.rpartition("/")
    try:
        version = within(START_S, lambda: version_of(url))
        return refresh(ObjectStore(parent), {name: version}, copy_folder(url, "files")) / name
    except FileNotFoundError:
        raise InputError(f"{flag} {url}: no such file") from None
    except StoreError as error:
        raise InputError(f"{flag} {url}: cannot be read: {error}; {ADVICE}") from None


def version_of(url: str) -> FileVersion:
    """Size and version of a file at a URL; raises FileNotFoundError also for a folder, StoreError."""

    def found(there: object, path: str) -> FileVersion:
        entry = there.info(path)  # type: ignore[attr-defined]
        if entry["type"] != "file":
            raise FileNotFoundError(url)
        return FileVersion.of({**entry, "size": entry.get("size") or 0})

    return stores.ask(url, found)
