"""Train one model for several image sizes: all of them in each step, or one after another.

Without flags it trains on the built-in data at 20, 32 and 64 px, in about 2 minutes on two CPU cores.

Example: accelerate launch --quiet recipes/multiscale.py --data-root DIR --scales 64,112,224 --progressive --amp
"""

import sys
from collections.abc import Sequence

from toolkit.config.cli import Command, parse
from toolkit.config.scales import default_scales
from toolkit.system.errors import InputError
from toolkit.system.exit_codes import exit_code
from toolkit.system.run_lock import refuse_if_locked

SCALE_FLAGS = (
    "strategy",
    "progressive",
    "scales",
    "scale_epochs",
    "ramp",
    "consistency_weight",
    "consistency",
    "norm_per_scale",
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
        raise InputError("--strategy single: use recipes/single_scale.py")
    return name or "simultaneous"


def train_from(argv: Sequence[str] | None) -> None:
    command = parse(argv, "multiscale.py", __doc__, SCALE_FLAGS)
    choices, usual = command.scales, {"scales": default_scales(command.settings.data_root)}
    name = strategy_name(command)
    form, weight = choices.get("consistency", "kl"), choices.get("consistency_weight", 0)  # config.yaml has kl too
    if name == "simultaneous" and form != "kl" and weight == 0:
        raise InputError(f"--consistency {form} would be ignored with --consistency-weight 0: give a weight")

    refuse_if_locked(command.settings.output_dir, command.settings.resume)

    from toolkit.strategies import build
    from toolkit.tools.launch import carry_out  # heavy imports come after parsing

    flags = {key: value for key, value in choices.items() if key not in ("strategy", "progressive")}
    strategy = build(name, flags, usual)
    carry_out(command.settings, strategy, "multiscale", dry_run=command.dry_run, measure_first=command.benchmark)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: train_from(argv))


if __name__ == "__main__":
    sys.exit(main())
