"""Log a run's metrics to a dashboard. A dashboard never stops or changes a run."""

import inspect
import logging
import math
import os
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

from accelerate import Accelerator

from toolkit.config.sections import WANDB_PROJECT
from toolkit.config.settings import Settings
from toolkit.config.tables import look_up
from toolkit.runs.dashboards import names
from toolkit.runs.dashboards.base import Dashboard, DashboardRun
from toolkit.runs.dashboards.notes import Notes
from toolkit.runs.dashboards.tables import errors_of
from toolkit.runs.directory import RunDirectory
from toolkit.runs.metrics_row import MetricsRow
from toolkit.runs.progress import Progress
from toolkit.runs.saved_predictions import SavedPredictions
from toolkit.strategies.base import Strategy
from toolkit.system.errors import InputError

log = logging.getLogger(__name__)

LONGEST_ALERT = 1000  # characters


class RowKind(IntEnum):
    """Kinds of rows, in the order in which they are logged at one step."""

    STEPS, EPOCH, END = range(3)


def dashboard_class(name: str) -> type[Dashboard] | None:
    """The class that `--log-with` names, None for "none"; raises InputError if it is no complete dashboard."""
    kind = look_up("dashboard", "--log-with", name)
    if kind is None:
        return None
    if not (isinstance(kind, type) and issubclass(kind, Dashboard)):
        raise InputError(f"--log-with {name}: must be a subclass of toolkit.Dashboard")
    if inspect.isabstract(kind):
        raise InputError(f"--log-with {name}: lacks {', '.join(sorted(kind.__abstractmethods__))}")
    return kind


def check(name: str) -> None:
    """Raise InputError if the dashboard that `--log-with` names cannot work here."""
    kind = dashboard_class(name)
    try:
        if kind is not None:
            kind.check()
    except InputError:
        raise
    except Exception as error:  # of a dashboard of the user's own: no reason not to train
        log.warning("%s could not be checked: %s", name, error)


def _open(
    settings: Settings, config: Mapping[str, Any], directory: RunDirectory, strategy: Strategy, step: int
) -> tuple[Dashboard | None, Notes]:
    """Open the dashboard and the notes on it."""
    kind, notes = dashboard_class(settings.log_with), Notes.open(directory.path, settings.log_with.replace(":", "."))
    if kind is None:
        return None, notes
    run = DashboardRun(
        folder=directory.path,
        id=notes.id,
        config=config,
        project=settings.wandb_project or os.environ.get("WANDB_PROJECT") or WANDB_PROJECT,
        mode=settings.wandb_mode,
        step=step,
        first=notes.starts == 1,
        eval_specs=tuple(spec.name for spec in strategy.eval_specs()),
    )
    dashboard = kind.open(run)
    if not isinstance(dashboard, Dashboard):
        raise TypeError(f"its open returned {dashboard!r}, not a toolkit.Dashboard")
    return dashboard, notes


