"""Train from weights that are good already, with defaults for few images: one size, or one model for several.

Epochs, batch size, rates, a start in which only the classifier learns, frozen BatchNorm, an average of the weights, and
weights of uneven classes follow from your images and the model; a flag that you give wins. It starts from timm's
weights, or --weights.

Example: toolkit train finetune --data-root photos --arch resnet18 --img-size 224
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from toolkit.commands import train_multi, train_single
from toolkit.commands.start import start
from toolkit.config.cli import Command, parse
from toolkit.system import console, host
from toolkit.system.errors import InputError
from toolkit.system.exit_codes import exit_code

if TYPE_CHECKING:
    from toolkit.strategies.base import Strategy

log = logging.getLogger(__name__)

SCALE_FLAGS = ("img_size", *train_multi.SCALE_FLAGS)
DEFAULTS = {  # what `--help` says of the settings that `toolkit.tools.finetuning` fills in
    "pretrained": "on, unless --weights or --model-from is given",
    "batch_size": "64; down to 8 for fewer than 512 images",
    "epochs": "those of 1,000 steps, 5 to 30",
    "learning_rate": "by the size of the model and the batch",
    "warmup_epochs": "a tenth of the epochs",
    "ema_decay": "one over a twentieth of the steps",
    "freeze_bn": "on for fewer than 512 images at one size",
    "layer_decay": "0.75 for models without BatchNorm, else none",
    "class_weights": "inverse where classes are uneven, else none",
    "class_weights_power": "0.5 where classes are uneven, else 1",
}
SEVERAL = ("scales", "strategy", "progressive")  # flags of a training at several sizes


def strategy_of(command: Command) -> "Strategy":
    """The strategy that the flags ask for: several sizes if they name some, else one; raises InputError."""
    chosen = [name for name in SEVERAL if command.scales.get(name) and command.scales[name] != "single"]
    one = [
        f"--{name.replace('_', '-')} {command.scales[name]}"
        for name in ("img_size", "strategy")
        if command.scales.get(name) and name not in chosen
    ]
    if chosen and one:
        raise InputError(f"{one[0]} is one size, --{chosen[0]} asks for several: drop one of them")
    training = train_multi if chosen else train_single
    return training.strategy_of(replace(command, scales={**command.scales, "head_epochs": None}))


def prepare(command: Command) -> tuple[Command, "Strategy"]:
    """The command with the defaults of fine-tuning, and its strategy."""
    strategy = strategy_of(command)

    from toolkit.tools.finetuning import finetuning

    console.start(host.is_main_process(command.settings.alone))
    found = finetuning(command.settings, strategy, command.scales.get("head_epochs"))
    for line in console.wrapped([found.line]):
        log.info(line)
    return replace(command, settings=found.settings), found.strategy


def train_from(argv: Sequence[str] | None, prog: str) -> None:
    start(parse(argv, prog, __doc__, SCALE_FLAGS, DEFAULTS), prepare, "finetune")


def main(argv: Sequence[str] | None = None, prog: str = "toolkit train finetune") -> int:
    return exit_code(lambda: train_from(argv, prog))
