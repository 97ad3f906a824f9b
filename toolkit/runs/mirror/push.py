"""Send a run to its store, in an order in which whatever is there can be resumed, wherever it is interrupted.

Objects are replaced whole. A checkpoint's files come first, then the records, which so hold at least what the
checkpoint needs, then its manifest and, once all sizes are verified, its marker. Only then older checkpoints go, each
with its marker first. How the run ended comes last of all.
"""

import logging
import os
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from toolkit.runs.committed import COMMITTED, MANIFEST, REPLACED, WENT_BACK, committed, read_manifest, step_of
from toolkit.runs.mirror import layout
from toolkit.runs.mirror.layout import Checkpoint, FileState
from toolkit.system import stores
from toolkit.system.errors import StoreError
from toolkit.system.stored import Stored
from toolkit.system.stores import ObjectStore, together

log = logging.getLogger(__name__)


class Right(Protocol):
    """The right to write. `begin` comes before anything is changed, `check` before what counts.

    Both raise StoreError.
    """

    def begin(self) -> None: ...

    def check(self) -> None: ...


@dataclass
class Pushed:
    """What the store holds of this machine's directory: records by key, and checkpoints by folder."""

    records: dict[str, FileState] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)

    @classmethod
    def find(cls, store: ObjectStore, objects: Mapping[str, Stored], right: Right) -> "Pushed":
        """The checkpoints in a store; a former one that was not replaced gets its own folder back."""
        found = cls()
        for folder in layout.committed(objects):
            if (source := layout.source_of(folder, objects)) != folder:
                right.begin()
                move(store, objects, source, folder)
            marks = (store.read(f"{folder}/{name}") for name in (COMMITTED, MANIFEST))
            mark, manifest = marks
            found.checkpoints[folder] = Checkpoint(mark or b"", layout.best_step(manifest))
        return found


def move(store: ObjectStore, objects: Mapping[str, Stored], source: str, target: str) -> None:
    """Move a checkpoint within the store; what is at `target` goes first, and the marker comes last.

    If the marker at `source` is gone, all was moved by an attempt that was interrupted while it cleared away.
    """
    if f"{source}/{COMMITTED}" in objects:
        erase(store, objects, target)
        keys = layout.files_of(source, objects)
        *others, mark = [partial(store.copy, key, f"{target}/{key.removeprefix(f'{source}/')}") for key in keys]
        together(others)
        mark()
    erase(store, objects, source)


def erase(store: ObjectStore, objects: Mapping[str, Stored], folder: str) -> None:
    """Delete a checkpoint, its marker first."""
    keys = layout.files_of(folder, objects)[::-1]
    for key in keys[:1]:
        store.remove(key)
    together(partial(store.remove, key) for key in keys[1:])


class Progress:
    """`at`: when something last arrived for good; parts of a file count too, but not once an attempt has failed."""

    def __init__(self) -> None:
        self.at, self._failed = time.monotonic(), False

    def part(self) -> None:
        if not self._failed:
            self.at = time.monotonic()

    def done(self) -> None:
        self.at, self._failed = time.monotonic(), False

    def failed(self) -> None:
        self._failed = True


