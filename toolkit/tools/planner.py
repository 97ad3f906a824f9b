"""Plans a run on this machine: measures its steps, predicts its time and cost, compares strategies, solves a budget."""

import math
from dataclasses import dataclass, replace
from typing import Any, get_args

from accelerate import Accelerator

from toolkit.config.planning import Goal
from toolkit.config.settings import Settings
from toolkit.data.loading.downscaled import downscaled_side, is_worthwhile
from toolkit.strategies import SingleScale
from toolkit.strategies.base import Strategy
from toolkit.system import console, host
from toolkit.system.errors import InputError
from toolkit.system.result import Result
from toolkit.tools import planner_text
from toolkit.tools.planner_candidates import CANDIDATES, PREFERRED, Candidate, Runs, command, scales_of
from toolkit.tools.planner_prediction import Job, Prediction, fewest_epochs, most_epochs, predict
from toolkit.tools.planner_times import Times, measure
from toolkit.training import device
from toolkit.training.monitor import Stopwatch
from toolkit.training.parts import make_parts
from toolkit.training.run_plan import RunPlan, make_run_plan

OWN = "planned"  # the name of the run that was asked for, where no candidate is the same


@dataclass(frozen=True)
class Row:
    """A strategy of the comparison for a number of epochs: one prediction for each of its runs."""

    candidate: Candidate
    runs: Runs
    predictions: tuple[Prediction, ...]
    commands: tuple[str, ...]
    planned: bool  # the run that was asked for

    @property
    def epochs(self) -> int:
        return self.predictions[0].epochs

    @property
    def seconds(self) -> float:
        return sum(prediction.seconds for prediction in self.predictions)

    @property
    def memory_gb(self) -> float:
        return max(prediction.memory_gb for prediction in self.predictions)

    @property
    def cost(self) -> float | None:
        costs = [prediction.cost for prediction in self.predictions]
        return None if None in costs else sum(cost for cost in costs if cost is not None)


@dataclass(frozen=True, repr=False)
class Plan(Result):
    """What was measured and predicted. `rows`: with the epochs of the settings, the planned run among them.

    `fitting`: with the most epochs that fit into `budget_s`, for those that fit; empty without a budget. `left_out`:
    why a strategy is not compared. `advice`: the recommendation in one line, `commands` those that follow it.
    """

    conditions: str
    goal: Goal
    times: Times
    rows: tuple[Row, ...]
    fitting: tuple[Row, ...]
    budget_s: float | None
    left_out: tuple[str, ...]
    recommended: Row
    advice: str

    @property
    def planned(self) -> Row:
        return next(row for row in self.rows if row.planned)

    @property
    def commands(self) -> tuple[str, ...]:
        return self.recommended.commands

    @property
    def text(self) -> str:
        """The plan as lines of text."""
        return "\n".join(planner_text.lines(self))


def plan(
    settings: Settings,
    strategy: Strategy,
    *,
    goal: Goal | None = None,
    time_budget_s: float | None = None,
    cost_budget: float | None = None,
) -> Plan:
    """Measure, predict and compare; nothing is trained or written but what a dry run writes.

    `goal`: unset: one-size for `SingleScale`, else every-size. `time_budget_s`, `cost_budget`: find the epochs that
    fit; with both, into both. Raises InputError for the same reasons as a run, and if a budget buys no epoch.
    """
    if goal not in (None, *get_args(Goal)):
        raise InputError(f"goal {goal}: must be one of {', '.join(get_args(Goal))}")
    clock = Stopwatch()
    clock.start()
    accelerator = device.start(settings)
    console.start(accelerator.is_main_process)
    try:
        hourly = _hourly_cost(settings, accelerator)
        if cost_budget is not None and hourly is None:
            raise InputError(f"--cost-budget {cost_budget:g} needs --hourly-cost, the price of one machine per hour")
        asked = clock.lap()
        base = make_run_plan(accelerator, *make_parts(settings, strategy))
        planned_s = clock.lap()
        goal = goal or ("one-size" if isinstance(strategy, SingleScale) else "every-size")
        compared, plans, left_out = _compared(accelerator, base, goal)
        times = measure(accelerator, [base, *plans], planned_s)
        comparison = _Comparison(settings, base, times, job_of(base, hourly))
        conditions = (
            f"{settings.model_name} on {accelerator.num_processes} x {device.name(accelerator)}, "
            f"{settings.batch_size} images per step, in {asked + planned_s + clock.stop():.0f} s"
        )
    finally:
        device.stop()
    rows = tuple(comparison.row(candidate, settings.epochs) for candidate in compared)
    limits = [time_budget_s, None if cost_budget is None or hourly is None else cost_budget / hourly * 3600]
    budget_s = min((limit for limit in limits if limit is not None), default=None)
    fitting = () if budget_s is None else tuple(_fitting(comparison, compared, budget_s))
    if budget_s is not None and not fitting:
        flag = "--time-budget" if budget_s == time_budget_s else f"--cost-budget {cost_budget:g}:"
        raise InputError(_nothing_fits(comparison, compared, budget_s, flag))
    recommended, advice = recommend(goal, rows, fitting, settings.epochs)
    return Plan(conditions, goal, times, rows, fitting, budget_s, tuple(left_out), recommended, advice)


