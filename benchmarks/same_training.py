"""Check that two checkouts train bit-identically: train each case with both, on this machine, and compare.

python benchmarks/same_training.py OLD_CHECKOUT NEW_CHECKOUT [--cases NAME ...]   about 6 minutes on two cores

Compared are all tensors of the newest checkpoint and of the best model, the progress that the checkpoint holds, every
line of samples.jsonl (images, their checksums, learning rates), the columns of metrics.csv, the metrics of summary.json
and every prediction. What clocks and memory measure is left out. RENAMED maps names of the old checkout to those of the
new one. With --speed N instead: both train the demo's model N times in turn, and the ratios of their times are printed.
Exit code: 0 nothing differs; 1 something does, or a control (another learning rate) does not.
"""

import argparse
import contextlib
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from safetensors.torch import load_file

# Parts of column and key names, old to new; a name is split at slashes, e.g. `64px/said` into `64px` and `said`.
RENAMED = {"strength": "regularization", "borrowed": "norm_from", "said": "predicted", "truth": "p_label"}
MOVED = {"trainer.json:progress/best_top1": "trainer.json:progress/best_score"}
MOVED |= {"trainer.json:progress/reference_top1": "trainer.json:progress/reference_score"}
# Values that only the new checkout records.
ADDED = re.compile(r".*(balanced_accuracy|macro_f1|select_by)$")
CLOCKS = re.compile(
    r".*(seconds|_per_s|per_device|_ms|memory_gb|tflops|share_of_peak|data_wait_share|cost|latency).*|versions|cloud"
)
TINY = ("--synthetic-count", "144", "--synthetic-size", "32", "--batch-size", "24", "--epochs", "2")
TINY += ("--log-with", "none", "--record-samples", "--seed", "3")
SCALES = ("--scales", "16,24,32", "--eval-scales", "16,20,32")
SCALES_BF16 = ("--scales", "24,28,32", "--eval-scales", "24,28,32")  # at 16 px torch leaves a gradient undefined
CONSISTENT = ("--consistency-weight", "0.5")
MIXED = ("--mixup", "0.4", "--cutmix", "1", "--random-erasing", "0.5", "--label-smoothing", "0.1")
PATIENCE_S = 600


class Case(NamedTuple):
    """A training: recipe, flags, number of processes, whether it is killed and restarted, the launcher's precision.

    The launcher sets the precision, not `--amp`, which would select float32 on CPUs without bfloat16.
    """

    recipe: str
    flags: tuple[str, ...]
    processes: int = 1
    killed: bool = False
    precision: str = "no"


CASES = {
    "single": Case("single_scale", ("--img-size", "24", "--eval-scales", "16,24")),
    "single, bfloat16, killed": Case("single_scale", ("--img-size", "24", "--dropout-rate", "0.2"), 1, True, "bf16"),
    "progressive": Case("multiscale", (*SCALES[:1], "16,24", "--progressive", "--hflip", *MIXED)),
    "progressive ramp, RandAugment": Case(
        "multiscale", ("--scales", "16,32", "--progressive", "--ramp", "--rand-augment", "5", "--num-workers", "1")
    ),
    "simultaneous, moving average, killed": Case(
        "multiscale", (*SCALES, *CONSISTENT, "--ema-decay", "0.9", "--gradient-clip", "1"), 1, True
    ),
    "simultaneous, bfloat16, MixUp": Case(
        "multiscale", (*SCALES_BF16, *CONSISTENT, "--consistency", "js", *MIXED), precision="bf16"
    ),
    "simultaneous, accumulation, statistics": Case(
        "multiscale",
        (*SCALES, *CONSISTENT, "--consistency", "mse", "--device-batch-size", "6", "--norm-per-scale", "statistics"),
    ),
    "two processes, accumulation, moving average, killed": Case(
        "multiscale", (*SCALES, *CONSISTENT, "--device-batch-size", "6", "--ema-decay", "0.9"), 2, True
    ),
    "two processes, progressive, bfloat16, RandAugment": Case(
        "multiscale",
        ("--scales", "24,32", "--progressive", "--rand-augment", "5", "--num-workers", "1"),
        2,
        False,
        "bf16",
    ),
    "two processes, single, SGD, plateau, MixUp": Case(
        "single_scale",
        ("--img-size", "16", "--optimizer", "sgd", "--learning-rate", "0.05", "--scheduler", "plateau", *MIXED),
        2,
    ),
}


def command(checkout: Path, case: Case, folder: Path, *more: str) -> list[str]:
    words = [str(checkout / "recipes" / f"{case.recipe}.py"), *TINY, *case.flags, "--output-dir", str(folder), *more]
    if case.processes == 1:
        return [sys.executable, *words]
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    return [torchrun, "--standalone", "--nproc-per-node", str(case.processes), *words]


def train(checkout: Path, case: Case, folder: Path, *more: str) -> None:
    """Train to the end; a `killed` case has all its processes killed once a checkpoint exists, and is restarted."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    environment["ACCELERATE_MIXED_PRECISION"] = case.precision
    words = command(checkout, case, folder, *more, *(("--save-every-steps", "2") if case.killed else ()))
    if case.killed:
        first = subprocess.Popen(
            words, cwd=folder.parent, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PATIENCE_S
        while not any((folder / "checkpoints").glob("step-*/COMMITTED")):
            if first.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{checkout}: no checkpoint came: {' '.join(words)}")
            time.sleep(0.01)
        everyone = [*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)]  # ranks first
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        first.wait()
        psutil.wait_procs(everyone)
    done = subprocess.run(
        words, cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: exit code {done.returncode}: {' '.join(words)}\n{done.stdout}{done.stderr}")


def name_now(name: str) -> str:
    """The new checkout's name for a name of the old one."""
    return "/".join(RENAMED.get(part, part) for part in name.split("/"))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of every leaf of nested mappings; lists are leaves."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, below in value.items():
        yield from leaves(below, f"{path}/{key}" if path else str(key))


