"""Write the page of a run again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit.config.arguments import checked
from toolkit.runs.report import write_report
from toolkit.system.places import expanded
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
    """Write report.html of a run, finished or not, with the errors on one split. Raises InputError."""
    return ReportPage(write_report(expanded(run), errors_on))
