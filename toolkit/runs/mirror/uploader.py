"""A thread that sends a run to its store while training goes on, and what waits for it at the end."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from toolkit.runs.mirror.layout import CHECKPOINTS
from toolkit.runs.mirror.push import Push
from toolkit.system import storage
from toolkit.system.console import LIFE_SIGN_S
from toolkit.system.errors import StoreError

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at the directory
LONGEST_PAUSE_S = 60.0  # between two attempts
SILENT_S = 5.0  # from when on a line says that uploads are waited for


class Uploader:
    """Runs `push` whenever a checkpoint was committed, and when it is asked to settle everything.

    What fails is tried again, after 2, 4, 8 ... 60 s; the first failure in a row is a warning. `saved`: called after
    each success.
    """

    def __init__(self, push: Push, saved: Callable[[], object]) -> None:
        self._push, self._saved = push, saved
        self._asked = self._settled = 0  # requests to settle
        self._failure = ""
        self._seen: int | None = None
        self._over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name="upload")
        self._thread.start()

    def settle(self, wait_s: float) -> str:
        """Wait until the store has everything; returns why it has not if it gives no answer for `wait_s`."""
        with self._changed:
            self._asked += 1
            request = self._asked
            self._changed.notify_all()
        began, told = time.monotonic(), 0.0
        while True:
            with self._changed:
                if self._settled >= request:
                    return ""
                self._changed.wait(0.1)
            now = time.monotonic()
            if now - max(began, self._push.store.answered) > wait_s:
                return self._failure or f"no answer for {wait_s:g} s"
            if now - began > SILENT_S and now - told > LIFE_SIGN_S:
                told = now
                log.info("uploading %.1f MB to %s", self._push.left() / 1e6, self._push.store.url)

    def close(self) -> None:
        """End after the attempt in progress, which is not waited for."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _work(self) -> None:
        failures = 0
        while not self._over:
            asked = self._asked
            try:
                if asked > self._settled or self._is_new():
                    self._push.run(everything=asked > self._settled)
                    self._saved()
                    if failures:
                        log.info("uploads to %s work again", self._push.store.url)
                    failures, self._failure = 0, ""
                pause = LOOK_S
            except Exception as error:
                failures += 1
                self._fail(error, failures)
                pause = min(LONGEST_PAUSE_S, 2.0**failures)
            with self._changed:
                if not failures:
                    self._settled = asked
                    self._changed.notify_all()
                self._changed.wait_for(lambda before=asked: self._over or self._asked > before, pause)  # type: ignore[misc]

    def _is_new(self) -> bool:
        """Whether a checkpoint was committed or set aside since the last success."""
        with contextlib.suppress(FileNotFoundError):
            changed = (self._push.folder / CHECKPOINTS).stat().st_mtime_ns
            if changed != self._seen:
                if self._push.pending() or self._push.went_back():
                    return True
                self._seen = changed
        return False

    def _fail(self, error: Exception, failures: int) -> None:
        known = isinstance(error, StoreError | OSError)
        self._failure = storage.line(error) if isinstance(error, OSError) else str(error)
        if not known:
            log.error("the upload failed", exc_info=error)
        elif failures == 1:
            text = "%s: not uploaded (%s); training goes on, and it is tried again"
            log.warning(text, self._push.store.url, self._failure)


def left_behind(push: Push, reason: str) -> str:
    """What a user has to know of a run that could not be uploaded."""
    return (
        f"{push.left() / 1e6:.1f} MB are not in {push.store.url} ({reason}), but in {push.folder} on this machine; the "
        "same command uploads them from here"
    )