class Tracking:
    """The dashboard of one run; does nothing on processes other than the main one."""

    def __init__(self, settings: Settings, directory: RunDirectory, selection: str) -> None:
        self._settings, self._directory, self._selection = settings, directory, selection
        self._dashboard: Dashboard | None = None
        self._notes: Notes
        self._seen = [0, 0]  # step and kind of the last row logged before this start or rewind

    @classmethod
    def start(
        cls,
        settings: Settings,
        config: Mapping[str, Any],
        directory: RunDirectory,
        strategy: Strategy,
        progress: Progress,
        accelerator: Accelerator,
    ) -> "Tracking":
        """Open the dashboard, or continue it at the run's step, and store the configuration."""
        tracking = cls(settings, directory, strategy.selection().name)
        if not accelerator.is_main_process or settings.log_with == "none":
            return tracking
        try:
            tracking._dashboard, tracking._notes = _open(settings, config, directory, strategy, progress.step)
            tracking._seen = [*tracking._notes.shown]
        except Exception as error:  # training continues whatever a dashboard raises
            log.warning("%s could not be started, the run continues without it: %s", settings.log_with, error)
        return tracking

    def _tell(self, work: Callable[[Dashboard], None]) -> None:
        """Call `work` with the dashboard. If it raises, log a warning and drop the dashboard; training continues."""
        if self._dashboard is None:
            return
        try:
            work(self._dashboard)
        except Exception as error:
            log.warning("the dashboard failed and is left alone from here: %s", error)
            self._dashboard = None

    def log(self, values: Mapping[str, Any], step: int, epoch: float, kind: RowKind = RowKind.STEPS) -> None:
        """Log the finite numbers of `values` at optimizer step `step`, `epoch` epochs after the start."""
        self._tell(lambda dashboard: self._log(dashboard, values, step, epoch, kind))

    def _log(self, dashboard: Dashboard, values: Mapping[str, Any], step: int, epoch: float, kind: RowKind) -> None:
        if self._repeated(dashboard, step, kind):
            return
        finite = {name: value for name, value in names.named(values).items() if math.isfinite(value)}
        dashboard.log({**finite, "global_step": step, "epoch": epoch}, step)
        self._notes.show(step, int(kind))
        if kind is not RowKind.STEPS:
            self._notes.write()

    def log_epoch(self, row: MetricsRow, best: Mapping[str, float | None]) -> None:
        """Log an epoch's row of metrics.csv, and the best value so far by name."""

        def work(dashboard: Dashboard) -> None:
            further = {"preemptions": self._notes.starts - 1, **best}
            self._log(dashboard, {**names.of_epoch(row), **further}, row.step, row.epoch + 1, RowKind.EPOCH)

        self._tell(work)

    def _repeated(self, dashboard: Dashboard, step: int, kind: RowKind) -> bool:
        """Whether to skip a row logged before the run went back: plots with an axis that goes back are unreadable."""
        return not dashboard.can_rewind and [step, kind] <= self._seen

    def conclude(
        self, values: Mapping[str, float], progress: Progress, saved: Callable[[], SavedPredictions | None]
    ) -> None:
        """At the run's end, log final metrics and the best model's errors; with --wandb-artifact, upload that model."""

        def work(dashboard: Dashboard) -> None:
            found, step = saved(), progress.best_step
            if found is not None and not self._repeated(dashboard, progress.step, RowKind.END):
                classes = self._directory.classes()
                errors = errors_of(found, classes, self._selection) if found.table.has_classes else None
                self.log({**values, **(errors.numbers if errors else {})}, progress.step, progress.epoch, RowKind.END)
                if errors:
                    dashboard.show(errors, progress.step)
            wanted = self._settings.wandb_artifact and self._notes.model != step
            if wanted and dashboard.keep_model(self._directory.path, {**progress.best, **values}):
                self._notes.model = step
                self._notes.write()

        self._tell(work)

    def alert(self, title: str, text: str, step: int) -> None:
        """Send an alert to the dashboard's users; `text` is cut to LONGEST_ALERT characters."""
        self._tell(lambda dashboard: dashboard.alert(title, text[:LONGEST_ALERT], step))

    def rewind(self, step: int) -> None:
        """Rewind the dashboard to optimizer step `step`, to which the run went back."""
        self._tell(lambda dashboard: dashboard.rewind(step))
        if self._dashboard is not None:
            self._seen = [*self._notes.shown]

    def preempting(self, reason: str, step: int) -> None:
        """Send an alert and mark the run as preempted: it stops here and will be resumed elsewhere."""
        self.alert("Preempted", reason, step)
        self._tell(lambda dashboard: dashboard.preempting())

    def finish(self, exit_code: int = 0) -> None:
        """Close the dashboard, once."""
        dashboard, self._dashboard = self._dashboard, None
        try:
            if dashboard is not None:
                dashboard.finish(exit_code)
        except Exception as error:
            log.warning("the dashboard could not be closed: %s", error)