def _hourly_cost(settings: Settings, accelerator: Accelerator) -> float | None:
    """The price of all machines per hour, as `Run.cost` counts them."""
    machines = max(1, accelerator.num_processes // host.local_processes())
    return None if settings.hourly_cost is None else machines * settings.hourly_cost


def _compared(accelerator: Accelerator, base: RunPlan, goal: Goal) -> tuple[list[Candidate], list[RunPlan], list[str]]:
    """The planned run and the candidates of a goal; plans of their runs; and why others are left out.

    Candidates whose runs are the planned one come once.
    """
    strategy = base.parts.strategy
    scales = scales_of(strategy)
    own = Candidate(OWN, str(strategy), goal, lambda scales: (strategy,))
    compared, plans, left_out = [], [], []
    for candidate in (candidate for candidate in CANDIDATES if candidate.goal == goal):
        try:
            made = [_plan_of_run(accelerator, base, run) for run in candidate.build(scales)]
        except InputError as error:
            left_out.append(f"{candidate.title}: {error}")
            continue
        compared.append(candidate)
        plans += made
    if not any(candidate.build(scales) == (strategy,) for candidate in compared):
        compared.append(own)
    return compared, plans, left_out


def _plan_of_run(accelerator: Accelerator, base: RunPlan, strategy: Strategy) -> RunPlan:
    """The plan of another strategy with the same settings and images; raises InputError as for a run."""
    settings, parts = make_parts(base.settings, strategy)
    return make_run_plan(accelerator, settings, replace(parts, splits=base.splits))


def job_of(base: RunPlan, hourly_cost: float | None) -> Job:
    """What the runs that are compared with a planned one have in common; `hourly_cost`: of all machines together."""
    settings, splits, budget = base.settings, base.splits, base.steps.budget

    def reader(size: int) -> Any:
        side = downscaled_side(size, settings.crop_scale)
        return side if is_worthwhile(splits.train, side) else None

    return Job(
        images=budget.images,
        batch_size=budget.batch_size,
        val=len(splits.val),
        test=0 if splits.test is None else len(splits.test),
        raw=settings.ema_decay is not None,
        reader=reader if base.cache.kind == "ram" else None,
        hourly_cost=hourly_cost,
    )


@dataclass(frozen=True)
class _Comparison:
    """Predicts candidates. `settings`: as the user gave them."""

    settings: Settings
    base: RunPlan
    times: Times
    job: Job

    def runs(self, candidate: Candidate) -> Runs:
        return candidate.build(scales_of(self.base.parts.strategy))

    def seconds(self, runs: Runs, epochs: int) -> float:
        """Of all runs of a candidate; infinite where one of them has no phases for so many epochs."""
        try:
            return sum(predict(run, epochs, self.job, self.times).seconds for run in runs)
        except InputError:
            return math.inf

    def fewest(self, runs: Runs) -> int:
        """The fewest epochs with which a run is accepted."""
        longer = int(self.settings.warmup_epochs) + 1 if "warmup_epochs" in self.settings.model_fields_set else 1
        return max(longer, *(fewest_epochs(run, self.job) for run in runs))

    def row(self, candidate: Candidate, epochs: int) -> Row:
        runs, processes = self.runs(candidate), self.base.steps.processes
        shared: dict[
            str, Any
        ] = {}  # what a run would otherwise choose by its own largest size, or could not share with another
        if self.settings.synthetic_size is None and self.base.settings.synthetic_size is not None:
            shared["synthetic_size"] = self.base.settings.synthetic_size
        if self.settings.amp is None and self.base.settings.amp:
            shared["amp"] = True
        if len(runs) > 1:
            shared["output_dir"] = None
        settings = self.settings.model_copy(update=shared)
        predictions = tuple(predict(run, epochs, self.job, self.times) for run in runs)
        commands = tuple(command(settings, run, epochs, processes) for run in runs)
        return Row(candidate, runs, predictions, commands, runs == (self.base.parts.strategy,))


def _fitting(comparison: _Comparison, compared: list[Candidate], budget_s: float) -> list[Row]:
    """The candidates of which a budget buys an epoch, with the most epochs that it buys."""
    found = []
    for candidate in compared:
        runs = comparison.runs(candidate)
        fewest = comparison.fewest(runs)
        epochs = most_epochs(lambda epochs, runs=runs: comparison.seconds(runs, epochs), budget_s, fewest)  # type: ignore[misc]
        if epochs:
            found.append(comparison.row(candidate, epochs))
    return found


def recommend(goal: Goal, rows: tuple[Row, ...], fitting: tuple[Row, ...], epochs: int) -> tuple[Row, str]:
    """The first preferred strategy that has the time for all epochs, else the last preferred one; and why."""
    among = {row.candidate.name: row for row in fitting or rows}
    preferred = [among[name] for name in PREFERRED[goal] if name in among] or [*among.values()]
    whole = [row for row in preferred if row.epochs >= epochs]
    row = (whole or preferred[-1:])[0]
    if not fitting:
        others = [other for other in preferred[1:] if other.seconds < row.seconds]
        less = "".join(
            f"; {other.candidate.title} takes {other.seconds / row.seconds:.2f}x the time" for other in others
        )
        return row, f"{row.candidate.title}, if {planner_text.duration(row.seconds)} are at hand{less}"
    time = planner_text.duration(row.seconds)
    reason = f"all {planner_text.count_of(epochs)} fit" if whole else f"fewer than {planner_text.count_of(epochs)} fit"
    return row, f"{row.candidate.title} for {planner_text.count_of(row.epochs)}, {time}: {reason}"


def _nothing_fits(comparison: _Comparison, compared: list[Candidate], budget_s: float, flag: str) -> str:
    """One line: what the budget would buy of the cheapest candidate, and which smaller sizes fit."""
    shortest = min(
        compared, key=lambda c: comparison.seconds(comparison.runs(c), comparison.fewest(comparison.runs(c)))
    )
    runs = comparison.runs(shortest)
    fewest = comparison.fewest(runs)
    predictions = [predict(run, fewest, comparison.job, comparison.times) for run in runs]
    whole_s = sum(prediction.seconds for prediction in predictions)
    training_s = sum(prediction.training_s for prediction in predictions)
    share = max(0.0, budget_s - (whole_s - training_s)) / training_s
    steps = sum(phase.steps for run in runs for phase in run.phases(comparison.job.budget(fewest)))
    given = f"{flag} {planner_text.short(budget_s)}:" if flag == "--time-budget" else flag
    named = f"an epoch of {shortest.title} takes" if fewest == 1 else f"{fewest} epochs of {shortest.title} take"
    return (
        f"{given} {named} {planner_text.duration(whole_s)} here with start and evaluation; the budget buys {share:.0%} "
        f"of that, {int(share * steps)} of {steps} steps; {_smaller(comparison, shortest, budget_s)}"
    )


def _smaller(comparison: _Comparison, candidate: Candidate, budget_s: float) -> str:
    """Which of the smaller scales fit into a budget."""
    scales = scales_of(comparison.base.parts.strategy)
    for count in range(len(scales) - 1, 0, -1):
        try:
            runs = candidate.build(scales[:count]) if count > 1 else (SingleScale(scales[0]),)
        except InputError:  # too few of them
            continue
        if comparison.seconds(runs, comparison.fewest(runs)) <= budget_s:
            several = count > 1 and (candidate.goal == "every-size" or hasattr(runs[0], "scales"))
            sizes = ",".join(map(str, scales[:count]))
            return f"smaller: --scales {sizes} fits" if several else f"smaller: --img-size {scales[count - 1]} fits"
    return "no smaller one of these sizes fits"
