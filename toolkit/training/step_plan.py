"""Plan the steps of a run before training: budget, phases, micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from toolkit.config.settings import Settings
from toolkit.data.loading.sampler import Epoch, RankShare
from toolkit.strategies.base import Budget, Phase, Strategy
from toolkit.system.errors import InputError

CHECKED_STEPS = 10_000  # of a phase; a run may have millions


@dataclass(frozen=True)
class StepPlan:
    """Budget and phases of a run, and how processes and micro-batches divide a global batch.

    `micro_batches`: images per process and forward pass, by phase.
    """

    budget: Budget
    phases: tuple[Phase, ...]
    processes: int
    micro_batches: tuple[int, ...]

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def images(self) -> int:
        return sum(phase.steps * phase.batch_size for phase in self.phases)

    @property
    def micro_batch(self) -> int:
        """The largest of all phases."""
        return max(self.micro_batches)

    def smaller_micro_batches(self, than: int, even: bool) -> list[int]:
        """Values of `--device-batch-size` below `than` with which every phase divides exactly, largest first.

        `even`: images are mixed in pairs.
        """
        shares = {phase.batch_size // self.processes for phase in self.phases}
        return [
            size
            for size in range(than - 1, 0, -1)
            if all(share % min(size, share) == 0 and not (even and min(size, share) % 2) for share in shares)
        ]

    def accumulation(self, phase: Phase) -> int:
        """Micro-batches of each process in an optimizer step."""
        return phase.batch_size // (self.processes * self.micro_batches[phase.index])

    def share(self, rank: int, phase: Phase) -> RankShare:
        return RankShare(rank, self.processes, self.accumulation(phase))

    def sizes_before(self, phase: Phase) -> set[int]:
        """The sizes of all earlier phases, px."""
        return {size for earlier in self.phases[: phase.index] for size in earlier.sizes}

    def schedule_progress(self, step: int, warmup: float) -> float:
        """Where the schedule of the learning rate stands at the middle of optimizer step `step` of the run, 0 to 1.

        It follows the images trained on. After `warmup`, a share of the run, those of a phase count `lr_weight` times;
        a phase with `lr_restart` begins the schedule again, after its warm-up. One with `lr_hold` stands at the peak,
        and the schedule begins behind it.
        """
        ends = [*accumulate(phase.steps for phase in self.phases)]
        at = next(i for i, end in enumerate(ends) if step < end)
        if self.phases[at].lr_hold:
            return warmup
        fresh = [i for i in range(at + 1) if i == 0 or self.phases[i - 1].lr_hold]  # where it begins with the warm-up
        first = max(i for i in range(at + 1) if i in fresh or self.phases[i].lr_restart)
        last = next((i for i in range(at + 1, len(ends)) if self.phases[i].lr_restart), len(ends))
        chosen = self.phases[first:last]
        bounds = [0, *accumulate(phase.steps * phase.batch_size for phase in chosen)]
        total, current = bounds[-1], self.phases[at]
        seen = bounds[at - first] + (step - (ends[at] - current.steps) + 0.5) * current.batch_size
        warm = warmup * self.images if first in fresh else 0.0
        plain = first == 0 and last == len(ends) and all(phase.lr_weight == 1 for phase in chosen)
        if seen < warm or plain:
            return seen / self.images

        def weighted(images: float) -> float:
            spans = zip(bounds, bounds[1:], chosen, strict=False)
            return sum(phase.lr_weight * max(0.0, min(images, end) - max(begin, warm)) for begin, end, phase in spans)

        return warmup + (1 - warmup) * (weighted(seen) / weighted(total) if weighted(total) else 0.0)

    @property
    def patience_phase(self) -> Phase | None:
        """The phase that patience and the plateau schedule follow."""
        return next((phase for phase in reversed(self.phases) if phase.counts_for_patience), None)

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
    _micro_batch(settings, batch, processes)
    budget = Budget(settings.epochs, images - images % batch, batch)
    phases, name = strategy.phases(budget), type(strategy).__name__
    _check_phases(name, phases, budget)
    micro_batches = tuple(
        _micro_batch(settings, phase.batch_size, processes, "" if phase.batch_size == batch else _named(name, phase))
        for phase in phases
    )
    plan = StepPlan(budget, _with_shares(phases), processes, micro_batches)
    _check_steps(strategy, plan.phases)
    _check_patience(settings, strategy, plan)
    _check_warmup(settings, plan)
    return plan


def _named(name: str, phase: Phase) -> str:
    return f"{name}.phases: phase {phase.index}: "


def _micro_batch(settings: Settings, batch: int, processes: int, of_phase: str = "") -> int:
    """Images per process and forward pass for a global batch; raises InputError unless it divides exactly.

    `of_phase`: start of the message, if the batch is not that of `--batch-size`.
    """
    flag = "batch_size" if of_phase else "--batch-size"
    if batch % processes:
        raise InputError(
            f"{of_phase}{flag} {batch} does not divide over {processes} processes: "
            f"try {batch - batch % processes or processes} or {batch + processes - batch % processes}"
        )
    per_process = batch // processes
    micro = min(settings.device_batch_size or per_process, per_process)
    if per_process % micro:
        fitting = max(size for size in range(1, micro + 1) if per_process % size == 0)
        raise InputError(
            f"{of_phase}--device-batch-size {micro}: each process has {batch} / {processes} = {per_process} images "
            f"per step, which do not divide into micro-batches of {micro}; try {fitting}"
        )
    if micro % 2 and (settings.mixup or settings.cutmix):
        raise InputError(
            f"{of_phase}--mixup and --cutmix pair neighbors, and {batch} images per step over {processes} process(es) "
            f"make micro-batches of {micro}, an odd number: choose {flag} and --device-batch-size so that it is even"
        )
    return micro


def _check_phases(name: str, phases: tuple[Phase, ...], budget: Budget) -> None:
    """Raise InputError if a strategy of the user's own, called `name`, breaks the contract on phases."""
    if sum(phase.epochs for phase in phases) != budget.epochs:
        told = "+".join(str(phase.epochs) for phase in phases)
        raise InputError(f"{name}.phases: {told} epochs, but the run has --epochs {budget.epochs}")
    for place, phase in enumerate(phases):
        images = phase.steps * phase.batch_size
        if phase.index != place or phase.epochs < 1 or phase.steps < 1 or phase.steps % phase.epochs:
            raise InputError(
                f"{name}.phases: phase {place} has index {phase.index} and {phase.steps} steps in "
                f"{phase.epochs} epochs: every epoch needs as many steps, at least one"
            )
        if not phase.regularization >= 0:
            raise InputError(f"{name}.phases: phase {place} has regularization {phase.regularization:g}: 0 or more")
        if phase.batch_size < 1:
            raise InputError(f"{name}.phases: phase {place} has batch_size {phase.batch_size}: 1 or more")
        if images > phase.epochs * budget.images:
            raise InputError(
                f"{name}.phases: phase {place} takes {images // phase.epochs} images an epoch, of {budget.images}"
            )


