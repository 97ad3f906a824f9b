"""What a run says to a dashboard, whichever it is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker

from toolkit.runs.dashboards.tables import Errors

Scalar = float | int | str | bool


def flat(config: Mapping[str, Any]) -> dict[str, Scalar]:
    """Scalars only: TensorBoard raises on lists."""
    return {name: value if isinstance(value, Scalar) else str(value) for name, value in config.items()}


class Dashboard(ABC):
    """One run on one dashboard, through Accelerate's tracker. Any method may raise."""

    can_rewind = False  # else rows of steps that are repeated are not logged again

    def __init__(self, tracker: GeneralTracker) -> None:
        self.tracker = tracker

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Numbers by name, `global_step` and `epoch` among them."""
        self.tracker.log(dict(row), step=step)

    def rewind(self, step: int) -> None:  # noqa: B027
        """The run goes back: what was logged after optimizer step `step` does not hold any more."""

    @abstractmethod
    def alert(self, title: str, text: str, step: int) -> None: ...

    @abstractmethod
    def show(self, errors: Errors, step: int) -> None:
        """Confusion, accuracy per class and the hardest images."""

    def preempting(self) -> None:  # noqa: B027
        """The run stops here and is to go on elsewhere."""

    def keep_model(self, folder: Path, metadata: Mapping[str, Any]) -> bool:
        """Upload the best model: files of a run's folder, and what is known of it. False: it is not there yet."""
        return True

    def finish(self, exit_code: int) -> None:
        self.tracker.finish()
