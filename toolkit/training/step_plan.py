"""Plan the steps of a run before training: budget, phases, micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass

from toolkit.config.settings import Settings
from toolkit.data.loading.sampler import Epoch, RankShare
from toolkit.strategies.base import Budget, Phase, Strategy
from toolkit.system.errors import InputError


@dataclass(frozen=True)
class StepPlan:
    """Budget and phases of a run, and how processes and micro-batches divide a global batch."""

    budget: Budget
    phases: tuple[Phase, ...]
    processes: int
    micro_batch: int
    accumulation: int

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def share(self, rank: int) -> RankShare:
        return RankShare(rank, self.processes, self.accumulation)

    def epochs(self) -> Iterator[Epoch]:
        """Every epoch of the run, in order."""
        number = start = 0
        for phase in self.phases:
            steps = phase.steps // phase.epochs
            for first in range(0, phase.steps, steps):
                yield Epoch(number, phase, first, start + first, steps)
                number += 1
            start += phase.steps


def make_step_plan(settings: Settings, strategy: Strategy, images: int, processes: int) -> StepPlan:
    """The plan for `images` training images on `processes`; raises InputError that shows the arithmetic."""
    batch = settings.batch_size
    if batch > images:
        raise InputError(f"--batch-size {batch} exceeds the {images} training images: there would be no full batch")
    if batch % processes:
        raise InputError(
            f"--batch-size {batch} does not divide over {processes} processes: "
            f"try {batch - batch % processes or processes} or {batch + processes - batch % processes}"
        )
    per_process = batch // processes
    micro = min(settings.device_batch_size or per_process, per_process)
    if per_process % micro:
        fitting = max(size for size in range(1, micro + 1) if per_process % size == 0)
        raise InputError(
            f"--device-batch-size {micro}: each process has {batch} / {processes} = {per_process} images per step, "
            f"which do not divide into micro-batches of {micro}; try {fitting}"
        )
    if micro % 2 and (settings.mixup or settings.cutmix):
        raise InputError(
            f"--mixup and --cutmix pair neighbors, and {batch} images per step over {processes} process(es) make "
            f"micro-batches of {micro}, an odd number: choose --batch-size and --device-batch-size so that it is even"
        )
    budget = Budget(settings.epochs, images - images % batch, batch)
    return StepPlan(budget, strategy.phases(budget), processes, micro, per_process // micro)


def describe_steps(plan: StepPlan, strategy: Strategy, images: int) -> list[str]:
    """Lines for display: the plan."""
    budget, dropped = plan.budget, images - plan.budget.images
    lines = [
        f"batch     {budget.batch_size} images per step = {plan.processes} process(es) x {plan.micro_batch} images "
        f"x {plan.accumulation} micro-batch(es)",
        f"budget    {budget.epochs} epochs x {budget.steps_per_epoch} steps = {plan.steps} steps; "
        f"{dropped} of {images} images left out of each epoch, others each time",
        f"strategy  {strategy}, selection at {strategy.selection().name}",
    ]
    first = 0
    for phase in plan.phases:
        sizes = "+".join(map(str, phase.sizes))
        last = first + phase.epochs - 1
        lines.append(f"phase {phase.index}   epochs {first}-{last}, {phase.steps} steps at {sizes} px")
        first += phase.epochs
    return lines
