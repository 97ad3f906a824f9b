"""Train one model for several image sizes: all of them in each step, or one after another.

Without flags it trains on the built-in data at 20, 32 and 64 px, in about 2 minutes on two CPU cores.

Example: toolkit train multi --data-root DIR --scales 64,112,224 --progressive --amp
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.commands.start import start
from toolkit.config.cli import Command, parse
from toolkit.config.scales import default_scales
from toolkit.system.errors import InputError
from toolkit.system.exit_codes import exit_code

if TYPE_CHECKING:
    from toolkit.strategies.base import Strategy

SCALE_FLAGS = (
    "strategy",
    "progressive",
    "scales",
    "scale_epochs",
    "ramp",
    "regularization_from",
    "grow_batch",
    "consistency_share",
    "consistency_ramp",
    "consistency_gate",
    "consistency_teacher",
    "consistency_temperature",
    "consistency",
    "consistency_weight",
    "norm_per_scale",
    "head_epochs",
    "finish_size",
    "finish_epochs",
    "eval_scales",
    "strategy_kwargs",
)


def strategy_name(command: Command) -> str:
    """`--strategy`, or its shorthand `--progressive`; raises InputError if they contradict each other."""
    name = command.scales.get("strategy")
    if command.scales.get("progressive"):
        if name not in (None, "progressive"):
            raise InputError(f"--progressive contradicts --strategy {name}: drop one of them")
        return "progressive"
    if name == "single":
        raise InputError("--strategy single: use `toolkit train single`")
    return name or "simultaneous"


def strategy_of(command: Command) -> "Strategy":
    """The strategy that the flags ask for; raises InputError if they do not fit together."""
    choices, usual = command.scales, {"scales": default_scales(command.settings.data_root)}
    name = strategy_name(command)
    form = choices.get("consistency", "kl")  # config.yaml has kl too
    used = choices.get("consistency_share") or choices.get("consistency_weight")
    if name == "simultaneous" and form != "kl" and not used:
        raise InputError(f"--consistency {form} would be ignored without --consistency-share: give it")

    from toolkit.strategies import build  # heavy imports come after parsing

    flags = {key: value for key, value in choices.items() if key not in ("strategy", "progressive")}
    return build(name, flags, usual)


def train_from(argv: Sequence[str] | None, prog: str) -> None:
    start(parse(argv, prog, __doc__, SCALE_FLAGS), lambda command: (command, strategy_of(command)), "multiscale")


def main(argv: Sequence[str] | None = None, prog: str = "toolkit train multi") -> int:
    return exit_code(lambda: train_from(argv, prog))
