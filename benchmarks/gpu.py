"""Training on this machine's GPU: throughput and memory by scale and precision, then every strategy on the characters.

python benchmarks/gpu.py [--arch resnet50 vit_small_patch16_224] [--batch-size 256] [--epochs 12]      prints Markdown

The first table times steps. The second trains each strategy at 64, 112 and 224 px in bfloat16 on characters drawn at
256 px, as a user would: test top-1 by size, time of training, images per second, peak memory. --epochs 0 leaves it out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from toolkit.config.settings import Settings
from toolkit.strategies import Simultaneous
from toolkit.tools.benchmark import benchmark

ROOT = Path(__file__).parent.parent
SCALES = (64, 112, 224)
STRATEGIES = {
    "single": ("single_scale", "--img-size", "224"),
    "simultaneous": ("multiscale",),
    "progressive, ramp": ("multiscale", "--progressive", "--ramp"),
    "progressive-compute": ("multiscale", "--strategy", "progressive-compute"),
    "progressive-simultaneous": ("multiscale", "--strategy", "progressive-simultaneous"),
    "sampled": ("multiscale", "--strategy", "sampled"),
    "sandwich": ("multiscale", "--strategy", "sandwich"),
    "finish": ("single_scale", "--img-size", "224", "--finish-size", "288"),
}


def time_steps(archs: list[str], batch_size: int) -> None:
    """Print a table of step times."""
    print("| architecture | precision | px | images/s | ms/step | peak memory GB |\n|---|---|---|---|---|---|")
    for arch in archs:
        settings = Settings(arch=arch, batch_size=batch_size, synthetic_count=512, log_with="none")
        for case in benchmark(settings, Simultaneous(SCALES)).cases:
            print(
                f"| {arch} | {case.precision} | {'+'.join(map(str, case.sizes))} | {case.images_per_s:.0f} | "
                f"{case.step_p50_ms:.1f} | {case.peak_memory_gb:.2f} |"
            )


def train(arch: str, name: str, batch_size: int, epochs: int) -> str:
    """Train one strategy; returns its row."""
    recipe, *flags = STRATEGIES[name]
    multi = [] if recipe == "single_scale" else ["--scales", ",".join(map(str, SCALES))]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / f"recipes/{recipe}.py"), *flags, *multi, "--arch", arch, "--amp"]
        command += ["--data-root", "characters", "--synthetic-size", "256", "--batch-size", str(batch_size)]
        command += ["--learning-rate", "1e-3", "--epochs", str(epochs), "--log-with", "none"]
        command += ["--eval-scales", ",".join(map(str, SCALES)), "--output-dir", f"{folder}/run"]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    scores = " / ".join(f"{summary['test'][f'{size}px']['top1']:.1f}" for size in SCALES)
    return (
        f"| {arch} | {name} | {scores} | {summary['train_seconds']:.0f} | {summary['images_per_s']:.0f} | "
        f"{summary['peak_memory_gb']:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet50", "vit_small_patch16_224"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.batch_size} images per step\n")
    time_steps(options.arch, options.batch_size)
    if options.epochs:
        print("\n| architecture | strategy | 64 / 112 / 224 px | s | images/s | peak memory GB |\n" + "|---" * 6 + "|")
        for arch in options.arch:
            for name in STRATEGIES:
                print(train(arch, name, options.batch_size, options.epochs), flush=True)


if __name__ == "__main__":
    main()
