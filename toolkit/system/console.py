"""Console output: plain lines from the main process, progress bars on a terminal."""

import contextlib
import logging
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

LIFE_SIGN_S = 60.0
INDENT = 10  # columns of the word at the head of a plan's line


_names: dict[str, str] = {}  # paths -> what is shown instead


def show_as(path: str, name: str) -> None:
    """From now on show `name` in place of a path that the user did not give; a line that has both stays as it is."""
    _names[path] = name


def shown(line: str) -> str:
    for path, name in _names.items():
        line = line if name in line else line.replace(path, name)
    return line


def say(line: str, stream: TextIO, plain: bool = False) -> None:
    """Print a line; `plain`: with paths as they are, in place of what `show_as` says.

    If its reader is gone, such as a `tee` that Ctrl-C ended first, discard all further output: the rest of the buffer
    would change the exit code of the process.
    """
    line = line if plain else shown(line)
    try:
        print(line, file=stream, flush=True)
    except UnicodeEncodeError:  # a file name that the stream's encoding lacks
        print(line.encode(stream.encoding, "backslashreplace").decode(stream.encoding), file=stream, flush=True)
    except OSError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Discard what is written to a stream from now on, and what is left in its buffer."""
    with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


class _Lines(logging.Handler):
    """Looks up stdout for each line, so that later redirections are honored."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        say(self.format(record), stream)


def start(main: bool) -> None:
    """Send the toolkit's log lines to the console; other ranks than the main process log warnings only."""
    logger = logging.getLogger("toolkit")
    logger.setLevel(logging.INFO if main else logging.WARNING)
    if not logger.handlers:
        logger.addHandler(_Lines())
        logger.propagate = False


@contextlib.contextmanager
def warnings_only() -> Iterator[None]:
    """Log warnings only, such as while a run trains several short ones."""
    handlers = logging.getLogger("toolkit").handlers
    before = [handler.level for handler in handlers]
    try:
        for handler in handlers:
            handler.setLevel(logging.WARNING)
        yield
    finally:
        for handler, level in zip(handlers, before, strict=True):
            handler.setLevel(level)


def wrapped(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a plan, broken at words where a terminal is narrower; as they are where they go into a file."""
    for line in lines:
        if not sys.stdout.isatty():
            yield line
            continue
        columns = max(40, shutil.get_terminal_size().columns)
        indent = " " * INDENT
        yield from textwrap.wrap(
            line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Heartbeat:
    """Logs a line at most once a minute where no progress bar is drawn, as in a log file; the first after a minute."""

    def __init__(self, main: bool) -> None:
        self._needed = main and not (sys.stdout.isatty() and sys.stderr.isatty())
        self._next = time.monotonic() + LIFE_SIGN_S

    def beat(self, logger: logging.Logger, line: str) -> None:
        if self._needed and time.monotonic() >= self._next:
            self._next = time.monotonic() + LIFE_SIGN_S
            logger.info(line)


def bars(main: bool) -> bool:
    """Whether to draw progress bars: only on a terminal and the main process."""
    return main and sys.stderr.isatty()