def _check_steps(strategy: Strategy, phases: tuple[Phase, ...]) -> None:
    """Raise InputError if a strategy of the user's own breaks the contract on steps.

    Of a phase with more than CHECKED_STEPS steps, the first and the last are checked.
    """
    name = type(strategy).__name__
    for phase in phases:
        for i in range(phase.steps) if phase.steps <= CHECKED_STEPS else (0, phase.steps - 1):
            step = strategy.step(phase, i)
            where = f"{name}.step: step {i} of phase {phase.index}"
            if step.batch_size != phase.batch_size:
                raise InputError(f"{where} has {step.batch_size} images: the phase has batch_size {phase.batch_size}")
            if not step.sizes or any(small >= large for small, large in pairwise(step.sizes)):
                raise InputError(f"{where} has sizes {step.sizes}: at least one, in ascending order")
            if not {*step.sizes} <= {*phase.sizes}:
                raise InputError(f"{where} has sizes {step.sizes}: the phase has only {phase.sizes}")


def step_sizes(strategy: Strategy, phase: Phase) -> set[tuple[int, ...]]:
    """The sizes that steps of a phase have; of one with more than CHECKED_STEPS steps, of its first and last ones."""
    half, steps = CHECKED_STEPS // 2, range(phase.steps)
    ends = (*steps[:half], *steps[half:][-half:])
    return {strategy.step(phase, i).sizes for i in ends}


