"""A plan as lines of text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.tools.planner import Plan, Row


def duration(seconds: float) -> str:
    """Two units of time, such as 2 min 50 s."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    for unit, (name, below, part) in {86_400: ("d", "h", 3_600), 3_600: ("h", "min", 60), 60: ("min", "s", 1)}.items():
        if seconds >= unit:
            parts = round(seconds / part)
            whole, rest = divmod(parts, unit // part)
            return f"{whole} {name} {rest} {below}" if rest else f"{whole} {name}"
    raise AssertionError(seconds)


def short(seconds: float) -> str:
    """The same in the form of `--time-budget`."""
    return duration(round(seconds, 1)).replace("min", "m").replace(" ", "")


def count_of(epochs: int) -> str:
    return f"{epochs} epoch" + "s" * (epochs != 1)


def name_of(sizes: Sequence[int]) -> str:
    return "+".join(map(str, sizes))


def stages(row: "Row") -> str:
    """The epochs of each phase of a run, where it has several."""
    if len(row.predictions) > 1 or len(row.predictions[0].phases) == 1:
        return ""
    phases = row.predictions[0].phases
    epochs = "+".join(str(phase.epochs) for phase in phases)
    return f"{epochs} epochs at {', '.join(name_of(phase.sizes) for phase in phases)} px"


def lines(plan: "Plan") -> list[str]:
    """What was measured, the planned run, the comparison, the budget and the recommendation."""
    first, planned = plan.rows[0], plan.planned
    result = [
        f"measured  {plan.conditions}",
        *_measured(plan),
        *_planned(planned),
        f"compare   --goal {plan.goal}, {count_of(planned.epochs)} each; * is the planned run",
        *_table(plan.rows, first),
        *(f"left out  {reason}" for reason in plan.left_out),
    ]
    if plan.budget_s is not None:
        result.append(f"budget    the most epochs within {duration(plan.budget_s)}, with start and evaluation")
        for row in plan.fitting:
            result += [_fits(row), *(f"          {command}" for command in row.commands)]
        fitting = {row.candidate for row in plan.fitting}
        result += [
            f"          {row.candidate.title}: does not fit" for row in plan.rows if row.candidate not in fitting
        ]
    return [*result, f"advice    {plan.advice}", *(f"          {command}" for command in plan.commands)]


def _measured(plan: "Plan") -> list[str]:
    """One line per case that was timed."""
    ordered = sorted(plan.times.steps, key=lambda time: (len(time.sizes), time.sizes))
    found = [
        f"step      {name_of(time.sizes)} px, {time.batch_size} images: {1000 * time.step_s:.3g} ms; loading alone "
        f"{1000 * time.load_s:.3g} ms; peak memory {time.memory_gb:.2f} GB"
        for time in ordered
    ]
    evals = sorted(plan.times.evals, key=lambda time: (len(time.sizes), time.sizes))
    images = ", ".join(f"{1 / time.image_s:.0f} images/s at {name_of(time.sizes)} px" for time in evals)
    return [*found, f"evaluate  {images}"]


def _planned(row: "Row") -> list[str]:
    (found,) = row.predictions
    cost = "" if found.cost is None else f", cost {found.cost:.3g}"
    result = [
        f"planned   {row.runs[0]}: {count_of(found.epochs)} in {duration(found.seconds)}: start "
        f"{duration(found.start_s)}, training {duration(found.training_s)}, evaluation and report "
        f"{duration(found.eval_s)}; peak memory {found.memory_gb:.2f} GB{cost}"
    ]
    for index, phase in enumerate(found.phases):
        sizes = name_of(phase.sizes)
        result.append(f"phase {index}   {count_of(phase.epochs)} at {sizes} px in {duration(phase.seconds)}")
    return result


def _table(rows: Sequence["Row"], first: "Row") -> list[str]:
    """One line per strategy; times relative to that of `first`."""
    costs = first.cost is not None
    width = max(len(row.candidate.title) for row in rows) + 2
    head = f"  {'strategy':<{width}} {'epochs':>6} {'time':>13} {'relative':>8} {'memory GB':>9}"
    result = [head + (f" {'cost':>8}" if costs else "")]
    for row in rows:
        line = (
            f"{'*' if row.planned else ' '} {row.candidate.title:<{width}} {row.epochs:6} {duration(row.seconds):>13} "
            f"{row.seconds / first.seconds:7.2f}x {row.memory_gb:9.2f}"
        )
        result.append(line + (f" {row.cost:8.3g}" if row.cost is not None else ""))
    return result


def _fits(row: "Row") -> str:
    of_phases = f" ({stages(row)})" if stages(row) else ""
    cost = "" if row.cost is None else f", cost {row.cost:.3g}"
    return f"          {row.candidate.title}: {count_of(row.epochs)}{of_phases} in {duration(row.seconds)}{cost}"
