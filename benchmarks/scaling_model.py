"""What a training costs on 8 to 4,096 GPUs, from numbers that anyone can change: the tables of docs/scaling.md.

python benchmarks/scaling_model.py                                                     prints Markdown
python benchmarks/scaling_model.py --set gpu_flops=312e12 ViT-L/16.batch=128           another machine, another batch
python benchmarks/scaling_check.py                                                     compares it with runs

A model, not a measurement: compute from multiply-adds, communication from bytes and latencies, failures from a mean
time between them.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GPUS = (8, 64, 1024, 4096)
SIZES = (64, 112, 224)
ON_GPUS = [f"{gpus:,} GPUs" for gpus in GPUS]


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
SAME_BATCH = 32_768  # in all; about the largest that ResNet-50 is known to learn well with


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
    image_px: float = 375.0  # its shorter side
    copy_bytes: float = 12e3  # its copy at 128 px, see `image_of`
    images: float = 1.281e6
    val_images: float = 50e3
    core_images_s: float = 500.0  # decoded and augmented at 224 px by a core
    core_copies_s: float = 2400.0  # from copies
    cores_per_gpu: float = 16.0
    epochs: int = 90
    storage_bytes_s: float = 2e9  # of the file system, for one writer
    node_storage_bytes_s: float = 2e9  # for one node that reads
    store_bytes_s: float = 200e9  # of the storage as a whole
    disk_bytes_s: float = 5e9  # of a node's own disks, where copies are
    host_copy_bytes_s: float = 20e9  # from a GPU to memory: what a checkpoint keeps training waiting for
    imports_s: float = 20.0
    rendezvous_s: float = 5.0
    node_s: float = 0.01  # of the rendezvous, for each node
    index_s: float = 2.0
    notice_share: float = 0.0  # of the stops, announced early enough to save; of preempted machines, near 1
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
    def without_loader(self) -> float:
        return self.compute + self.exposed + self.waiting

    @property
    def seconds(self) -> float:
        return max(self.without_loader, self.loader)


def nodes_of(gpus: int, given: Inputs) -> int:
    return math.ceil(gpus / given.gpus_per_node)


def sent_bytes(size: float, gpus: int, given: Inputs) -> tuple[float, float]:
    """What a GPU sends to add up `size` bytes of gradients: within its node, and to other nodes.

    As NCCL does it: within a node, then each GPU its share between nodes, and back.
    """
    local, nodes = min(gpus, given.gpus_per_node), nodes_of(gpus, given)
    return 2 * size * (local - 1) / local, 2 * (size / local) * (nodes - 1) / nodes


def all_reduce_s(size: float, gpus: int, given: Inputs) -> float:
    within, between = sent_bytes(size, gpus, given)
    nodes = nodes_of(gpus, given)
    rounds = 2 * math.ceil(math.log2(nodes)) if nodes > 1 else 0
    messages = rounds * math.ceil(size / given.bucket_bytes)
    return within / given.intra_bytes_s + between / given.inter_bytes_s + messages * given.latency_s


def slowest(processes: int) -> float:
    """How many standard deviations the slowest of so many processes is behind, on average, about."""
    return math.sqrt(2 * math.log(processes)) if processes > 1 else 0.0


def exposed_s(communication: float, last_bucket: float, backward: float, overlap: float) -> float:
    """What communication adds to a step: all that does not fit beside the backward pass, at least the last bucket."""
    return max(communication - overlap * backward, last_bucket)


def storage_bytes_s(gpus: int, given: Inputs) -> float:
    """What storage gives each GPU."""
    return min(given.node_storage_bytes_s / min(gpus, given.gpus_per_node), given.store_bytes_s / gpus)


def image_of(size: int, gpus: int, given: Inputs) -> tuple[float, float]:
    """Bytes that training at `size` px reads for an image, and images that the loader of a GPU gives a second.

    A copy has twice the size, and is made where the image is at least twice as large as that.
    """
    if 4 * size <= given.image_px:
        disk = given.disk_bytes_s / min(gpus, given.gpus_per_node)
        return given.copy_bytes, min(given.cores_per_gpu * given.core_copies_s, disk / given.copy_bytes)
    return given.image_bytes, originals_s(gpus, given)


def originals_s(gpus: int, given: Inputs) -> float:
    """Original images that the loader of a GPU gives a second."""
    return min(given.cores_per_gpu * given.core_images_s, storage_bytes_s(gpus, given) / given.image_bytes)


def step_of(model: Model, size: int, gpus: int, given: Inputs) -> Step:
    """A step of a single size. A multiply-add is two operations, and the backward pass costs two forward passes."""
    flops = 3 * 2 * 1e9 * model.gmacs * (size / 224) ** 2
    compute = max(model.batch * flops / (given.gpu_flops * model.efficiency), model.launch_s)
    gradients = 4 * model.parameters
    communication = all_reduce_s(gradients, gpus, given)
    last = all_reduce_s(min(gradients, given.bucket_bytes), gpus, given)
    exposed = exposed_s(communication, last, 2 / 3 * compute, given.overlap) if gpus > 1 else 0.0
    loader = model.batch / image_of(size, gpus, given)[1]
    return Step(compute, exposed, compute * given.jitter * slowest(gpus), loader)


def evaluation_s(model: Model, size: int, gpus: int, given: Inputs) -> float:
    """All validation images forward, at a third of a step's computing, read and decoded as original files."""
    own = math.ceil(given.val_images / gpus)
    compute = math.ceil(own / model.batch) * step_of(model, size, gpus, given).compute / 3
    return max(compute, own / originals_s(gpus, given))


