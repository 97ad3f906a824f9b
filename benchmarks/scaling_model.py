"""What a training costs on 8 to 4,096 GPUs, from numbers that anyone can change: the tables of docs/scaling.md.

python benchmarks/scaling_model.py                                                     prints Markdown
python benchmarks/scaling_model.py --set gpu_flops=312e12 inter_bytes_s=12.5e9         another machine
python benchmarks/scaling_model.py --check                                             about 5 minutes of two cores

A model, not a measurement: compute from multiply-adds, communication from bytes and latencies, failures from a mean
time between them. `--check` trains on 1, 2 and 4 processes of this machine, and compares their times per step with the
same formulas, given what one process takes for its images and what an all-reduce of the gradients alone takes.
"""

import argparse
import csv
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
GPUS = (8, 64, 1024, 4096)
SIZES = (64, 112, 224)


@dataclass(frozen=True)
class Model:
    """`gmacs`: 10^9 multiply-adds of a forward pass at 224 px; they grow with the area. `batch`: images per GPU."""

    name: str
    parameters: float
    gmacs: float
    batch: int
    efficiency: float  # of the GPU's peak, in training
    launch_s: float  # the least that a step takes: its kernels are started one by one


MODELS = (Model("ResNet-50", 25.6e6, 4.1, 256, 0.12, 0.020), Model("ViT-L/16", 304e6, 61.6, 64, 0.40, 0.025))
SAME_BATCH = 32_768  # about the largest that ResNet-50 is known to learn well with


@dataclass(frozen=True)
class Inputs:
    """A cluster, a data set and a schedule; units by name: s, bytes, images. Values are round, and of 2026."""

    gpus_per_node: int = 8
    gpu_flops: float = 989e12  # peak of an H100 in bf16, two for a multiply-add
    intra_bytes_s: float = 300e9  # between GPUs of a node, per GPU and direction, in use
    inter_bytes_s: float = 40e9  # between nodes, per GPU: 400 Gbit/s, in use
    latency_s: float = 15e-6  # of a message between nodes
    bucket_bytes: float = 25e6  # of DDP
    overlap: float = 0.9  # share of the backward pass that communication hides behind
    jitter: float = 0.02  # standard deviation of a process's step time; all wait for the slowest
    image_bytes: float = 110e3  # a JPEG of ImageNet
    copy_bytes: float = 12e3  # its copy at 128 px, for sizes up to 128
    images: float = 1.281e6
    val_images: float = 50e3
    core_images_s: float = 500.0  # decoded and augmented at 224 px by a core
    core_copies_s: float = 2400.0  # from copies
    cores_per_gpu: float = 16.0
    epochs: int = 90
    storage_bytes_s: float = 2e9  # of the file system, for one writer
    node_storage_bytes_s: float = 2e9  # for the reading of one node
    store_bytes_s: float = 200e9  # of the storage as a whole
    host_copy_bytes_s: float = 20e9  # from a GPU to memory: what a checkpoint keeps training waiting for
    imports_s: float = 20.0
    rendezvous_s: float = 5.0  # and 10 ms for each node
    index_s: float = 2.0
    restart_s: float = 120.0  # a machine in place of the lost one, until the program starts
    mtbf_hours: float = 50e3  # of a GPU and what belongs to it; Llama 3 405B: 419 interruptions in 54 days of 16,384
    detection_s: float = 120.0  # --peer-timeout-s; a process that died is noticed in 6 s
    checkpoint_every_s: float = 600.0  # --save-every-steps


@dataclass(frozen=True)
class Step:
    """Seconds of a step: computing, communication not hidden, waiting for the slowest process, and for images."""

    compute: float
    exposed: float
    waiting: float
    loader: float

    @property
    def seconds(self) -> float:
        return max(self.compute + self.exposed + self.waiting, self.loader)


def all_reduce_s(size: float, gpus: int, given: Inputs) -> float:
    """Seconds in which NCCL adds gradients up: within a node, then each GPU its share between nodes, and back."""
    local = min(gpus, given.gpus_per_node)
    nodes = math.ceil(gpus / given.gpus_per_node)
    within = 2 * size * (local - 1) / local / given.intra_bytes_s
    between = 2 * (size / local) * (nodes - 1) / nodes / given.inter_bytes_s
    rounds = 2 * math.ceil(math.log2(nodes)) if nodes > 1 else 0
    return within + between + rounds * given.latency_s * math.ceil(size / given.bucket_bytes)


def slowest(processes: int) -> float:
    """How many standard deviations the slowest of so many processes is behind, on average, about."""
    return math.sqrt(2 * math.log(processes)) if processes > 1 else 0.0


def exposed_s(communication: float, last_bucket: float, backward: float, overlap: float) -> float:
    """What communication adds to a step: all that does not fit beside the backward pass, at least the last bucket."""
    return max(communication - overlap * backward, last_bucket)


