"""What a training command does after its flags are parsed: show the plan, benchmark, train."""

import logging
from pathlib import Path

from toolkit.config.cli import Command
from toolkit.config.settings import Settings
from toolkit.data.sources.folders import unlabeled_test
from toolkit.runs.mirror.copies import publish
from toolkit.runs.mirror.place import place_of
from toolkit.runs.report.rate_search import RATE_SWEEP
from toolkit.runs.resume_rules import check_start, has_checkpoint
from toolkit.runs.run_config import config_of
from toolkit.strategies.base import Strategy
from toolkit.system import console, host, locks
from toolkit.tools.benchmark import benchmark
from toolkit.tools.planner import plan
from toolkit.tools.predict import predict
from toolkit.tools.rate_sweep import find_rate
from toolkit.training import device
from toolkit.training.loop import train_parts
from toolkit.training.main_work import on_main
from toolkit.training.parts import make_parts
from toolkit.training.plan_text import describe_run
from toolkit.training.precision_speed import compare_precisions
from toolkit.training.resume import fingerprint_of
from toolkit.training.run_plan import make_run_plan
from toolkit.training.start import initial_weights

log = logging.getLogger(__name__)

TEST_PREDICTIONS = "test_predictions.csv"


def plan_of(settings: Settings, strategy: Strategy, recipe: str) -> list[str]:
    """What a run would do and cost, as lines of text; raises InputError for the same reasons as the run."""
    place = place_of(settings)
    settings = place.settings
    accelerator = device.start(settings)
    console.start(accelerator.is_main_process)
    try:
        run_plan = make_run_plan(accelerator, *make_parts(settings, strategy))
        config = config_of(run_plan.settings, run_plan.parts.strategy)
        fingerprint = fingerprint_of(accelerator, config, run_plan.splits, run_plan.steps, run_plan.own_code())
        on_main(accelerator, place.look)
        check_start(settings, recipe, fingerprint)
        compare_precisions(accelerator, run_plan)
        of_weights = () if has_checkpoint(settings) else initial_weights(run_plan).lines
        return [*device.describe_machine(settings, accelerator), *describe_run(run_plan, of_weights)]
    finally:
        device.stop()


def carry_out(command: Command, strategy: Strategy, recipe: str) -> None:
    """Train as the flags say; with --dry-run only log the plan, with --benchmark measure first."""
    with locks.taking_over(command.settings.take_over and host.is_main_process(command.settings.alone)):
        _carry_out(command, strategy, recipe)


def _carry_out(command: Command, strategy: Strategy, recipe: str) -> None:
    settings, planning = command.settings, command.planning
    notes = {}
    if command.lr_find:
        sweep = find_rate(settings, strategy)
        log.info(sweep.text)
        settings = settings.model_copy(update={"learning_rate": sweep.learning_rate})
        notes[RATE_SWEEP] = sweep.to_json()
    if command.dry_run:
        for line in console.wrapped(plan_of(settings, strategy, recipe)):
            log.info(line)
        if planning.measure:
            budgets = {"time_budget_s": planning.time_budget, "cost_budget": planning.cost_budget}
            for line in plan(settings, strategy, goal=planning.goal, **budgets).text.splitlines():
                log.info(line)
        return
    if command.benchmark:
        plan_of(settings, strategy, recipe)  # raises InputError before a benchmark of a run that cannot start
        notes["benchmark.json"] = benchmark(settings, strategy).to_json()
    run = train_parts(*make_parts(settings, strategy), recipe, notes)
    if run.trained and (folder := unlabeled_test(settings.data_root)) is not None:
        model, output = settings.model_from, str(run.path / TEST_PREDICTIONS)
        workers, alone = settings.num_workers, settings.alone
        predict(run.path, [str(folder)], num_workers=workers, alone=alone, model=model, output=output, overwrite=True)
        log.info("wrote     %s: predictions of the images in %s", output, folder)
        if host.is_main_process(alone):
            publish(settings.run_url or run.path, Path(output))
