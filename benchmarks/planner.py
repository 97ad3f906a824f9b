"""How well the planner predicts the wall time of whole runs on this machine: predicted, measured, and their ratio.

python benchmarks/planner.py [--epochs 4] [--rounds 1]                              about 4 minutes on two quiet cores

Each case is planned as by `--dry-run --measure`, then trained by its recipe as a user would, in its own process, whose
time counts from its start to its end. The goal: a ratio within 15% of 1 on a machine that does nothing else.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from toolkit import Progressive, Settings, Simultaneous, SingleScale, Strategy
from toolkit.data.sources import shapes, synthetic
from toolkit.tools.planner import plan

ROOT = Path(__file__).parent.parent
SCALES = (20, 32, 64)
CASES: dict[str, Strategy] = {
    "single 64": SingleScale(64),
    "simultaneous 20/32/64": Simultaneous(SCALES),
    "progressive --ramp to 64": Progressive(SCALES, ramp=True),
}


def trained(command: str) -> float:
    """Seconds of a training command, which the planner printed, as a process of its own."""
    words = shlex.split(command)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        recipe = [sys.executable, "-m", *words, "--output-dir", f"{folder}/run"]  # toolkit train ...
        subprocess.run(recipe, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1, help="cases are the inner loop")
    options = parser.parse_args()
    settings = Settings(epochs=options.epochs, synthetic_size=max(SCALES), log_with="none")
    synthetic.prepare(max(SCALES), shapes.COUNT)  # drawn once, which is no part of a run
    ratios: dict[str, list[float]] = {case: [] for case in CASES}
    print(f"{'run':<26} {'predicted s':>11} {'measured s':>10} {'ratio':>6}")
    for _ in range(options.rounds):
        for case, strategy in CASES.items():
            planned = plan(settings, strategy).planned
            predicted, measured = planned.seconds, trained(planned.commands[0])
            ratios[case].append(predicted / measured)
            print(f"{case:<26} {predicted:11.1f} {measured:10.1f} {predicted / measured:6.2f}", flush=True)
    for case, found in ratios.items():
        print(f"{case}: median ratio {statistics.median(found):.2f}")


if __name__ == "__main__":
    main()