def checkpoint_bytes(model: Model) -> float:
    """Weights, two moments of Adam, and an average, in float32."""
    return 4 * 4 * model.parameters


def start_s(gpus: int, given: Inputs) -> float:
    """From the start of the program to its first step."""
    return given.imports_s + given.rendezvous_s + given.node_s * nodes_of(gpus, given) + given.index_s


def copies_s(gpus: int, given: Inputs) -> float:
    """Each node makes copies of all images, at most 64 at a time, before it trains at a small size the first time."""
    local = min(gpus, given.gpus_per_node)
    decode = 1 / (min(64, local * given.cores_per_gpu) * given.core_images_s)
    return given.images * max(decode, given.image_bytes / (local * storage_bytes_s(gpus, given)))


def restore_s(model: Model, gpus: int, given: Inputs) -> float:
    """Rank 0 reads the checkpoint, and sends it to all others."""
    link = given.inter_bytes_s if gpus > given.gpus_per_node else given.intra_bytes_s
    return checkpoint_bytes(model) * (1 / given.node_storage_bytes_s + (1 / link if gpus > 1 else 0.0))


def goodput(model: Model, gpus: int, given: Inputs) -> float:
    """Share of the time in which steps are done that are kept: without saving, stopping, noticing and starting again.

    A stop that was announced costs a checkpoint and the start; any other also the time until it is noticed, and half
    of the work between two checkpoints.
    """
    state = checkpoint_bytes(model)
    saving = state / given.host_copy_bytes_s / given.checkpoint_every_s
    again = given.restart_s + start_s(gpus, given) + restore_s(model, gpus, given)
    sudden = given.checkpoint_every_s / 2 + given.detection_s
    lost = again + given.notice_share * state / given.storage_bytes_s + (1 - given.notice_share) * sudden
    stops = gpus / (3600 * given.mtbf_hours)  # a second
    return 1 / (1 + saving + stops * lost)


# The tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def by_size(models: Sequence[Model], head: Sequence[str], cells: Callable[[Model, int], list[str]]) -> Iterator[str]:
    """A row for each model and size; sizes of the same values share one."""
    rows = []
    for model in models:
        for values, alike in itertools.groupby(SIZES, partial(cells, model)):
            rows.append((f"{model.name}, {', '.join(map(str, alike))} px", *values))
    yield from table(("", *head), rows)


def gradients(models: Sequence[Model], given: Inputs) -> Iterator[str]:
    """Bytes per step and GPU, and what adding gradients up adds to a step."""
    rows = []
    for model in models:
        for gpus in GPUS:
            within, between = sent_bytes(4 * model.parameters, gpus, given)
            hidden = [f"{1000 * step_of(model, size, gpus, given).exposed:.1f}" for size in SIZES]
            whole = 1000 * all_reduce_s(4 * model.parameters, gpus, given)
            sent = (f"{(within + between) / 1e6:,.0f}", f"{between / 1e6:,.0f}", f"{whole:.1f}")
            rows.append((f"{model.name}, {gpus:,} GPUs", *sent, *hidden))
    head = ("", "bytes per step, MB", "of them between nodes", "all-reduce, ms")
    yield from table((*head, *(f"not hidden at {size} px" for size in SIZES)), rows)


def images(models: Sequence[Model], given: Inputs) -> Iterator[str]:
    """Loader bytes per second and GPU, in MB."""

    def cells(model: Model, size: int) -> list[str]:
        read = image_of(size, GPUS[0], given)[0] * model.batch / 1e6
        steps = [step_of(model, size, gpus, given) for gpus in GPUS]
        taken = [read / step.compute for step in steps[:1]] + [read / step.seconds for step in steps]
        return [f"{value:,.0f}" for value in taken]

    yield from by_size(models, ("computing alone would read", *ON_GPUS), cells)


def steps(models: Sequence[Model], given: Inputs) -> Iterator[str]:
    """Milliseconds of a step; bold: the loader takes them."""

    def cells(model: Model, size: int) -> list[str]:
        steps = [step_of(model, size, gpus, given) for gpus in GPUS]
        bold = ["**" if step.loader > step.without_loader else "" for step in steps]
        times = [f"{mark}{1000 * step.seconds:.1f}{mark}" for mark, step in zip(bold, steps, strict=True)]
        return [f"{1000 * steps[0].compute:.1f}", *times]

    yield from by_size(models, ("computing", *ON_GPUS), cells)


