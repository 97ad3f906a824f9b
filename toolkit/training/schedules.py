"""Learning-rate schedules: pure functions of progress, one frozen value each."""

import math
from dataclasses import dataclass
from inspect import isabstract

from toolkit.config.settings import Settings
from toolkit.config.tables import look_up
from toolkit.strategies.schedule import Schedule
from toolkit.system.errors import InputError
from toolkit.training.tasks import build_own


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from the peak down to `floor`, a share of it (SGDR without restarts, arXiv:1608.03983)."""

    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise InputError(f"--scheduler-kwargs floor={self.floor:g}: a share of the peak, 0 to 1")

    def shape(self, progress: float) -> float:
        falls = 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))
        return self.floor + (1 - self.floor) * falls


@dataclass(frozen=True)
class Constant(Schedule):
    """The peak learning rate to the end."""

    def shape(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Plateau(Constant):
    """Constant; the run halves the rate after 2 epochs without improvement."""


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """The peak learning rate, then a decay to 0 over the last `decay`, a share of the run.

    It decays as 1 - sqrt(share of the decay that is over), which ended lower than a line (arXiv:2405.18392).
    """

    decay: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise InputError(f"--scheduler-kwargs decay={self.decay:g}: a share of the run, 0 to 1")
        if self.warmup + self.decay > 1:
            raise InputError(
                f"--scheduler-kwargs decay={self.decay:g}: with {self.warmup:g} of the run for the warm-up, the rate "
                f"would fall before it is at its peak; at most {1 - self.warmup:g}"
            )

    def shape(self, progress: float) -> float:
        over = progress - (1 - self.decay)
        return 1.0 if over <= 0 else 1 - math.sqrt(over / self.decay)


def make_schedule(settings: Settings) -> Schedule:
    """The schedule that the settings name; raises InputError if its arguments do not fit."""
    kind = look_up("schedule", "--scheduler", settings.scheduler)
    if not (isinstance(kind, type) and issubclass(kind, Schedule)) or isabstract(kind):
        raise InputError(f"--scheduler {settings.scheduler}: not a subclass of toolkit.Schedule with its `shape`")
    arguments = {"warmup": settings.warmup_epochs / settings.epochs, **settings.scheduler_kwargs}
    return build_own("--scheduler-kwargs", settings.scheduler, kind, arguments)
