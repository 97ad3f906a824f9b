"""The interface that every dashboard implements."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from accelerate.tracking import GeneralTracker

from toolkit.runs.dashboards.names import AXES
from toolkit.runs.dashboards.tables import Errors
from toolkit.system.errors import InputError

Scalar = float | int | str | bool


def flat(config: Mapping[str, Any]) -> dict[str, Scalar]:
    """The configuration with non-scalar values as text, because TensorBoard raises on lists."""
    return {name: value if isinstance(value, Scalar) else str(value) for name, value in config.items()}


def without_axes(row: Mapping[str, float]) -> dict[str, float]:
    """A row without the axes, of which a dashboard with an axis of its own would draw charts."""
    return {name: value for name, value in row.items() if name not in AXES}


@dataclass(frozen=True)
class DashboardRun:
    """The run that a dashboard opens on.

    `folder`: the run directory. `id`: the run's own, the same at each start. `config`: the settings, the strategy and
    the cloud. `project`: `--wandb-project`, else $WANDB_PROJECT. `mode`: `--wandb-mode`. `step`: optimizer steps done.
    `first`: whether this is the run's first start. `eval_specs`: the names of its evaluations, such as `64px`.
    """

    folder: Path
    id: str
    config: Mapping[str, Any]
    project: str
    mode: str
    step: int
    first: bool
    eval_specs: tuple[str, ...]


class Dashboard(ABC):
    """One run on one dashboard; a subclass has `open` and `log`. Any method may raise: the run goes on without it.

    `package`: what must be installed. `can_rewind`: if False, rows of repeated steps are not logged again.
    """

    package: ClassVar[str] = ""
    can_rewind: ClassVar[bool] = False

    @classmethod
    def check(cls) -> None:
        """Called before anything is written; raises InputError if the dashboard cannot work here."""
        if cls.package and importlib.util.find_spec(cls.package) is None:
            raise InputError(f"--log-with {cls.package}: the package is not installed: pip install {cls.package}")

    @classmethod
    @abstractmethod
    def open(cls, run: DashboardRun) -> "Dashboard":
        """The dashboard of a run, which is continued if this is not the run's first start; main process only."""

    @abstractmethod
    def log(self, row: Mapping[str, float], step: int) -> None:
        """Log numbers by name; `global_step` and `epoch` are among them."""

    def rewind(self, step: int) -> None:  # noqa: B027
        """Go back to optimizer step `step`: rows logged after it are no longer valid."""

    def alert(self, title: str, text: str, step: int) -> None:  # noqa: B027
        """Tell people at once: the run diverged, or was preempted."""

    def show(self, errors: Errors, step: int) -> None:  # noqa: B027
        """Show the confusion matrix, accuracy per class and the hardest images, at the run's end."""

    def preempting(self) -> None:  # noqa: B027
        """Mark the run as preempted: it stops here and will be resumed elsewhere."""

    def keep_model(self, folder: Path, metadata: Mapping[str, Any]) -> bool:
        """Upload the best model from a run's folder, with its metadata; False if the upload failed."""
        return True

    def finish(self, exit_code: int) -> None:  # noqa: B027
        """Close the dashboard; `exit_code`: of the run, 0 if it is done."""


class TrackerDashboard(Dashboard):
    """A dashboard that logs through one of Accelerate's trackers."""

    def __init__(self, tracker: GeneralTracker) -> None:
        self.tracker = tracker

    def log(self, row: Mapping[str, float], step: int) -> None:
        self.tracker.log(dict(row), step=step)

    def finish(self, exit_code: int) -> None:
        self.tracker.finish()
