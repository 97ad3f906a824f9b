"""Evaluate a finished run's best model at any size: accuracy, calibration error, latency, throughput, multiply-adds and
peak memory, on the run's own data or on other data with the same classes.

A size that the model was not trained at uses the normalization of the nearest size, unless --recalibrate is given.
--cascade reports the compute saved by starting at a small size and moving up only while the confidence is low;
`toolkit predict` predicts with the same cascade.

Exit code: 0 done; 2 a flag, the run or the data is wrong.

Example: toolkit evaluate RUN --scales 64,96,112,160,224 --recalibrate --cascade 64,224
"""

import sys
from collections.abc import Sequence

from toolkit.config.cli import parse_section
from toolkit.config.tool_settings import Evaluate
from toolkit.system import console
from toolkit.system.exit_codes import exit_code
from toolkit.system.host import is_main_process


def evaluate_from(argv: Sequence[str] | None) -> None:
    flags = parse_section(argv, "toolkit evaluate", __doc__, Evaluate, "run")

    from toolkit.tools.evaluate import evaluate  # heavy imports come after parsing

    report = evaluate(model=flags.model_from, **flags.model_dump(exclude={"model_from"}))
    if is_main_process(flags.alone):
        console.say(report.text.rstrip("\n"), sys.stdout)
        written = "evaluation.txt, evaluation.json, evaluation.svg, predictions/"
        console.say(f"wrote     {report.folder}: {written}", sys.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: evaluate_from(argv))
