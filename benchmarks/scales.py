"""Accuracy of each strategy at each scale on the built-in data, and its training time: the tables of docs/results.md.

python benchmarks/scales.py [--seeds 3] [--epochs 12] [--out benchmarks/scales.json]      about 30 minutes on two cores

Each case runs a recipe as a user would, in its own process. Seeds are the outer loop, so that a machine that slows down
affects all cases alike. A case that is already in the output file is not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCALES = (20, 32, 64)
COMMON = ("--crop-scale", "1", "--synthetic-size", "64", "--log-with", "none", "--eval-scales", "20,32,64")
SINGLE, MULTI = "recipes/single_scale.py", "recipes/multiscale.py"
CASES = {
    "single 20": (SINGLE, "--img-size", "20"),
    "single 32": (SINGLE, "--img-size", "32"),
    "single 64": (SINGLE, "--img-size", "64"),
    "simultaneous, norm full": (MULTI,),
    "simultaneous, norm statistics": (MULTI, "--norm-per-scale", "statistics"),
    "simultaneous, norm off": (MULTI, "--norm-per-scale", "off"),
    "simultaneous, norm full, consistency 1": (MULTI, "--consistency-weight", "1"),
    "progressive, staged": (MULTI, "--progressive"),
    "progressive, ramp": (MULTI, "--progressive", "--ramp"),
}


def run(case: str, seed: int, epochs: int) -> dict[str, float]:
    """Train once; return test top-1 at every scale, and seconds of training without and with evaluation."""
    script, *flags = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / script), *COMMON, *flags]
        command += ["--seed", str(seed), "--epochs", str(epochs), "--output-dir", f"{folder}/run"]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    scores = {str(size): summary["test"][f"{size}px"]["top1"] for size in SCALES}
    return {**scores, "train_seconds": summary["train_seconds"], "wall_seconds": summary["wall_seconds"]}


def spread(values: list[float]) -> str:
    """Mean ± half the range over seeds."""
    return f"{statistics.mean(values):.1f} ± {(max(values) - min(values)) / 2:.1f}"


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """A Markdown table; times are medians, relative to training at 64 px alone with the same seed."""
    lines = [
        "| trained | 20 px | 32 px | 64 px | time, training only | time, with evaluation |",
        "|---|---|---|---|---|---|",
    ]
    for case, runs in results.items():
        cells = [spread([scores[str(size)] for scores in runs.values()]) for size in SCALES]
        for clock in ("train_seconds", "wall_seconds"):
            ratios = [scores[clock] / results["single 64"][seed][clock] for seed, scores in runs.items()]
            seconds = statistics.median(scores[clock] for scores in runs.values())
            cells.append(f"{statistics.median(ratios):.2f}x ({seconds:.0f} s)")
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "scales.json")
    options = parser.parse_args()
    results = json.loads(options.out.read_text()) if options.out.exists() else {case: {} for case in CASES}
    for seed in range(options.seeds):
        for case in CASES:
            if str(seed) not in results[case]:
                results[case][str(seed)] = run(case, seed, options.epochs)
                print(f"seed {seed}  {case}: {results[case][str(seed)]}", flush=True)
                options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
