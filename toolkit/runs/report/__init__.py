"""report.html: one self-contained page that shows a run, made from what lies in its directory and nothing else."""

import logging
import time
from pathlib import Path

from toolkit.system import files

log = logging.getLogger(__name__)

PAGE = "report.html"
REFRESH_S = 10.0  # at most one page in so many seconds while a run goes on: it costs half a second


def refresh(directory: Path, at_once: bool = False) -> None:
    """Write a run's page anew unless it is less than REFRESH_S old, or `at_once`; never raises.

    While training it is asked for at each epoch's end, `at_once` where the run goes on after a stop, and ends.
    """
    try:
        marks = [path.stat().st_mtime for name in (PAGE, "config.yaml") if (path := directory / name).exists()]
        if at_once or not marks or time.time() - max(marks) >= REFRESH_S:
            write_report(directory)
    except Exception as error:  # a run never fails for its page
        log.warning("%s could not be written: %s: %s", directory / PAGE, type(error).__name__, error)


def write_if_stale(directory: Path) -> None:
    """Write the page of a finished run that was killed before it wrote it; never raises."""
    page, summary = directory / PAGE, directory / "summary.json"
    if not page.exists() or page.stat().st_mtime_ns < summary.stat().st_mtime_ns:
        refresh(directory, at_once=True)


def write_report(directory: Path) -> Path:
    """Write report.html of a run, whatever stage it is in; raises InputError where the folder holds none."""
    from toolkit.runs.report.page import render  # jinja2 and matplotlib: only where a page is written
    from toolkit.runs.report.records import read_records

    page = render(read_records(directory))
    # A file's name that is no text, as the file system may hold, becomes one.
    files.write_text(directory / PAGE, page.encode("utf-8", "replace").decode())
    return directory / PAGE
