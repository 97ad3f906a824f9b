"""The interface that every dashboard implements."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker

from toolkit.runs.dashboards.tables import Errors

Scalar = float | int | str | bool


def flat(config: Mapping[str, Any]) -> dict[str, Scalar]:
    """The configuration with non-scalar values as text, because TensorBoard raises on lists."""
    return {name: value if isinstance(value, Scalar) else str(value) for name, value in config.items()}


class Dashboard(ABC):
    """One run on one dashboard, through Accelerate's tracker. Any method may raise."""

    can_rewind = False  # if False, rows of repeated steps are not logged again

    def __init__(self, tracker: GeneralTracker) -> None:
        self.tracker = tracker

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Log numbers by name; `global_step` and `epoch` are among them."""
        self.tracker.log(dict(row), step=step)

    def rewind(self, step: int) -> None:  # noqa: B027
        """Go back to optimizer step `step`: rows logged after it are no longer valid."""

    @abstractmethod
    def alert(self, title: str, text: str, step: int) -> None: ...

    @abstractmethod
    def show(self, errors: Errors, step: int) -> None:
        """Show the confusion matrix, accuracy per class and the hardest images."""

    def preempting(self) -> None:  # noqa: B027
        """Mark the run as preempted: it stops here and will be resumed elsewhere."""

    def keep_model(self, folder: Path, metadata: Mapping[str, Any]) -> bool:
        """Upload the best model from a run's folder, with its metadata; False if the upload failed."""
        return True

    def finish(self, exit_code: int) -> None:
        self.tracker.finish()
