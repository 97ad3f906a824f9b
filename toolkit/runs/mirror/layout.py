"""The objects of a run in a store: the files of its directory, by the same names, so that any copy of it is a run."""

import contextlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.runs.committed import COMMITTED, FORMER, MANIFEST
from toolkit.system.stored import Stored

WRITER = ".writer.json"  # who may write here; a note like that of a lock
CHECKPOINTS = "checkpoints"
LAST = ("summary.json",)  # says that a run is finished, and so vouches for all else
KEPT_HIDDEN = (".went-back-to", ".dashboard-")  # other hidden files are about this machine
FETCHED = ("best", "predictions")  # folders that a run goes on writing; others, such as wandb/, only grow in the store


class FileState(NamedTuple):
    """Size and time of a local file; another one means that it was written again."""

    size: int
    mtime_ns: int


class Checkpoint(NamedTuple):
    """A committed checkpoint in the store: the content of its COMMITTED, and the step of the best model it names."""

    mark: bytes
    best_step: int | None


def step_folder(step: int) -> str:
    return f"{CHECKPOINTS}/step-{step:09d}"


def step_of(folder: str) -> int:
    return int(folder.rsplit("-", 1)[-1])


def former(folder: str) -> str:
    """Where a checkpoint is kept while another one of the same step replaces it, as in a local directory."""
    return f"{CHECKPOINTS}/{FORMER}{folder.rsplit('/', 1)[-1]}"


def is_record(key: str) -> bool:
    """Whether a run's file belongs into the store and into no checkpoint."""
    names = key.split("/")
    if names[0] == CHECKPOINTS:
        return False
    return not any(name.startswith(".") and not name.startswith(KEPT_HIDDEN) for name in names)


def records(folder: Path) -> Iterator[tuple[str, FileState]]:
    """The run's files by key, but for checkpoints and what is about this machine; links are left out."""
    for place, folders, names in os.walk(folder):
        below = Path(place).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        folders[:] = [name for name in sorted(folders) if is_record(prefix + name)]
        for name in sorted(filter(lambda name: is_record(prefix + name), names)):
            file = Path(place, name)
            if file.is_file() and not file.is_symlink():
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    yield prefix + name, state_of(file)


def state_of(file: Path) -> FileState:
    found = file.stat()
    return FileState(found.st_size, found.st_mtime_ns)


def committed(objects: Mapping[str, Stored]) -> list[str]:
    """Folders of checkpoints whose marker is there, oldest first, a former one in place of one that is not whole."""
    marked = {key.rsplit("/", 1)[0] for key in objects if key.startswith(CHECKPOINTS) and key.endswith(f"/{COMMITTED}")}
    steps = {folder for folder in marked if folder.rsplit("/", 1)[-1].removeprefix("step-").isdecimal()}
    instead = {f"{CHECKPOINTS}/{folder.rsplit(FORMER, 1)[-1]}" for folder in marked if FORMER in folder}
    return sorted(steps | {folder for folder in instead if folder.rsplit("-", 1)[-1].isdecimal()}, key=step_of)


def leftovers(objects: Mapping[str, Stored], kept: Collection[str]) -> set[str]:
    """Folders of checkpoints that interrupted attempts left: without a marker, or former ones that were replaced."""
    folders = {"/".join(key.split("/")[:2]) for key in objects if key.startswith(f"{CHECKPOINTS}/")}
    plain = {folder: f"{CHECKPOINTS}/{folder.rsplit('/', 1)[-1].removeprefix(FORMER)}" for folder in folders}
    named = {folder: name for folder, name in plain.items() if name.startswith(f"{CHECKPOINTS}/step-")}
    marked = {folder for folder in named if f"{folder}/{COMMITTED}" in objects}
    return {folder for folder, name in named.items() if folder not in kept and (folder not in marked or name in kept)}


def source_of(folder: str, objects: Mapping[str, Stored]) -> str:
    """Where the objects of a committed checkpoint are: in its own folder, or in that of the former one."""
    return folder if f"{folder}/{COMMITTED}" in objects else former(folder)


def files_of(folder: str, objects: Mapping[str, Stored]) -> list[str]:
    """Keys of a checkpoint's objects, the manifest and the marker last."""
    keys = [key for key in objects if key.startswith(f"{folder}/")]
    return sorted(keys, key=lambda key: (key.endswith(f"/{COMMITTED}"), key.endswith(f"/{MANIFEST}"), key))


def best_step(manifest: bytes | None) -> int | None:
    """The step of the best model that a manifest names; None if it cannot be read."""
    try:
        values: dict[str, Any] = json.loads(manifest or b"{}")
        return values.get("best_step")
    except (ValueError, AttributeError):
        return None
