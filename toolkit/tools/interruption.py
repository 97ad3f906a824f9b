"""Ctrl-C as a request to stop between two pieces of work."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """The first Ctrl-C only fills the list, so that rows are written whole; the second one ends the process."""
    requests: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        requests.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield requests
    finally:
        signal.signal(signal.SIGINT, before)
