"""Trainings on 1, 2 and 4 processes of two cores, beside what scaling_model.py says: a table of docs/scaling.md.

python benchmarks/scaling_check.py                                                     about 5 minutes of two cores

The same formulas are given what one process takes for its images, and what an all-reduce of the gradients alone takes.
"""

import csv
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from scaling_model import Inputs, slowest, table

ROOT = Path(__file__).parent.parent
WORKER = """
import json, os, sys, time
import torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.set_num_threads(1)
gradients, times = torch.zeros(int(sys.argv[1])), []
for _ in range(40):
    dist.barrier()
    begun = time.perf_counter()
    dist.all_reduce(gradients)
    times.append(time.perf_counter() - begun)
if dist.get_rank() == 0:
    print(sorted(times)[len(times) // 2])
dist.destroy_process_group()
"""
BATCH, ARCH, IMAGES = 64, "test_resnet", 3840


def launched(words: Sequence[str], processes: int, cores: int) -> str:
    """Run on so many processes of one thread each; returns what was printed."""
    own = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    pinned = ["taskset", "-c", ",".join(map(str, range(cores)))]
    done = subprocess.run([*pinned, *torchrun, *words], env={**os.environ, **own}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stdout


def measured(processes: int, local: int, cores: int) -> float:
    """Seconds of a training step on so many processes, each with `local` images a step; the median of three epochs."""
    with tempfile.TemporaryDirectory() as home:
        flags = ["--data-root", "synthetic", "--synthetic-size", "64", "--synthetic-count", str(IMAGES)]
        flags += ["--img-size", "64", "--arch", ARCH, "--batch-size", str(local * processes), "--epochs", "4"]
        flags += ["--no-amp", "--cache", "ram", "--log-with", "none", "--output-dir", f"{home}/run", "--seed", "0"]
        launched([str(ROOT / "recipes/single_scale.py"), *flags], processes, cores)
        with Path(home, "run", "metrics.csv").open() as stream:
            ends = [float(row["train_seconds"]) for row in csv.DictReader(stream)]
    return statistics.median(end - begin for begin, end in itertools.pairwise(ends)) / (IMAGES // local // processes)


def check(given: Inputs) -> Iterator[str]:
    """Times per step on 1, 2 and 4 processes of two cores, beside those of the model."""
    cores = 2
    alone = {local: measured(1, local, 1) for local in (BATCH, BATCH // 2, BATCH // 4)}
    parameters = int(0.37e6)
    rows = [("1", f"{BATCH}", f"{1000 * alone[BATCH]:.0f}", f"{1000 * alone[BATCH]:.0f}", "the input")]
    for processes in (2, 4):
        local = BATCH // processes
        with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
            file.write(WORKER)
            file.flush()
            communication = float(launched([file.name, str(parameters)], processes, cores).split()[-1])
        shared = max(1.0, processes / cores)  # processes on a core
        compute = alone[local] * shared
        # One bucket holds all gradients: nothing of it is hidden.
        model = compute + communication + compute * given.jitter * slowest(processes)
        found = measured(processes, local, cores)
        rows.append((f"{processes}", f"{local}", f"{1000 * found:.0f}", f"{1000 * model:.0f}", f"{model / found:.2f}x"))
    yield from table(("processes", "images each", "a step, ms", "by the model, ms", "model / measured"), rows)


if __name__ == "__main__":
    print("\n".join(check(Inputs())))
