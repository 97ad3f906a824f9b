"""Run a training recipe after its flags are parsed: show the plan, benchmark, train."""

import logging

from toolkit.config.settings import Settings
from toolkit.strategies.base import Strategy
from toolkit.system import console
from toolkit.tools.benchmark import benchmark
from toolkit.training import device
from toolkit.training.loop import train
from toolkit.training.parts import make_parts
from toolkit.training.run_plan import describe_run, make_run_plan

log = logging.getLogger(__name__)


def plan_of(settings: Settings, strategy: Strategy) -> list[str]:
    """What a run would do and cost, as lines of text; raises InputError for the same reasons as the run."""
    accelerator = device.start(settings)
    console.start(accelerator.is_main_process)
    try:
        run_plan = make_run_plan(accelerator, *make_parts(settings, strategy))
        return [*device.describe_machine(settings, accelerator), *describe_run(run_plan)]
    finally:
        device.stop()


def carry_out(
    settings: Settings, strategy: Strategy, recipe: str, *, dry_run: bool = False, measure_first: bool = False
) -> None:
    """Train. `dry_run`: only log the plan. `measure_first`: benchmark first, and save benchmark.json in the run."""
    if dry_run:
        for line in plan_of(settings, strategy):
            log.info(line)
        return
    notes = {}
    if measure_first:
        plan_of(settings, strategy)  # raises InputError before a benchmark of a run that cannot start
        notes["benchmark.json"] = benchmark(settings, strategy).to_json()
    train(settings, strategy, recipe, notes)
