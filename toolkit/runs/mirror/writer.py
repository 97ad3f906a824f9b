"""One machine at a time writes a run into a store: a note there names it, and shows every few seconds that it lives.

Object stores have no locks, so this is best effort: the note is created at once where the store can do that, and read
again before every marker of a checkpoint. Clocks of two machines are never compared: how long a writer is silent is
told by the store's own times, or by how long its note stays as it is.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any

from toolkit.runs.mirror.layout import WRITER
from toolkit.system import locks
from toolkit.system.errors import InputError, StoreError
from toolkit.system.locks import Holder
from toolkit.system.stores import ObjectStore

log = logging.getLogger(__name__)

BEAT_S = 10.0  # between two signs of life
SILENT_S = 60.0  # after so long without one a writer counts as gone
LOOK_S = 2.0  # between two looks at the note of a writer that may be gone
SETTLE_S = 1.0  # between taking over and looking whether another one did too


@dataclass(frozen=True)
class Note:
    """`token`: of one start of a run; `former`: the author before it; `wrote`: whether it has changed the run.

    `beat`: number of its sign of life; `released`: it has ended.
    """

    token: str
    holder: Holder
    former: str | None = None
    wrote: bool = False
    beat: int = 0
    released: bool = False

    @property
    def author(self) -> str | None:
        """The token of the start that last changed the run; None if none has."""
        return self.token if self.wrote else self.former

    def to_bytes(self) -> bytes:
        own = {field.name: getattr(self, field.name) for field in fields(Note) if field.name != "holder"}
        return f"{json.dumps({**own, **asdict(self.holder)})}\n".encode()

    @classmethod
    def read(cls, content: bytes | None) -> "Note | None":
        """None if there is no note, or none that can be read."""
        try:
            values: dict[str, Any] = json.loads(content or b"")
            holder = Holder(**{field.name: values[field.name] for field in fields(Holder) if field.name in values})
            own = {field.name: values[field.name] for field in fields(cls) if field.name in values}
            return cls(**{**own, "holder": holder})
        except (ValueError, KeyError, TypeError):
            return None


def read_note(store: ObjectStore) -> Note | None:
    """Who writes, or wrote last; raises StoreError."""
    return Note.read(store.read(WRITER))


class Writer:
    """The right to write into a store: of this process, or passed on from the one that took it, by `note`."""

    def __init__(self, store: ObjectStore, note: Note | None = None) -> None:
        self._store = store
        since = f"{datetime.now().astimezone():%c %Z}"
        self.note = note or Note(uuid.uuid4().hex, replace(locks.myself(), since=since, at=time.time()))
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._beating: threading.Thread | None = None
        self.lost_to: Note | None = None  # who took over

    def claim(self, known: Collection[str]) -> Note | None:
        """Take the right to write; returns the note that was there.

        `known`: tokens of earlier starts on this machine, whose processes are gone. Waits for a writer that may be
        gone. Raises InputError if it lives, and StoreError.
        """
        content = self._store.read(WRITER)
        if content is None and self._store.write(WRITER, self.note.to_bytes(), new=True):
            return None
        found = Note.read(content) or read_note(self._store)  # another one came first
        free = found is None or found.released or found.token in known or found.holder.is_alive is False
        if found is not None:
            if not free:
                self._wait_for(found)
            self.note = replace(self.note, former=found.author)
        self._store.write(WRITER, self.note.to_bytes())
        if not free:
            time.sleep(SETTLE_S)
            if (now := read_note(self._store)) and now.token != self.note.token:
                raise self._in_use(now)
        return found

    def _wait_for(self, found: Note) -> None:
        """Return once a writer counts as gone; raises InputError as soon as it shows that it lives."""
        if locks.may_take_over():
            log.warning("%s: taken over from %s (--take-over)", self._store.url, found.holder)
            return
        silent, began, told = self._silent_s(), time.monotonic(), False
        while silent + time.monotonic() - began < SILENT_S:
            if found.holder.is_alive:
                raise self._in_use(found)
            if not told:
                log.info(
                    "waiting   %s is written by %s; without a sign of it for %.0f s it counts as gone",
                    *(self._store.url, found.holder, SILENT_S),
                )
                told = True
            time.sleep(LOOK_S)
            now = read_note(self._store)
            if now is None or now.released:
                return
            if (now.token, now.beat, now.wrote) != (found.token, found.beat, found.wrote):
                raise self._in_use(now)
        log.warning("%s: taken over from %s, which gives no sign", self._store.url, found.holder)

    def _silent_s(self) -> float:
        """How long the note is unchanged, by the store's own clock; 0 if it does not tell."""
        probe = f"{WRITER}.{self.note.token}"
        self._store.write(probe, b"")
        objects = self._store.list()
        self._store.remove(probe)
        times = [objects[key].modified if key in objects else None for key in (probe, WRITER)]
        return 0.0 if times[0] is None or times[1] is None else max(0.0, times[0] - times[1])

    def _in_use(self, found: Note) -> InputError:
        remedy = "wait for it, choose another, or give --take-over if it is gone"
        return InputError(f"--output-dir {self._store.url}: another run is using it ({found.holder}); {remedy}")

    def start(self, lost: Callable[[str], object]) -> None:
        """Begin to give signs of life; `lost`: called with the reason when another machine has taken over."""
        self._beating = threading.Thread(target=self._beat, args=(lost,), daemon=True, name="writer")
        self._beating.start()

    def _beat(self, lost: Callable[[str], object]) -> None:
        while not self._over.wait(BEAT_S):
            try:
                self._rewrite(beat=self.note.beat + 1)
            except Exception as error:  # the next one may succeed
                log.debug("no sign of life: %s", error)
            if self.lost_to is not None:
                lost(self.lost())
                return

    def begin(self) -> None:
        """Note that from now on the run is changed; raises StoreError if another machine has taken over."""
        if not self.note.wrote:
            self._rewrite(wrote=True)

    def _rewrite(self, **changes: Any) -> None:
        with self._writing:
            self.check()
            self._store.write(WRITER, replace(self.note, **changes).to_bytes())
            self.note = replace(self.note, **changes)

    def check(self) -> None:
        """Raise StoreError if the note names another start, or the store does not tell."""
        found = read_note(self._store)
        if found is not None and found.token != self.note.token:
            self.lost_to = found
        if self.lost_to is not None:
            raise StoreError("another machine has taken over")

    def lost(self) -> str:
        """Who took over."""
        return f"{self.lost_to and self.lost_to.holder}, which took over {self._store.url}"

    def release(self) -> None:
        """End the right to write; raises StoreError."""
        self._over.set()
        if self._beating is not None:
            self._beating.join(BEAT_S)
        if self.lost_to is not None:
            return
        if self.note.author is None:  # nothing was ever written
            self.check()
            self._store.remove(WRITER)
        else:
            self._rewrite(released=True)
