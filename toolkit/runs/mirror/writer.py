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
from toolkit.system.errors import InputError
from toolkit.system.locks import Holder
from toolkit.system.stores import ObjectStore

log = logging.getLogger(__name__)

BEAT_S = 10.0  # between two signs of life
SILENT_S = 60.0  # after so long without one a writer counts as gone
LOOK_S = 2.0  # between two looks at the note of a writer that may be gone
SETTLE_S = 1.0  # between taking over and looking whether another one did too


@dataclass(frozen=True)
class Note:
    """`token`: of the start of a run that wrote it; `beat`: number of its sign of life; `released`: it has ended."""

    token: str
    holder: Holder
    beat: int = 0
    released: bool = False

    def to_bytes(self) -> bytes:
        own = {"token": self.token, "beat": self.beat, "released": self.released}
        return f"{json.dumps({**own, **asdict(self.holder)})}\n".encode()

    @classmethod
    def read(cls, content: bytes | None) -> "Note | None":
        """None if there is no note, or none that can be read."""
        try:
            values: dict[str, Any] = json.loads(content or b"")
            known = {field.name: values[field.name] for field in fields(Holder) if field.name in values}
            return cls(str(values["token"]), Holder(**known), int(values["beat"]), bool(values["released"]))
        except (ValueError, KeyError, TypeError):
            return None


class Writer:
    """The right to write into a store, of this process, or of that which took it with `note`.

    `before`: the note that was there before.
    """

    def __init__(self, store: ObjectStore, note: bytes | None = None, before: bytes | None = None) -> None:
        self._store = store
        since = f"{datetime.now().astimezone():%c %Z}"
        own = Note(uuid.uuid4().hex, replace(locks.myself(), since=since, at=time.time()))
        self._note = Note.read(note) or own
        self._before = before
        self._over = threading.Event()
        self._beating: threading.Thread | None = None
        self.lost_to: Note | None = None  # who took over

    @property
    def token(self) -> str:
        return self._note.token

    @property
    def notes(self) -> tuple[str, str | None]:
        """The note of this writer, and the one before it: what another process needs to go on."""
        before = None if self._before is None else self._before.decode(errors="replace")
        return self._note.to_bytes().decode(), before

    def claim(self, known: Collection[str]) -> str | None:
        """Take the right to write; returns the token of the last writer, None if there was none.

        `known`: tokens of earlier starts on this machine, whose processes are gone. Waits for a writer that may be
        gone. Raises InputError if it lives, and StoreError.
        """
        self._before = self._store.read(WRITER)
        found = Note.read(self._before)
        if self._before is None:
            if self._store.write(WRITER, self._note.to_bytes(), new=True):
                return None
            self._before = self._store.read(WRITER)  # another one came first
            found = Note.read(self._before)
        free = found is None or found.released or found.token in known or found.holder.is_alive is False
        if not free:
            assert found is not None
            self._wait_for(found)
        self._store.write(WRITER, self._note.to_bytes())
        if not free:
            time.sleep(SETTLE_S)
            if (now := Note.read(self._store.read(WRITER))) and now.token != self.token:
                raise self._in_use(now)
        return found.token if found else None

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
            now = Note.read(self._store.read(WRITER))
            if now is None or now.released:
                return
            if (now.token, now.beat) != (found.token, found.beat):
                raise self._in_use(now)
        log.warning("%s: taken over from %s, which gives no sign", self._store.url, found.holder)

    def _silent_s(self) -> float:
        """How long the note is unchanged, by the store's own clock; 0 if it does not tell."""
        probe = f"{WRITER}.{self.token}"
        self._store.write(probe, b"")
        objects = self._store.list()
        self._store.remove(probe)
        times = [objects[key].modified if key in objects else None for key in (probe, WRITER)]
        return 0.0 if times[0] is None or times[1] is None else max(0.0, times[0] - times[1])

    def _in_use(self, found: Note) -> InputError:
        remedy = "wait for it, choose another, or give --take-over if it is gone"
        return InputError(f"--output-dir {self._store.url}: another run is using it ({found.holder}); {remedy}")

    def start(self, lost: Callable[[str], object]) -> None:
        """Begin to give signs of life; `lost`: called once with the reason when another machine has taken over."""
        self._beating = threading.Thread(target=self._beat, args=(lost,), daemon=True, name="writer")
        self._beating.start()

    def _beat(self, lost: Callable[[str], object]) -> None:
        while not self._over.wait(BEAT_S):
            try:
                if not self.holds():
                    lost(self.lost())
                    return
                self._note = replace(self._note, beat=self._note.beat + 1)
                self._store.write(WRITER, self._note.to_bytes())
            except Exception as error:  # the next one may succeed
                log.debug("no sign of life: %s", error)

    def lost(self) -> str:
        """Who took over."""
        return f"{self.lost_to and self.lost_to.holder}, which took over {self._store.url}"

    def holds(self) -> bool:
        """Whether the note still names this process; raises StoreError if the store does not tell."""
        found = Note.read(self._store.read(WRITER))
        if found is not None and found.token != self.token:
            self.lost_to = found
        return self.lost_to is None

    def release(self, wrote: bool) -> None:
        """End the right to write. Without `wrote` the token of the last writer is put back: the run was not changed."""
        self._over.set()
        if self._beating is not None:
            self._beating.join(BEAT_S)
        if self.lost_to is not None or not self.holds():
            return
        if wrote:
            self._store.write(WRITER, replace(self._note, released=True).to_bytes())
        elif (former := Note.read(self._before)) is not None:
            self._store.write(WRITER, replace(former, released=True).to_bytes())
        else:
            self._store.remove(WRITER)
