"""Train at one image size.

Example: accelerate launch --quiet recipes/single_scale.py --data-root DIR --arch resnet18 --img-size 64 --amp
"""

import sys
from collections.abc import Sequence

from toolkit.config.cli import parse
from toolkit.system.errors import InputError
from toolkit.system.exit_codes import exit_code
from toolkit.system.run_lock import refuse_if_locked

SCALE_FLAGS = ("img_size", "eval_scales")


def train_from(argv: Sequence[str] | None) -> None:
    command = parse(argv, "single_scale.py", __doc__, SCALE_FLAGS)
    if command.scales.get("strategy", "single") != "single":
        raise InputError(f"--config: a {command.scales['strategy']} run is repeated by recipes/multiscale.py")

    refuse_if_locked(command.settings.output_dir, command.settings.resume)

    from toolkit.models.source import make_source
    from toolkit.strategies import SingleScale
    from toolkit.tools.launch import carry_out  # heavy imports come after parsing

    size = command.scales.get("img_size") or make_source(command.settings).own_size()
    strategy = SingleScale(size, command.scales.get("eval_scales"))
    carry_out(command.settings, strategy, "single_scale", dry_run=command.dry_run, measure_first=command.benchmark)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: train_from(argv))


if __name__ == "__main__":
    sys.exit(main())
