"""From parsed flags to a training: what can be refused without torch is refused before torch is imported."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from toolkit.config.cli import Command
from toolkit.data.sources.unusable import refuse_unusable
from toolkit.system.errors import InputError
from toolkit.system.run_lock import refuse_if_locked
from toolkit.system.stores import missing_extra

if TYPE_CHECKING:
    from toolkit.strategies.base import Strategy


def start(command: Command, prepare: Callable[[Command], tuple[Command, "Strategy"]], recipe: str) -> None:
    """Carry out a command with the strategy that its flags ask for; raises InputError.

    `prepare`: the strategy, and the command with the settings that depend on more than flags.
    """
    refuse_unusable(command.settings.data_root)
    settings = command.settings
    if settings.run_url and (missing := missing_extra(settings.run_url)):
        raise InputError(f"--output-dir {settings.run_url}: needs a package that is not installed: {missing}")
    refuse_if_locked(settings.output_dir, settings.resume, settings.take_over)

    from toolkit.commands.training import carry_out

    carry_out(*prepare(command), recipe)