def _check_patience(settings: Settings, strategy: Strategy, plan: StepPlan) -> None:
    """Raise InputError if no phase counts for a setting that follows one."""
    followed = [("--patience", settings.patience is not None), ("--scheduler plateau", settings.scheduler == "plateau")]
    for flag, given in followed:
        phase = plan.patience_phase
        if given and phase is None:
            raise InputError(f"{flag} would be ignored: no phase of {type(strategy).__name__} counts for it; drop it")
        if given and phase and phase.lr_restart and (settings.patience or phase.epochs) >= phase.epochs:
            raise InputError(f"{flag} would be ignored: it follows the last phase, a finish of {phase.epochs} epoch(s)")


def _check_warmup(settings: Settings, plan: StepPlan) -> None:
    """Raise InputError if the warm-up behind phases that hold the rate would not end."""
    held = sum(phase.epochs for phase in plan.phases if phase.lr_hold)
    left = plan.budget.epochs - held - sum(phase.epochs for phase in plan.phases if phase.lr_restart)
    if held and settings.warmup_epochs >= left:
        raise InputError(
            f"--warmup-epochs {settings.warmup_epochs:g} must be smaller than the {left} epoch(s) behind the {held} "
            "of --head-epochs, or the learning rate never reaches its peak"
        )


def _with_shares(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """The phases with their `start` and `end`."""
    counts = [phase.steps * phase.batch_size for phase in phases]
    ends = [*accumulate(counts)]
    total = ends[-1]
    return tuple(
        replace(phase, start=(end - count) / total, end=end / total)
        for phase, count, end in zip(phases, counts, ends, strict=True)
    )


def describe_steps(plan: StepPlan, strategy: Strategy, images: int) -> list[str]:
    """Lines for display: the plan."""
    budget, dropped = plan.budget, images - plan.budget.images
    alike = plan.steps == budget.epochs * budget.steps_per_epoch
    steps = f" x {budget.steps_per_epoch} steps = {plan.steps} steps" if alike else f", {plan.steps} steps"
    micro_batch, accumulation = plan.micro_batches[0], plan.accumulation(plan.phases[0])
    first_batch = plan.phases[0].batch_size
    lines = [
        f"batch     {first_batch} images per step = {plan.processes} process(es) x {micro_batch} images "
        f"x {accumulation} micro-batch(es)",
        f"budget    {budget.epochs} epochs{steps}; "
        f"{dropped} of {images} images left out of each epoch, others each time",
        f"strategy  {strategy}, selection at {strategy.selection().name}",
    ]
    first = 1
    for phase in plan.phases:
        sizes = "+".join(map(str, phase.sizes))
        last = first + phase.epochs - 1
        batch = f" of {phase.batch_size} images" if phase.batch_size != first_batch else ""
        learns = f", only {' and '.join(phase.trainable)} learn" if phase.trainable else ""
        learns += "s" if len(phase.trainable) == 1 else ""
        learns += f", learning rate x {phase.lr_scale:.3g}" if phase.lr_scale != 1 else ""
        learns += ", held" if phase.lr_hold else ""
        share = f", {phase.regularization:.0%} of the regularization" if phase.regularization != 1 else ""
        steps = f"{phase.steps} steps{batch} at {sizes} px"
        lines.append(f"phase {phase.index}   epochs {first}-{last}, {steps}{learns}{share}")
        first += phase.epochs
    return lines
