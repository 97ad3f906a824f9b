"""The process that sends a run to its store while it trains: `python -m toolkit.runs.mirror.sender`.

Libraries of stores draw from Python's global random generator, which is part of a checkpoint, and hold the interpreter.
It gets a `Job` as the first line of its input, then requests; it writes a line of JSON for each thing to tell, and ends
with its input. Imports no torch.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from toolkit.runs.mirror.layout import CHECKPOINTS
from toolkit.runs.mirror.push import Push, Pushed
from toolkit.runs.mirror.state import State
from toolkit.runs.mirror.writer import Note, Writer
from toolkit.system import storage
from toolkit.system.errors import StoreError
from toolkit.system.preemption import ORPHANED, SIGNALS
from toolkit.system.stores import ObjectStore

log = logging.getLogger("toolkit.upload")

LOOK_S = 1.0  # between two looks at the directory
LONGEST_PAUSE_S = 60.0  # between two attempts
SETTLE, CLOSE = "settle", "close"


@dataclass(frozen=True)
class Job:
    """What to send where; `note`: of the right to write, which was taken already."""

    url: str
    folder: str
    keep: int
    state: str
    note: str

    def to_line(self) -> str:
        return f"{json.dumps(asdict(self))}\n"


class Telling(logging.Handler):
    """Passes log lines on to the process of the run."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self._stream = stream

    def tell(self, **values: Any) -> None:
        with self.lock or contextlib.nullcontext():
            self._stream.write(f"{json.dumps(values)}\n")
            self._stream.flush()

    def emit(self, record: logging.LogRecord) -> None:
        self.tell(log=self.format(record), level=record.levelno)


class Sender:
    """Sends whenever a checkpoint was committed, and everything when it is asked to settle.

    What fails is tried again, after 2, 4, 8 ... 60 s; the first failure in a row is a warning.
    """

    def __init__(self, job: Job, telling: Telling) -> None:
        self._job, self._telling = job, telling
        self._store, self._folder = ObjectStore(job.url), Path(job.folder)
        self._writer = Writer(ObjectStore(job.url), Note.read(job.note.encode()))
        self._state = State.read(Path(job.state))
        self._push: Push | None = None
        self._began = time.monotonic()
        self._asked = self._settled = 0  # numbers of requests to settle
        self._parent = os.getppid()
        self._seen: int | None = None
        self._over = False
        self._changed = threading.Condition()

    def start(self) -> None:
        self._writer.start(lambda reason: self._telling.tell(lost=reason))
        for work in (self._work, self._report):
            threading.Thread(target=work, daemon=True).start()

    def settle(self, request: int) -> None:
        with self._changed:
            self._asked = request
            self._changed.notify_all()

    def close(self) -> None:
        """Give the right to write back; what is being sent is given up."""
        self._over = True
        with contextlib.suppress(StoreError):
            self._writer.release()

    def _work(self) -> None:
        failures = 0
        while not self._over:
            asked = self._asked
            try:
                push = self._push = self._push or self._opened()
                if asked > self._settled or self._is_new(push):
                    push.run(everything=asked > self._settled)
                    self._state.write(Path(self._job.state))
                    if failures:
                        log.info("uploads to %s work again", self._job.url)
                    failures = 0
                pause = LOOK_S
            except Exception as error:
                failures += 1
                if self._push is not None:
                    self._push.progress.failed()
                if self._writer.lost_to is not None:
                    self._telling.tell(lost=self._writer.lost())
                    return
                self._fail(error, failures)
                pause = min(LONGEST_PAUSE_S, 2.0**failures)
            with self._changed:
                if not failures and asked > self._settled:
                    self._settled = asked
                    self._telling.tell(settled=asked)
                self._changed.wait_for(lambda before=asked: self._over or self._asked > before, pause)  # type: ignore[misc]

    def _opened(self) -> Push:
        pushed = Pushed.find(self._store, self._store.list(), self._writer)
        pushed.records = self._state.records
        return Push(self._store, self._folder, self._job.keep, self._writer, pushed)

    def _is_new(self, push: Push) -> bool:
        """Whether a checkpoint was committed or set aside since the last success."""
        with contextlib.suppress(FileNotFoundError):
            changed = (self._folder / CHECKPOINTS).stat().st_mtime_ns
            if changed != self._seen:
                if push.pending() or push.went_back():
                    return True
                self._seen = changed
        return False

    def _fail(self, error: Exception, failures: int) -> None:
        reason = storage.line(error) if isinstance(error, OSError) else str(error)
        self._telling.tell(failed=reason)
        if not isinstance(error, StoreError | OSError):
            log.error("the upload to %s failed", self._job.url, exc_info=error)
        elif failures == 1:
            text = "%s: not uploaded (%s); training goes on, and it is tried again"
            log.warning(text, self._job.url, reason)

    def _report(self) -> None:
        """Tell each second for how long nothing arrived, while the run waits; end with the run."""
        while True:
            time.sleep(1.0)
            if os.getppid() != self._parent:  # the end of the input may be held open by processes that the run forked
                os._exit(0)
            if self._asked > self._settled:
                since = self._push.progress.at if self._push else self._began
                with contextlib.suppress(OSError):  # what it counts may be deleted meanwhile
                    self._telling.tell(left=self._push.left() if self._push else 0)
                self._telling.tell(silent_s=time.monotonic() - since)


def main() -> None:
    for number in (*SIGNALS, *([ORPHANED] if ORPHANED else [])):
        signal.signal(number, signal.SIG_IGN)  # the run decides when it is enough
    telling = Telling(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # what a library prints
    logging.getLogger("toolkit").addHandler(telling)
    logging.getLogger("toolkit").setLevel(logging.INFO)
    sender = Sender(Job(**json.loads(sys.stdin.readline())), telling)
    sender.start()
    for line in sys.stdin:
        request, _, number = line.strip().partition(" ")
        if request == SETTLE:
            sender.settle(int(number))
        elif request == CLOSE:
            sender.close()
            break
    os._exit(0)  # threads may wait for the store


if __name__ == "__main__":
    main()
