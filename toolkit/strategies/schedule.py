"""The interface of learning-rate schedules."""

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule(ABC):
    """The learning rate over a run, as a share of its peak; subclasses are frozen dataclasses with their own fields.

    `warmup`: the share of the run, 0 to 1, in which the rate rises linearly from 0.
    """

    warmup: float = 0.0

    def factor(self, progress: float) -> float:
        """The share of the peak learning rate at `progress`, the share of the run's images trained on, 0 to 1."""
        return progress / self.warmup if progress < self.warmup else self.shape(progress)

    @abstractmethod
    def shape(self, progress: float) -> float:
        """The same after the warm-up."""
