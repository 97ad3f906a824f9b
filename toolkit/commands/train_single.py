"""Train at one image size.

Example: toolkit train single --data-root DIR --arch resnet18 --img-size 64 --amp
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.commands.start import start
from toolkit.config.cli import Command, parse
from toolkit.system.errors import InputError
from toolkit.system.exit_codes import exit_code

if TYPE_CHECKING:
    from toolkit.strategies.base import Strategy

SCALE_FLAGS = ("img_size", "head_epochs", "finish_size", "finish_epochs", "eval_scales")


def strategy_of(command: Command) -> "Strategy":
    """The strategy that the flags ask for; raises InputError if they do not fit together."""
    if command.scales.get("strategy", "single") != "single":
        raise InputError(f"--config: a {command.scales['strategy']} run is repeated by `toolkit train multi`")

    from toolkit.models.source import make_source
    from toolkit.strategies import build  # heavy imports come after parsing

    choices = {key: value for key, value in command.scales.items() if key != "strategy"}
    size = command.scales.get("img_size") or make_source(command.settings).own_size()
    return build("single", {**choices, "img_size": size})


def train_from(argv: Sequence[str] | None, prog: str) -> None:
    start(parse(argv, prog, __doc__, SCALE_FLAGS), lambda command: (command, strategy_of(command)), "single_scale")


def main(argv: Sequence[str] | None = None, prog: str = "toolkit train single") -> int:
    return exit_code(lambda: train_from(argv, prog))
