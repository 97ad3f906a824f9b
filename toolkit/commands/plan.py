"""Predict time, memory and cost of a training before it starts, and compare strategies for a goal and a budget. Takes
the flags of `toolkit train multi`, or with --img-size those of `toolkit train single`, measures steps on this machine
and trains nothing.

Example: toolkit plan --data-root DIR --scales 64,112,224 --goal every-size --time-budget 2h
"""

from collections.abc import Sequence

from toolkit.commands import train_multi, train_single
from toolkit.config.cli import parse
from toolkit.system.exit_codes import exit_code

MEASURED = ("--dry-run", "--measure")


def plan_from(argv: Sequence[str]) -> None:
    words = [*argv, *MEASURED]
    scales = parse(words, "toolkit plan", __doc__, ("img_size", *train_multi.SCALE_FLAGS)).scales
    of = train_single if "img_size" in scales or scales.get("strategy") == "single" else train_multi
    of.train_from(words, "toolkit plan")


def main(argv: Sequence[str]) -> int:
    return exit_code(lambda: plan_from(argv))