def step_of(model: Model, size: int, gpus: int, given: Inputs) -> Step:
    """A step of a single size. A multiply-add is two operations, and the backward pass costs two forward passes."""
    flops = 3 * 2 * 1e9 * model.gmacs * (size / 224) ** 2
    compute = max(model.batch * flops / (given.gpu_flops * model.efficiency), model.launch_s)
    gradients = 4 * model.parameters
    communication = all_reduce_s(gradients, gpus, given)
    last = all_reduce_s(min(gradients, given.bucket_bytes), gpus, given)
    exposed = exposed_s(communication, last, 2 / 3 * compute, given.overlap) if gpus > 1 else 0.0
    copies = size <= 128
    rate = given.cores_per_gpu * (given.core_copies_s if copies else given.core_images_s)
    read = given.copy_bytes if copies else given.image_bytes
    local = min(gpus, given.gpus_per_node)
    bandwidth = min(given.node_storage_bytes_s / local, given.store_bytes_s / gpus)
    loader = model.batch * max(1 / rate, read / bandwidth)
    return Step(compute, exposed, compute * given.jitter * slowest(gpus), loader)


def checkpoint_bytes(model: Model) -> float:
    """Weights, two moments of Adam, and an average, in float32."""
    return 4 * 4 * model.parameters


def start_s(model: Model, gpus: int, given: Inputs) -> float:
    """From the start of the program to its first step, with a checkpoint to read: once a node, then broadcast."""
    nodes = math.ceil(gpus / given.gpus_per_node)
    state = checkpoint_bytes(model)
    reading = state / min(given.node_storage_bytes_s, given.store_bytes_s / nodes) + state / given.intra_bytes_s
    return given.imports_s + given.rendezvous_s + 0.01 * nodes + given.index_s + reading


def goodput(model: Model, gpus: int, given: Inputs) -> float:
    """Share of the time in which steps are done that are kept: without saving, failing, noticing and starting again."""
    saving = checkpoint_bytes(model) / given.host_copy_bytes_s / given.checkpoint_every_s
    lost = given.checkpoint_every_s / 2 + given.detection_s + given.restart_s + start_s(model, gpus, given)
    failures = gpus / (3600 * given.mtbf_hours)  # a second
    return 1 / (1 + saving + failures * lost)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def steps(given: Inputs) -> Iterator[str]:
    """Steps of as many images per GPU, and then of as many images in all."""
    times = ("step, ms", "computing", "not hidden", "slowest", "loader")
    head = ("model, size, GPUs", "batch in all", *times, "images/s a GPU")
    cases = [(model, size, gpus) for model in MODELS for size in SIZES for gpus in GPUS]
    yield from table(head, [row_of(*case, given) for case in cases])
    alike = [(model, gpus) for model in MODELS for gpus in GPUS if model.batch * gpus >= SAME_BATCH]
    rows = [row_of(replace(model, batch=SAME_BATCH // gpus), 224, gpus, given) for model, gpus in alike]
    yield from table(head, rows)


def row_of(model: Model, size: int, gpus: int, given: Inputs) -> Sequence[str]:
    step = step_of(model, size, gpus, given)
    parts = (step.seconds, step.compute, step.exposed, step.waiting, step.loader)
    shown = [f"{1000 * part:.1f}" for part in parts]
    rate = f"{model.batch / step.seconds:,.0f}"
    return (f"{model.name}, {size} px, {gpus:,}", f"{model.batch * gpus:,}", *shown, rate)


def runs(given: Inputs) -> Iterator[str]:
    head = (
        *("model, GPUs", "steps an epoch", "epochs an hour, 224 px", "read a node, GB/s", "start, s", "evaluation, s"),
        *("checkpoint, GB", "written in, s", "training waits, s", "hours between failures", "kept"),
    )
    rows = []
    for model in MODELS:
        for gpus in GPUS:
            step = step_of(model, 224, gpus, given)
            rate = model.batch * gpus / step.seconds
            state = checkpoint_bytes(model)
            local = min(gpus, given.gpus_per_node)
            rows.append(
                (
                    f"{model.name}, {gpus:,}",
                    f"{given.images / model.batch / gpus:,.0f}",
                    f"{3600 * rate / given.images:,.1f}",
                    f"{model.batch / step.seconds * local * given.image_bytes / 1e9:.2f}",
                    f"{start_s(model, gpus, given):.0f}",
                    f"{given.val_images / (3 * rate):.1f}",
                    f"{state / 1e9:.1f}",
                    f"{state / given.storage_bytes_s:.1f}",
                    f"{state / given.host_copy_bytes_s:.2f}",
                    f"{given.mtbf_hours / gpus:,.0f}",
                    f"{100 * goodput(model, gpus, given):.1f}%",
                )
            )
    yield from table(head, rows)


# The check

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


def changed(given: Inputs, words: Sequence[str]) -> Inputs:
    """The inputs with other values, NAME=VALUE."""
    known = {field.name: field.type for field in fields(Inputs)}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise SystemExit(f"--set {word}: must be one of {', '.join(known)}")
        given = replace(given, **{name: type(getattr(given, name))(float(value))})
    return given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other inputs")
    parser.add_argument("--check", action="store_true", help="train on 1, 2 and 4 processes, and compare")
    parser.add_argument("--inputs", action="store_true", help="print the inputs as JSON")
    options = parser.parse_args()
    given = changed(Inputs(), options.set)
    if options.inputs:
        print(json.dumps({field.name: getattr(given, field.name) for field in fields(Inputs)}, indent=1))
    elif options.check:
        print("\n".join(check(given)))
    else:
        print("\n".join([*steps(given), *runs(given)]))


if __name__ == "__main__":
    main()
