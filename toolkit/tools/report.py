"""Write the page of a run again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit.config.arguments import checked
from toolkit.runs.mirror.copies import find_run, publish
from toolkit.runs.report import write_report
from toolkit.system.result import Result


@dataclass(frozen=True, repr=False)
class ReportPage(Result):
    """`path` of the page, which needs no network and no other file."""

    path: Path

    @property
    def text(self) -> str:
        return f"wrote     {self.path}"


@checked("Report")
def report(run: str | Path, *, errors_on: Literal["val", "test"] = "val") -> ReportPage:
    """Write report.html of a run, finished or not, with the errors on one split; that of a run at a URL is
    uploaded there. Raises InputError."""
    page = write_report(find_run(run), errors_on)
    publish(run, page)
    return ReportPage(page)