def cells(path: Path) -> dict[str, Any]:
    """Columns of a CSV file, each as a list of cells."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))


def contents(run: Path) -> dict[str, Any]:
    """Everything of a run that must be equal in both checkouts, by name."""
    checkpoint = max((run / "checkpoints").glob("step-*"))
    found: dict[str, Any] = {}
    for path in [*checkpoint.rglob("*.safetensors"), run / "best" / "model.safetensors"]:
        place = path.relative_to(checkpoint if checkpoint in path.parents else run)
        found |= {f"{place}:{name}": tensor for name, tensor in load_file(path).items()}
    for name in ("trainer", "optimizer"):
        for key, value in leaves(json.loads((checkpoint / f"{name}.json").read_text())):
            found[f"{name}.json:{key}"] = value
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    lines.sort(key=lambda line: (line["step"], line["rank"]))  # lines of one rank are already in order
    found |= {f"samples.jsonl:{i}": line for i, line in enumerate(lines)}
    for path in [run / "metrics.csv", *(run / "predictions").glob("*.csv")]:
        found |= {f"{path.name}:{name}": column for name, column in cells(path).items()}
    summary = json.loads((run / "summary.json").read_text())
    found |= {f"summary.json:{key}": value for key, value in leaves(summary)}
    return found


def measured(name: str) -> bool:
    """Whether a value measures time or memory."""
    return any(CLOCKS.fullmatch(part) for part in name.partition(":")[2].split("/"))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and bits(one).equal(bits(other))
        )
    return bool(one == other)


def differences(old: Path, new: Path) -> tuple[int, list[str]]:
    """The number of compared values, and a line for each difference."""
    before = {}
    for name, value in contents(old).items():
        if not measured(name):
            place, _, key = name.partition(":")
            now = f"{place}:{name_now(key)}"
            before[MOVED.get(now, now)] = value
    after = {name: value for name, value in contents(new).items() if not measured(name)}
    after = {name: value for name, value in after.items() if name in before or not ADDED.fullmatch(name)}
    strange = [f"{name} is in the {'new' if name in after else 'old'} one only" for name in before.keys() ^ after]
    strange += [f"{name} differs" for name in before.keys() & after if not equal(before[name], after[name])]
    return len(before), sorted(strange)


def speed(old: Path, new: Path, pairs: int) -> None:
    """Ratios new over old, pair by pair: of training alone, of the whole process, and of `--help`."""
    demo = Case("multiscale", ("--synthetic-count", "1500", "--epochs", "1", "--consistency-weight", "0"))
    ratios: dict[str, list[float]] = {"training": [], "process": [], "--help": []}
    with tempfile.TemporaryDirectory() as place:
        for pair in range(pairs + 1):  # the first one draws the images and warms up
            seconds: dict[str, list[float]] = {name: [] for name in ratios}
            for checkout in (old, new) if pair % 2 else (new, old):
                folder = Path(place, f"{pair}-{'new' if checkout is new else 'old'}")
                started = time.perf_counter()
                train(
                    checkout, demo._replace(flags=(*demo.flags, "--batch-size", "64", "--synthetic-size", "64")), folder
                )
                seconds["process"].append(time.perf_counter() - started)
                seconds["training"].append(json.loads((folder / "summary.json").read_text())["train_seconds"])
                started = time.perf_counter()
                words = [sys.executable, str(checkout / "recipes" / "multiscale.py"), "--help"]
                environment = {**os.environ, "PYTHONPATH": str(checkout)}
                subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=True)
                seconds["--help"].append(time.perf_counter() - started)
            if pair:
                first_is_old = bool(pair % 2)
                for name, (one, other) in seconds.items():
                    ratios[name].append(other / one if first_is_old else one / other)
                print(
                    f"pair {pair}: " + ", ".join(f"{name} {found[-1]:.3f}" for name, found in ratios.items()),
                    flush=True,
                )
    for name, found in ratios.items():
        spread = f"{min(found):.3f} - {max(found):.3f}"
        print(f"{name:9} {statistics.median(found):.3f} ({spread}), new over old, median of {pairs}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("new", type=Path, metavar="NEW_CHECKOUT")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--speed", type=int, metavar="N", help="compare times instead, in N pairs")
    options = parser.parse_args()
    if options.speed:
        speed(options.old.resolve(), options.new.resolve(), options.speed)
        return 0
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        for number, name in enumerate(options.cases):
            old, new = Path(place, f"{number}-old"), Path(place, f"{number}-new")
            train(options.old.resolve(), CASES[name], old)
            train(options.new.resolve(), CASES[name], new)
            count, strange = differences(old, new)
            print(f"{'differs' if strange else 'equal':8} {name}: {count} values compared", flush=True)
            for line in strange[:10]:
                print(f"         {line}", flush=True)
            failed += bool(strange)
        control = Path(place, "control")
        train(options.new.resolve(), CASES[options.cases[0]], control, "--learning-rate", "0.0041")
        _, strange = differences(Path(place, "0-new"), control)
        print(f"control  another learning rate: {len(strange)} differences", flush=True)
    return int(failed > 0 or not strange)


if __name__ == "__main__":
    sys.exit(main())
