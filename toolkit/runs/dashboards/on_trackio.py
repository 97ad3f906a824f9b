"""trackio: a database on this machine, shown by `trackio show`; no account, no network."""

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import TrackioTracker

from toolkit.runs.dashboards.base import DashboardRun, TrackerDashboard, flat, without_axes
from toolkit.runs.dashboards.tables import Errors
from toolkit.system.errors import InputError

log = logging.getLogger(__name__)

LEAVES_THE_MACHINE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


@contextlib.contextmanager
def _quiet_and_offline() -> Iterator[None]:
    """Hide what trackio prints, and keep it from asking Hugging Face for the user's name if it finds a token."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        constants.HF_HUB_OFFLINE = before


class OnTrackio(TrackerDashboard):
    """One trackio run, continued under its name, which no other run has."""

    package = "trackio"
    tracker: TrackioTracker

    @classmethod
    def check(cls) -> None:
        """Raise InputError also if an environment variable would make trackio send a run to another machine."""
        super().check()
        variable = next((name for name in LEAVES_THE_MACHINE if os.environ.get(name)), None)
        if variable:
            raise InputError(f"--log-with trackio keeps a run on this machine, but ${variable} sends it away: unset it")

    @classmethod
    def open(cls, run: DashboardRun) -> "OnTrackio":
        name = f"{run.folder.resolve().name}-{run.id}"
        tracker = TrackioTracker(run.project, name=name, config=flat(run.config), resume="allow", embed=False)
        with _quiet_and_offline():
            tracker.start()
        log.info("trackio   `trackio show --project %s` shows it as %s", run.project, name)
        return cls(tracker)

    def log(self, row: Mapping[str, float], step: int) -> None:
        super().log(without_axes(row), step)

    def alert(self, title: str, text: str, step: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.tracker.run.alert(title, text, step=step)

    def show(self, errors: Errors, step: int) -> None:
        import trackio

        captions = dict(errors.captioned())

        def cell(value: Any) -> Any:
            return trackio.Image(value, caption=captions.get(value)) if isinstance(value, Path) else value

        tables = {
            f"errors/{name}": trackio.Table(table.columns, [[*map(cell, row)] for row in table.rows])
            for name, table in errors.tables().items()
        }
        self.tracker.log(tables, step=step)

    def finish(self, exit_code: int) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            # Not the tracker's finish: after it, trackio would finish the run again at process exit, and print that.
            trackio.finish()
