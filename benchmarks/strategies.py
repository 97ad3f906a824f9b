"""Accuracy, compute and time of every strategy on several tasks: docs/strategies.md and the tables of docs/results.md.

python benchmarks/strategies.py [--parts main options ...] [--hours 3]          about 10 hours of two cores in all
python benchmarks/strategies_report.py                                          tables and plots of what is there

Each case runs a recipe as a user would, in its own process, and becomes a row of benchmarks/strategies.csv; a case that
has its row is not run again, so that the study may be stopped at any time. Seeds are the outer loop: cases that are
compared run next to each other, on the same machine. Choices (the best epoch of a run, defaults) are made on
validation images, 1,280 of the characters; the tables show test images, 10,000 of the characters.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import torch
from decode_accuracy import write_photographs
from strategies_cases import ARMS, NEAREST, PARTS, Arm, Case, Task, tasks

from toolkit.config.yaml_values import read_yaml
from toolkit.data.sources import synthetic
from toolkit.models.inspection import plan_model
from toolkit.strategies.base import Budget
from toolkit.system import places
from toolkit.tools.loaded_run import read_config

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "strategies.csv"
COLUMNS = (
    *("part", "task", "arm", "seed", "epochs", "images", "tmacs", "train_seconds", "wall_seconds", "best_epoch"),
    *("test", "val", "curve", "machine", "torch"),
)
# Data and weights, which are trained on data; rows: each by one thread at a time.
MAKING, WRITING = threading.RLock(), threading.Lock()


def folder(name: str) -> Path:
    """A folder of drawn images, drawn if it is not there yet."""
    place = places.cache_dir() / "strategies" / name
    if not place.exists():
        staging = place.with_name(f".tmp-{name}-{os.getpid()}")
        if name == "photographs":
            write_photographs(staging, 400, 250)
        else:
            train = {"characters": 9600, "few-characters": 2400}[name]
            synthetic.write(staging, 64, {"train": train, "val": 1280, "test": 10000}, name="characters")
        os.replace(staging, place)
    return place


def weights() -> Path:
    """Weights of test_resnet trained on the characters, as the export recipe writes them for timm."""
    place = places.cache_dir() / "strategies" / "pretrained"
    if not place.exists():
        with tempfile.TemporaryDirectory() as home:
            train(flags_of(tasks()["characters"], ARMS["simultaneous"], 1000, Path(home, "run")), Path(home))
            export = [sys.executable, str(ROOT / "recipes/export.py"), f"{home}/run", "--formats", "safetensors"]
            subprocess.run([*export, "--output-dir", str(place)], check=True, stdout=subprocess.DEVNULL)
    return next(place.glob("*.safetensors"))


def flags_of(task: Task, arm: Arm, seed: int, run: Path) -> list[str]:
    """The command of a case, after the interpreter."""
    five = sorted({*task.sizes, 28, 48})
    sizes = [*map(str, task.sizes), str(task.sizes[-1] * 3 // 4), ",".join(map(str, five))]
    flags = [flag.format(*sizes) for flag in arm.flags]
    with MAKING:
        data = [
            flag.format(weights=weights()) if "weights" in flag else str(folder(flag[1:-1])) if flag[0] == "{" else flag
            for flag in task.flags
        ]
    shown = {*(five if "{4}" in arm.flags else task.sizes)}
    if arm.recipe == "multiscale" and "--scales" not in flags:
        flags += ["--scales", ",".join(map(str, task.sizes))]
    return [
        *("-c", NEAREST) * arm.nearest,
        *(str(ROOT / f"recipes/{arm.recipe}.py"), *data, *flags),
        *("--eval-scales", ",".join(map(str, sorted(shown)))),
        *("--epochs", str(round(task.epochs * arm.epochs)), "--seed", str(seed), "--log-with", "none"),
        *("--output-dir", str(run), "--keep", "2"),
    ]


def train(command: list[str], home: Path, cores: set[int] | None = None) -> None:
    """Run a recipe, on some of the processor's cores only; the number of its threads follows from theirs."""

    def pin() -> None:
        os.sched_setaffinity(0, cores or os.sched_getaffinity(0))

    command = [sys.executable, *command, "--num-workers", "1"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, preexec_fn=pin)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")


def row_of(case: Case, run: Path) -> dict[str, object]:
    """The row of a finished run."""
    summary = json.loads((run / "summary.json").read_text())
    settings, strategy = read_config(read_yaml(run / "config.yaml"))
    images = summary["final"]["images_seen"]
    with (run / "metrics.csv").open() as stream:
        epochs = [*csv.DictReader(stream)]
    budget = Budget(settings.epochs, images // settings.epochs, settings.batch_size)
    phases = strategy.phases(budget)
    trained = sorted({size for phase in phases for size in phase.sizes})
    gmacs = plan_model(settings, 64, trained).gmacs
    steps = [strategy.step(phase, i) for phase in phases for i in range(phase.steps)]
    whole = sum(step.batch_size * gmacs[size] for step in steps for size in step.sizes) / 1000

    def scores(split: str) -> str:
        return " ".join(f"{name.removesuffix('px')}:{score['top1']:.3f}" for name, score in summary[split].items())

    selected = f"{summary['selection']}/top1"
    curve = [f"{float(line['train_seconds']):.1f}:{float(line[selected]):.2f}" for line in epochs if line[selected]]
    return {
        **case._asdict(),
        "epochs": settings.epochs,
        "images": images,
        "tmacs": f"{whole:.4f}",
        "train_seconds": f"{summary['train_seconds']:.1f}",
        "wall_seconds": f"{summary['wall_seconds']:.1f}",
        "best_epoch": summary["best_epoch"],
        "test": scores("test"),
        "val": scores("val"),
        "curve": " ".join(curve),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} CPUs",
        "torch": torch.__version__,
    }


def rows() -> list[dict[str, str]]:
    if not ROWS.exists():
        return []
    with ROWS.open() as stream:
        return [*csv.DictReader(stream)]


def cases(parts: list[str]) -> Iterator[Case]:
    """All cases of some parts, seed by seed."""
    for seed in sorted({seed for part in parts for seed in PARTS[part].seeds}):
        for part in parts:
            names, arms, seeds = PARTS[part]
            if seed in seeds:
                yield from (Case(part, task, arm, seed) for task in names for arm in arms)


def append_row(path: Path, columns: Sequence[str], row: Mapping[str, object]) -> None:
    """Add a row to a CSV file, which gets its header with the first."""
    fresh = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def write_row(row: dict[str, object]) -> None:
    with WRITING:
        append_row(ROWS, COLUMNS, row)
        print(", ".join(str(row[name]) for name in ("task", "arm", "seed", "test", "train_seconds")), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--hours", type=float, default=12.0, help="start no further case after this time")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time, each on one core")
    options = parser.parse_args()
    ends, known, begun = time.monotonic() + 3600 * options.hours, tasks(), set()
    done = {(row["task"], row["arm"], row["seed"]) for row in rows()}

    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0))[: options.jobs]:
        cores.put(core)

    def carry_out(case: Case) -> None:
        if time.monotonic() > ends:
            return
        core = cores.get()
        try:
            with tempfile.TemporaryDirectory() as home:
                run = Path(home) / "run"
                train(flags_of(known[case.task], ARMS[case.arm], case.seed, run), Path(home), {core})
                write_row(row_of(case, run))
        finally:
            cores.put(core)

    waiting = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for case in cases(options.parts):
            if case.key not in done | begun:
                begun.add(case.key)
                waiting.append(pool.submit(carry_out, case))
    failed = [str(error) for error in (future.exception() for future in waiting) if error]
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