@dataclass
class Push:
    """Brings a store up to what a run's directory is.

    `keep`: newest checkpoints to keep there. `sent`: files of the checkpoint that is being sent which are there
    already, so that an interrupted one goes on.
    """

    store: ObjectStore
    folder: Path
    keep: int
    right: Right
    pushed: Pushed
    sent: set[str] = field(default_factory=set)
    progress: Progress = field(default_factory=Progress)

    def pending(self) -> list[Path]:
        """Committed checkpoints to send, the newest last: that, and the one of the best model that it names."""
        local = committed(self.folder / layout.CHECKPOINTS)
        if not local:
            return []
        best = layout.best_step((local[-1] / MANIFEST).read_bytes())
        needed = [*([self.folder / layout.step_folder(best)] if best is not None else []), local[-1]]
        return [path for path in dict.fromkeys(needed) if not self._is_there(path)]

    def left(self) -> int:
        """Bytes that are not in the store yet."""
        files = [file for path in self.pending() for file in path.rglob("*")]
        changed = [state.size for key, state in layout.records(self.folder) if self.pushed.records.get(key) != state]
        return sum(file.stat().st_size for file in files) + sum(changed)

    def run(self, everything: bool) -> None:
        """Send checkpoints that are new and what they need; `everything`: also records that changed since.

        Raises StoreError, and OSError if the directory cannot be read.
        """
        for path in self.pending():
            self.right.begin()
            self._checkpoint(path)
        if self._newer():
            self._set_newer_aside(self.store.list())
        if everything:
            self._records()
            self._records(layout.LAST)

    def _is_there(self, path: Path) -> bool:
        """Whether the store has it; a checkpoint that is gone here is nothing to send."""
        try:
            mark = (path / COMMITTED).read_bytes()
        except FileNotFoundError:
            return True
        known = self.pushed.checkpoints.get(f"{layout.CHECKPOINTS}/{path.name}")
        return known is not None and known.mark == mark

    def _checkpoint(self, path: Path) -> None:
        """Send a checkpoint and the records; one that is deleted here meanwhile is left for a newer one."""
        folder, outgoing = f"{layout.CHECKPOINTS}/{path.name}", self.folder.with_name(f".outgoing-{path.name}")
        try:
            linked(path, outgoing)
        except FileNotFoundError:
            return
        try:
            self._send_checkpoint(outgoing, folder)
        finally:
            shutil.rmtree(outgoing, ignore_errors=True)

    def _send_checkpoint(self, outgoing: Path, folder: str) -> None:
        mark, manifest = (outgoing / COMMITTED).read_bytes(), (outgoing / MANIFEST).read_bytes()
        objects = self.store.list()
        if folder in self.pushed.checkpoints and mark != self.pushed.checkpoints[folder].mark:
            move(self.store, objects, folder, layout.former(folder))  # saved at this step before; both may be needed
            del self.pushed.checkpoints[folder]
            self.sent.clear()
        self._set_newer_aside(objects)
        files = [file for file in outgoing.rglob("*") if file.is_file() and file.name not in (COMMITTED, MANIFEST)]
        together(partial(self._send_file, file, folder, outgoing, mark.decode()) for file in files)
        self._records()
        self.store.send(outgoing / MANIFEST, f"{folder}/{MANIFEST}")
        objects = self.store.list()
        self._verify(outgoing, folder, objects)
        self.right.check()
        self.store.send(outgoing / COMMITTED, f"{folder}/{COMMITTED}")
        self.progress.done()
        self.pushed.checkpoints[folder] = Checkpoint(mark, layout.best_step(manifest))
        self.sent.clear()
        erase(self.store, objects, layout.former(folder))
        self._drop_old(objects)

    def _send_file(self, file: Path, folder: str, outgoing: Path, mark: str) -> None:
        name = file.relative_to(outgoing).as_posix()
        if f"{mark}{name}" not in self.sent:
            self.store.send(file, f"{folder}/{name}", self.progress.part)
            self.sent.add(f"{mark}{name}")
            self.progress.done()

    def _verify(self, outgoing: Path, folder: str, objects: Mapping[str, Stored]) -> None:
        """Raise StoreError unless every file is there, in its size, and with its MD5 where the store tells it."""
        for file in filter(Path.is_file, outgoing.rglob("*")):
            name = file.relative_to(outgoing).as_posix()
            if name == COMMITTED:
                continue
            found, size = objects.get(f"{folder}/{name}"), file.stat().st_size
            if found is None or found.size != size or (found.md5 and found.md5 != stores.md5(file)):
                self.sent.clear()
                there = "is not there" if found is None else f"has {found.size} bytes instead of {size}"
                raise StoreError(f"{folder}/{name} {there if found is None or found.size != size else 'was damaged'}")

    def _records(self, last: Collection[str] = ()) -> None:
        """Send the records that changed, delete those that are gone here; `last`: also these, which come after all."""
        local = {key: state for key, state in layout.records(self.folder) if key not in layout.LAST or key in last}
        changed = {key: state for key, state in local.items() if self.pushed.records.get(key) != state}

        def send(key: str, state: FileState) -> None:
            try:
                self.store.send(self.folder / key, key, self.progress.part)
            except FileNotFoundError:
                return  # replaced or deleted meanwhile
            self.pushed.records[key] = state
            self.progress.done()

        gone = [key for key in self.pushed.records if key not in local and not (self.folder / key).exists()]
        if changed or gone:
            self.right.begin()
            self.right.check()
        together(partial(send, key, state) for key, state in changed.items())
        for key in gone:
            self.store.remove(key)
            del self.pushed.records[key]

    def went_back(self) -> bool:
        """Whether the store has checkpoints that come after what the run went back to."""
        return bool(self._newer())

    def _newer(self) -> list[str]:
        """Checkpoints in the store after the newest here, or, until the store knows of it, after a step gone back to.

        The run writes these steps again, maybe otherwise.
        """
        limits = [step_of(path) for path in committed(self.folder / layout.CHECKPOINTS)[-1:]]
        note = self.folder / WENT_BACK
        if note.exists() and self.pushed.records.get(WENT_BACK) != layout.state_of(note):
            limits.append(layout.step_of(note.read_text().strip()))
        return [folder for folder in self.pushed.checkpoints if limits and layout.step_of(folder) > min(limits)]

    def _set_newer_aside(self, objects: Mapping[str, Stored]) -> None:
        for folder in self._newer():
            self.right.begin()
            erase(self.store, objects, layout.former(folder))  # else it would count in its place
            move(self.store, objects, folder, f"{layout.CHECKPOINTS}/{REPLACED}{folder.rsplit('/', 1)[-1]}")
            del self.pushed.checkpoints[folder]

    def _drop_old(self, objects: Mapping[str, Stored]) -> None:
        """Keep the newest checkpoints and those of the best model that these name, as the directory does."""
        found = sorted(self.pushed.checkpoints, key=layout.step_of)
        kept = {*found[-max(2, self.keep) :]}
        kept |= {
            layout.step_folder(best)
            for folder in kept
            if (best := self.pushed.checkpoints[folder].best_step) is not None
        }
        for folder in [folder for folder in found if folder not in kept]:
            erase(self.store, objects, layout.former(folder))
            erase(self.store, objects, folder)
            del self.pushed.checkpoints[folder]
        for folder in layout.leftovers(objects, self.pushed.checkpoints):
            erase(self.store, objects, folder)


def linked(path: Path, target: Path) -> None:
    """A second name for every file of a committed checkpoint, which the run may delete while it is sent.

    Raises FileNotFoundError if it is deleted already.
    """
    shutil.rmtree(target, ignore_errors=True)
    for name in (*read_manifest(path)["files"], MANIFEST, COMMITTED):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path / name, target / name)
        except FileNotFoundError:
            raise
        except OSError:  # the file system has no links
            shutil.copyfile(path / name, target / name)