def batches(models: Sequence[Model], given: Inputs) -> Iterator[str]:
    """The batch that grows with the GPUs, beside one of the same size, at 224 px."""
    rows = []
    for model in models:
        for gpus in GPUS:
            batch = model.batch * gpus
            row = [
                f"{batch:,}",
                f"{given.images / batch:,.0f}",
                f"{batch / step_of(model, 224, gpus, given).seconds:,.0f}",
            ]
            same = "-"
            if batch >= SAME_BATCH:
                fewer = replace(model, batch=SAME_BATCH // gpus)
                same = f"{SAME_BATCH / step_of(fewer, 224, gpus, given).seconds:,.0f}"
            rows.append((f"{model.name}, {gpus:,} GPUs", *row, same))
    yield from table(("", "batch", "steps an epoch", "images/s", f"images/s with a batch of {SAME_BATCH:,}"), rows)


def epochs(models: Sequence[Model], given: Inputs) -> Iterator[str]:
    """Epochs an hour."""

    def cells(model: Model, size: int) -> list[str]:
        rates = [model.batch * gpus / step_of(model, size, gpus, given).seconds for gpus in GPUS]
        return [f"{3600 * rate / given.images:,.0f}" for rate in rates]

    yield from by_size(models, ON_GPUS, cells)


def evaluations(models: Sequence[Model], given: Inputs) -> Iterator[str]:
    """Seconds of an evaluation."""
    yield from by_size(
        models, ON_GPUS, lambda model, size: [f"{evaluation_s(model, size, gpus, given):.2f}" for gpus in GPUS]
    )


def starts(models: Sequence[Model], given: Inputs) -> Iterator[str]:
    """A checkpoint, and seconds until the first step."""
    first = [start_s(gpus, given) + copies_s(gpus, given) for gpus in GPUS]
    rows = [
        ("the first that reads copies", *"---", *(f"{seconds:.0f}" for seconds in first)),
        ("any other new run", *"---", *(f"{start_s(gpus, given):.0f}" for gpus in GPUS)),
    ]
    for model in models:
        state = checkpoint_bytes(model)
        saved = (f"{state / 1e9:.1f}", f"{state / given.storage_bytes_s:.1f}", f"{state / given.host_copy_bytes_s:.2f}")
        times = [f"{start_s(gpus, given) + restore_s(model, gpus, given):.0f}" for gpus in GPUS]
        rows.append((f"{model.name}, continued", *saved, *times))
    head = ("", "checkpoint, GB", "written in, s", "training waits, s")
    yield from table((*head, *(f"start, s, {on}" for on in ON_GPUS)), rows)


def failures(models: Sequence[Model], given: Inputs) -> Iterator[str]:
    """Hours between stops, and the share of the time that is kept."""
    rows = [("hours between stops", *(f"{given.mtbf_hours / gpus:,.0f}" for gpus in GPUS))]
    for model in models:
        for share in sorted({given.notice_share, 1.0}):
            kept = [goodput(model, gpus, replace(given, notice_share=share)) for gpus in GPUS]
            rows.append((f"{model.name}, {100 * share:.0f}% announced", *(f"{100 * part:.1f}%" for part in kept)))
    yield from table(("", *ON_GPUS), rows)


TABLES = (gradients, images, steps, epochs, batches, evaluations, starts, failures)


def changed(words: Sequence[str]) -> tuple[Inputs, list[Model]]:
    """The inputs and the models with other values, NAME=VALUE or MODEL.NAME=VALUE."""
    owners: dict[str, Any] = {"": Inputs(), **{model.name: model for model in MODELS}}
    known = {
        f"{owner}.{field.name}".lstrip("."): (owner, field.name)
        for owner, of in owners.items()
        for field in fields(of)
        if field.type is not str
    }
    for word in words:
        given, _, value = word.partition("=")
        if given not in known:
            raise SystemExit(f"--set {word}: must be one of {', '.join(known)}")
        owner, name = known[given]
        kind = type(getattr(owners[owner], name))
        try:
            owners[owner] = replace(owners[owner], **{name: kind(float(value))})
        except ValueError:
            raise SystemExit(f"--set {word}: must be a number") from None
    inputs, *models = owners.values()
    return inputs, models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other inputs")
    parser.add_argument("--inputs", action="store_true", help="print the inputs as JSON")
    options = parser.parse_args()
    given, models = changed(options.set)
    if options.inputs:
        print(json.dumps({**asdict(given), **{model.name: asdict(model) for model in models}}, indent=1))
    else:
        print("\n".join(line for write in TABLES for line in [f"{write.__doc__}\n", *write(models, given)]))


if __name__ == "__main__":
    main()
