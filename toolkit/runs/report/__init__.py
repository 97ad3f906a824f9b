"""report.html: one self-contained page about a run, made only from the files in its directory."""

import logging
import time
from pathlib import Path

from toolkit.system import files
from toolkit.system.errors import expected

log = logging.getLogger(__name__)

PAGE = "report.html"
REFRESH_S = 10.0  # shortest time between two pages of an unfinished run: each costs half a second


def refresh(directory: Path, at_once: bool = False) -> None:
    """Write a run's page if the old one and config.yaml are at least REFRESH_S old, or if `at_once`; never raises.

    Training calls it at the end of each epoch, and with `at_once` when a run resumes and when it ends.
    """
    try:
        marks = [path.stat().st_mtime for name in (PAGE, "config.yaml") if (path := directory / name).exists()]
        if at_once or not marks or time.time() - max(marks) >= REFRESH_S:
            write_report(directory)
    except Exception as error:  # a page must never fail a run
        told = expected(error) or f"{type(error).__name__}: {error}"
        log.warning("%s could not be written: %s", directory / PAGE, told)


def write_if_stale(directory: Path) -> None:
    """Write the page of a finished run that was killed before it wrote it; never raises."""
    page, summary = directory / PAGE, directory / "summary.json"
    if not page.exists() or page.stat().st_mtime_ns < summary.stat().st_mtime_ns:
        refresh(directory, at_once=True)


def write_report(directory: Path, errors_on: str = "val") -> Path:
    """Write report.html of a run, finished or not, with the errors on one split; raises InputError if there is none."""
    from toolkit.runs.report.page import render  # imports jinja2 and matplotlib, for a page only
    from toolkit.runs.report.records import read_records

    page = render(read_records(directory), errors_on)
    # File names may hold bytes that are not valid text: replace these.
    files.write_text(directory / PAGE, page.encode("utf-8", "replace").decode())
    return directory / PAGE
