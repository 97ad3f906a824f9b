"""What other commands read of a run, or of weights, at a URL: local copies, read-only."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from toolkit.config.data_roots import is_url
from toolkit.config.urls import run_place
from toolkit.runs.committed import COMMITTED, MANIFEST
from toolkit.runs.mirror import layout
from toolkit.runs.mirror.pull import records_to_fetch
from toolkit.system import console, url_copies
from toolkit.system.errors import InputError, StoreError
from toolkit.system.places import expanded
from toolkit.system.stored import FileVersion, Stored
from toolkit.system.stores import START_S, ObjectStore, within
from toolkit.system.url_copies import ADVICE, copy_folder, refresh

NOT_READ = "samples.jsonl"  # of no use to them, and large
BESIDE = "config.json"
CONFIG, CLASSES = "config.yaml", "class_map.json"
IN_A_RUN = re.compile(r"(?P<run>.+?)/(?P<below>(best|checkpoints/step-\d+)(/[^/]+)?)")


def find_run(run: str | Path) -> Path:
    """The directory of a run; of one at a URL a copy, without checkpoints. Raises InputError."""
    if not is_url(str(run)):
        return expanded(run)
    try:
        url = str(run_place(str(run)))
    except ValueError as error:
        raise InputError(f"{run}: {error}") from None
    if not is_url(url):
        return Path(url)
    objects = _listed(url, url)
    if CONFIG not in objects:
        raise InputError(f"{url}: not a run directory: there is no config.yaml in it")
    wanted = [key for key in records_to_fetch(objects) if key != NOT_READ]
    for name in layout.committed(objects)[-1:]:  # for its manifest
        wanted += [key for key in (f"{name}/{MANIFEST}", f"{name}/{COMMITTED}") if key in objects]
    return _copied(url, url, _versions(objects, wanted), copy_folder(url, "runs-read"))


def results_folder(run: str | Path, directory: Path, name: str) -> Path:
    """Where a command writes by default: into the run; for one at a URL, beside the working directory's files."""
    return Path(f"{directory.name}-{name}") if is_url(str(run)) else directory / name


def find_weights(url: str) -> Path:
    """A copy of what --weights names at a URL, with what tells its classes, as it would be on a disk."""
    flag = f"--weights {url}"
    inside = IN_A_RUN.fullmatch(url.rstrip("/"))
    root, below = (inside["run"], inside["below"]) if inside else (url.rstrip("/"), "")
    if not inside and _is_file(url, flag):
        root, _, name = url.rpartition("/")
        wanted = {name: url_copies.version_of(url)}
        if _is_file(f"{root}/{BESIDE}", flag):  # an export tells the names of its classes there
            wanted[BESIDE] = url_copies.version_of(f"{root}/{BESIDE}")
        return _copied(root, flag, wanted, copy_folder(url, "weights")) / name
    objects = _listed(root, flag)
    if not any(key == below or key.startswith(f"{below}/" if below else "") for key in objects):
        raise InputError(f"{flag}: no such file or folder")
    if CONFIG in objects and CLASSES in objects:
        found = [CONFIG, CLASSES, *(key for key in objects if key.startswith(f"{below or 'best'}/") or key == below)]
        found = [
            key
            for key in found
            if not key.endswith(("/optimizer.safetensors", "/optimizer.json")) and "/rng/" not in key
        ]
    else:
        found = [key for key in objects if "/" not in key.removeprefix(f"{below}/")]
    return _copied(root, flag, _versions(objects, found), copy_folder(url, "weights")) / below


def _is_file(url: str, flag: str) -> bool:
    try:
        within(START_S, lambda: url_copies.version_of(url))
    except FileNotFoundError:
        return False
    except StoreError as error:
        raise InputError(f"{flag}: cannot be read: {error}; {ADVICE}") from None
    return True


def _listed(url: str, flag: str) -> dict[str, Stored]:
    try:
        return within(START_S, ObjectStore(url).list)
    except FileNotFoundError:
        raise InputError(f"{flag}: there is no such bucket, or nothing in it") from None
    except StoreError as error:
        raise InputError(f"{flag}: cannot be read: {error}; {ADVICE}") from None


def _versions(objects: Mapping[str, Stored], keys: Iterable[str]) -> dict[str, FileVersion]:
    return {key: objects[key].version for key in keys}


def _copied(url: str, flag: str, wanted: Mapping[str, FileVersion], folder: Path) -> Path:
    """The folder with what is wanted of a URL; raises InputError in one line that begins with `flag`."""
    console.show_as(str(folder), url)
    try:
        return refresh(ObjectStore(url), wanted, folder)
    except (StoreError, FileNotFoundError) as error:
        raise InputError(f"{flag}: cannot be read: {error}; {ADVICE}") from None


def publish(run: str | Path, file: Path) -> str:
    """Write a file of a run's directory to its URL, if it has one; returns where it is then. Raises InputError."""
    if not is_url(str(run)):
        return str(file)
    store = ObjectStore(str(run).rstrip("/"))
    try:
        within(START_S, lambda: store.send(file, file.name), store)
    except (StoreError, FileNotFoundError) as error:
        raise InputError(f"{store.url}/{file.name}: cannot be written: {error}; it is in {file}") from None
    return f"{store.url}/{file.name}"
