"""What a recipe does once it has its strategy: show the plan, measure, train."""

import logging

from toolkit import console, device
from toolkit.benchmark import benchmark
from toolkit.command import Command
from toolkit.contract import Strategy
from toolkit.loop import train
from toolkit.prepare import describe, prepare
from toolkit.settings import Settings

log = logging.getLogger(__name__)


def show_plan(settings: Settings, strategy: Strategy) -> None:
    """Print what a run would do and cost; raises InputError as the run itself would."""
    accelerator = device.start(settings)
    console.start(accelerator.is_main_process)
    try:
        lines = device.describe(settings, accelerator)
        lines += describe(prepare(accelerator, settings, strategy), strategy)
        for line in lines:
            log.info(line)
    finally:
        device.stop()


def carry_out(command: Command, strategy: Strategy, recipe: str) -> None:
    """Do what the command line asks for."""
    if command.dry_run:
        show_plan(command.settings, strategy)
        return
    notes = {"benchmark.json": benchmark(command.settings, strategy).to_json()} if command.benchmark else {}
    train(command.settings, strategy, recipe, notes)
