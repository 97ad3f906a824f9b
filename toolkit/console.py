"""What a run says to a person: plain lines from the main process, a bar on a terminal."""

import logging
import sys


class _Lines(logging.Handler):
    """Looks up stdout at each line, so that redirections made after the start are honoured."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(self.format(record), file=stream, flush=True)


def start(main: bool) -> None:
    """Send the toolkit's log lines to the console; on processes other than the main one warnings only."""
    logger = logging.getLogger("toolkit")
    logger.setLevel(logging.INFO if main else logging.WARNING)
    if not logger.handlers:
        logger.addHandler(_Lines())
        logger.propagate = False


def bars(main: bool) -> bool:
    """Whether to draw progress bars: only on a terminal and the main process."""
    return main and sys.stderr.isatty()
