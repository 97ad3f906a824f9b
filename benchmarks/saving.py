"""Time cost of checkpoints at the default interval: a table of docs/results.md.

python benchmarks/saving.py [--rounds 3] [--quick]        about 10 minutes on two cores

Runs the same training alternately with checkpoints (each epoch; hashed, fsynced, written in the background) and
without, each in its own process; a metric is the median over rounds of the ratio within a round. Reports wall time,
which means little on a shared machine, and two values that do not depend on its other load: the CPU time of the whole
process, and the time that training waited. Epochs of the built-in data are short, so this is harsher than usual: a
checkpoint every 10 to 30 seconds.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
WITHOUT = """
import runpy, sys
from toolkit.runs import best_model
from toolkit.runs.saver import Saver

def only_the_best(saver, step, snapshot, metadata, best):
    if best:
        best_model.save(saver._best, snapshot.exported, best)

Saver._write = only_the_best
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CASES = {
    "test_resnet, 20+32+64 px": ("multiscale.py", "--epochs", "3"),
    "resnet18 with moving average, 64 px": ("single_scale.py", "--arch", "resnet18", "--img-size", "64", "--epochs")
    + ("2", "--ema-decay", "0.999", "--learning-rate", "1e-3"),
}


def run(flags: tuple[str, ...], saving: bool) -> dict[str, float]:
    """Train once; return wall seconds, CPU seconds, seconds waiting for saves, and the size of a checkpoint, MB."""
    recipe, *words = flags
    with tempfile.TemporaryDirectory() as folder:
        start = [] if saving else ["-c", WITHOUT]
        output = Path(folder, "run")
        command = [sys.executable, *start, str(ROOT / "recipes" / recipe), *words, "--log-with", "none"]
        passive = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # spinning threads would count as CPU time
        before = _processor_seconds()
        subprocess.run(
            [*command, "--output-dir", str(output)], check=True, cwd=folder, stdout=subprocess.DEVNULL, env=passive
        )
        processors = _processor_seconds() - before
        summary = json.loads((output / "summary.json").read_text())
        newest = max((output / "checkpoints").glob("step-*"), default=None)
        size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file()) / 1e6 if newest else 0.0
        waited = summary["save_seconds"]
        return {"wall": summary["wall_seconds"], "processors": processors, "waited": waited, "mb": size}


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _spread(pairs: list[tuple[dict[str, float], dict[str, float]]], what: str) -> str:
    ratios = [mine[what] / other[what] for mine, other in pairs]
    return f"{statistics.median(ratios):.3f}x ({min(ratios):.3f} - {max(ratios):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few images, one round: only to see that it runs")
    options = parser.parse_args()
    rounds, few = (1, ("--synthetic-count", "300")) if options.quick else (options.rounds, ())
    print("| training | checkpoint | wall time with against without | processor time | training waited |")
    print("|---|---|---|---|---|")
    for name, flags in CASES.items():
        pairs = []
        for turn in range(rounds):
            order = (True, False) if turn % 2 == 0 else (False, True)
            found = {saving: run((*flags, *few), saving) for saving in order}
            pairs.append((found[True], found[False]))
        waited = statistics.median(mine["waited"] / mine["wall"] for mine, _ in pairs)
        cells = f"{pairs[0][0]['mb']:.1f} MB | {_spread(pairs, 'wall')} | {_spread(pairs, 'processors')} | {waited:.2%}"
        print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
