"""A strategy and a schedule from outside the package."""

from dataclasses import dataclass
from typing import ClassVar

from toolkit import Schedule, Strategy, register
from toolkit.strategies.base import Loss, NormPolicy, Phase, Step, at_size


@dataclass(frozen=True)
class Alternating(Strategy):
    name: ClassVar[str] = "alternating"
    small: int
    large: int

    def phases(self, budget):
        steps = budget.epochs * budget.steps_per_epoch
        return (Phase(0, budget.epochs, steps, (self.small, self.large), budget.batch_size),)

    def step(self, phase, i):
        return Step(((self.small, self.large)[i % 2],), phase.batch_size)

    def loss(self, logits, targets, task, phase, step):
        return Loss(task.loss(logits[0], targets), {})

    def eval_specs(self):
        return (at_size(self.small), at_size(self.large))

    def selection(self):
        return at_size(self.large)

    def norm(self):
        return NormPolicy("full", (self.small, self.large))


@dataclass(frozen=True)
class Steps(Schedule):
    drops: int = 2

    def shape(self, progress):
        return 0.1 ** int(progress * (self.drops + 1))


register("schedule", "steps", Steps)
