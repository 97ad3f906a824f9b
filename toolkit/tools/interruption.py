"""Ctrl-C handling that stops between two units of work."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from toolkit.system.preemption import sets_handlers


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Yield a list that the first Ctrl-C appends to, so that rows are written whole; a second interrupts at once.

    Outside the main thread, which gets the signal, the list stays empty.
    """
    requests: list[int] = []
    if not sets_handlers():
        yield requests
        return

    def note(number: int, _: FrameType | None) -> None:
        requests.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield requests
    finally:
        signal.signal(signal.SIGINT, before)
