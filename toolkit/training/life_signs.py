"""Life signs of the processes of a run: one that is gone is named by all others, one that is slow is waited for.

Each process writes a life sign into the run's store every second, from a thread, whatever its main thread does. Rank 0
reads those of all, the others that of rank 0 and what it found.
"""

import contextlib
import logging
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from toolkit.system.console import duration
from toolkit.system.errors import PeerError, expected, first_line
from toolkit.system.exit_codes import exit_code_of, is_first_here, report_once
from toolkit.training.roll_call import FIRST, VERDICT, Group, sign_key

log = logging.getLogger(__name__)

EVERY_S = 1.0  # between two life signs; more for thousands of processes, and at most a tenth of the timeout
SIGNS_PER_S = 1000  # that the store has to take
GONE_AFTER = 3  # missed signs of a process, once a connection broke
NAMING = 8  # signs for which a broken connection is looked into
NOTICE_S, NOTICE_SHARE = 10.0, 0.25  # a line names who was silent for so long, and for this share of the timeout
LIVING_S = 60.0  # how often a line names a process that lives and is waited for
LAST_WORDS_S = 30.0  # longest time for the records of a process that ends because of another
AWAY = "away"  # in place of a life sign: the process is done here
BACKEND = "torch.distributed"  # modules that the main thread is in while it waits for others
TIMED_OUT = r"Timed out waiting (\d+)ms"  # gloo's words
SLOWEST, LEAST_SLOWEST_S = 15, 1800.0  # a collective may wait for a process that lives: so many timeouts, at least this


def longest_collective_s(timeout_s: float) -> float:
    """How long a process that lives may keep the others waiting in one collective."""
    return max(LEAST_SLOWEST_S, SLOWEST * timeout_s)


class LifeSigns:
    """Gives life signs and watches for those of the other processes, from `start` to `stop`.

    A process that says nothing for `timeout_s` is gone: then this one ends, with a line that names it, even if its main
    thread is in a collective, which nothing interrupts. `last_words`: called before, in another thread, for at most
    LAST_WORDS_S. Time in which this process itself was stopped does not count. `past`: what the processes had told of
    their ends before.
    """

    def __init__(self, group: Group, timeout_s: float, past: Mapping[str, str]) -> None:
        self._group, self._timeout_s = group, timeout_s
        self._every_s = min(max(EVERY_S, len(group.hosts) / SIGNS_PER_S), timeout_s / 10)
        others = range(1, len(group.hosts)) if group.rank == 0 else range(1)
        self._signs = dict.fromkeys(others, "")
        self._silent_s = dict.fromkeys(others, 0.0)
        self._store_silent_s = 0.0
        self._store_gone = False
        self.told = {VERDICT: "", FIRST: "", **past}  # by the processes, of their ends
        self._past = dict(self.told)
        self._to_tell: dict[str, str] = {}
        self._wake, self._over = threading.Event(), threading.Event()
        self._ending = threading.Lock()  # held by the thread that reports why the process ends
        self._own: Exception | None = None
        self._main, self._waited_s = threading.get_ident(), 0.0
        self._failed_s = 0.0  # since another process told why it ends
        self._living_told_s = 0.0
        self._noticed = False
        self.last_words: Callable[[Exception], None] = lambda cause: None
        works = {"life signs": self._talk, "peers": self._judge}
        self._threads = [threading.Thread(target=work, name=name, daemon=True) for name, work in works.items()]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Tell the others that this process is done here, and no longer watch them."""
        self._over.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(2 * EVERY_S)  # a store that is gone may keep it

    def explain(self, error: Exception) -> Exception | None:
        """For the main thread, when it fails: the error that names a process, if a connection to one broke.

        An error of this process is made known to the others instead.
        """
        if self._own is not None:  # explained already
            return None
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # another thread ends the process
        cause = expected(error)
        self._own = cause or error
        if not isinstance(cause, PeerError):
            text = first_line(cause) if cause else f"{type(error).__name__}: {first_line(error)}"
            self._tell(FIRST, f"{self._group.named([self._group.rank])} stopped first: {text}")
            self._let_others_read()
            return None
        text = self._too_slow(first_line(error))
        deadline = time.monotonic() + NAMING * self._every_s
        while not text and time.monotonic() < deadline:
            time.sleep(self._every_s / 4)
            text = self._broken()
        if not text and (away := [rank for rank, sign in self._signs.items() if sign == AWAY]):
            text = f"{self._group.named(away)} stopped first, its message says why"
        if text:
            self._own = PeerError(text)
            if self._group.rank == 0:
                self._tell(VERDICT, text)
        return self._own

    def _too_slow(self, text: str) -> str:
        """Who kept the others waiting for too long, though all live, if gloo says so; else empty."""
        found = re.search(TIMED_OUT, text)
        if found is None or self._silent(GONE_AFTER * self._every_s):
            return ""
        who = self._group.named(busy) if (busy := self._busy()) else "another process"
        return (
            f"{who} lives, but has kept the others waiting for {duration(int(found[1]) / 1000)}: it hangs, or works "
            f"alone for longer ({SLOWEST} x --peer-timeout-s, at least {duration(LEAST_SLOWEST_S)}, are allowed)"
        )

    def _busy(self) -> list[int]:
        """The processes that live and wait for nobody, as far as rank 0 knows; empty on other ranks."""
        waited = self._waited() if self._group.rank == 0 else {}
        return [rank for rank, seconds in waited.items() if not seconds]

    def _waited(self) -> dict[int, float]:
        """How long the main threads of all processes have been waiting for others; for rank 0."""
        return {0: self._waited_s} | {rank: float(sign.split()[1]) for rank, sign in self._signs.items() if " " in sign}

    def _broken(self) -> str:
        """Who broke a connection, as far as is known; empty if it is not."""
        if text := self._news(FIRST) or self._news(VERDICT):
            return text
        least_s = max(GONE_AFTER * self._every_s, max(self._silent_s.values()) - self._every_s)
        gone = [0] if self._store_gone and self._group.rank else self._silent(least_s)
        if not gone:
            return ""
        return f"{self._group.named(gone)} stopped without a word: killed, out of memory, or its machine failed"

    def _silent(self, least_s: float) -> list[int]:
        return [rank for rank, seconds in self._silent_s.items() if seconds >= least_s]

    def _news(self, key: str) -> str:
        """What a process told of its end; empty if none did."""
        return self.told[key] if self.told[key] != self._past[key] else ""

    def _tell(self, key: str, text: str) -> None:
        """Put a text into the store, unless another process did, and wait for that as long as a life sign may take."""
        self._to_tell[key] = text
        self._wake.set()
        deadline = time.monotonic() + EVERY_S
        while self._to_tell and self._threads[0].is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _talk(self) -> None:
        """Give life signs and read those of others, on a connection of its own."""
        keys = [*self.told, *map(sign_key, self._signs)]
        own, count = sign_key(self._group.rank), 0
        try:
            store, over = self._group.store.clone(), False
            while not over:
                over = self._over.is_set()
                store.set(own, AWAY if over else f"{count} {self._waited_s:.0f}")
                for key, text in [*self._to_tell.items()]:
                    store.compare_set(key, self._past[key], text)
                    del self._to_tell[key]
                values = [value.decode() for value in store.multi_get(keys)]
                self._hear(values[: len(self.told)], values[len(self.told) :])
                self._wake.wait(0 if over else self._every_s)
                self._wake.clear()
                count += 1
                self._waited_s = self._waited_s + self._every_s if self._waits() else 0.0
        except RuntimeError:  # of the store
            self._store_gone = True

    def _hear(self, told: list[str], signs: list[str]) -> None:
        self.told = dict(zip(self.told, told, strict=True))
        self._store_silent_s = 0.0
        for rank, sign in zip(self._signs, signs, strict=True):
            if sign != self._signs[rank]:
                self._signs[rank], self._silent_s[rank] = sign, 0.0

    def _waits(self) -> bool:
        """Whether the main thread is in a call of torch that waits for the other processes."""
        frame = sys._current_frames().get(self._main)
        return frame is not None and frame.f_globals.get("__name__", "").startswith(BACKEND)

    def _judge(self) -> None:
        """Count how long the others have been silent, and end the process if one of them is gone."""
        last = time.monotonic()
        while not self._over.wait(self._every_s):
            now = time.monotonic()
            passed, last = min(now - last, 2 * self._every_s), now
            self._store_silent_s += passed
            for rank, sign in self._signs.items():
                self._silent_s[rank] += passed if sign != AWAY else 0.0
            self._failed_s += passed if self._news(FIRST) else 0.0
            if verdict := self._news(VERDICT) or (self._news(FIRST) if self._failed_s > self._timeout_s else ""):
                self._end(PeerError(verdict))
            elif self._silent(self._timeout_s):
                who = self._who()
                told = f"no answer from {who} for {self._timeout_s:g} s: network or machine; run the same command again"
                self._end(PeerError(told))
            self._notice()
            self._tell_of_living(passed)

    def _who(self) -> str:
        """Those who have been silent for about as long as the longest."""
        least_s = max(self._silent_s.values()) - GONE_AFTER * self._every_s
        if self._group.rank == 0 and self._store_silent_s >= least_s:
            return f"the launcher's store at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        return self._group.named(self._silent(least_s))

    def _notice(self) -> None:
        """Log that a process has become silent, and that it is there again."""
        due_s = max(NOTICE_S, NOTICE_SHARE * self._timeout_s)
        if (noticed := bool(self._silent(due_s))) == self._noticed:
            return
        self._noticed = noticed
        if not is_first_here():  # one line is enough for a machine
            return
        if noticed:
            told = "waiting   no life sign from %s for %.0f s; the run ends after %g s (--peer-timeout-s)"
            log.warning(told, self._who(), due_s, self._timeout_s)
        else:
            log.warning("waiting   all processes give life signs again")

    def _tell_of_living(self, passed_s: float) -> None:
        """On rank 0, about once a minute: which processes the others wait for."""
        self._living_told_s += passed_s
        if self._group.rank or self._living_told_s < LIVING_S:
            return
        busy, longest_s = self._busy(), max(self._waited().values())
        if busy and longest_s >= LIVING_S:
            self._living_told_s = 0.0
            log.info("waiting   for %s, alive, for %s", self._group.named(busy), duration(longest_s))

    def _end(self, cause: PeerError) -> None:
        """End the process, unless the main thread has failed and does so by itself."""
        if self._ending.acquire(blocking=False):
            threading.Timer(LAST_WORDS_S, partial(os._exit, exit_code_of(cause))).start()
            self._report(cause)
            with contextlib.suppress(Exception):
                self.last_words(cause)
        elif self._over.wait(LAST_WORDS_S):
            return
        else:
            self._report(self._own or cause)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(exit_code_of(self._own or cause))

    def _report(self, cause: Exception) -> None:
        report_once(cause)
        if self._group.rank == 0:
            self._tell(VERDICT, str(cause))
            self._let_others_read()

    def _let_others_read(self) -> None:
        """Rank 0 may serve the store, which ends with it."""
        if self._group.rank == 0:
            time.sleep(2 * self._every_s)
