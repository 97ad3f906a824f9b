"""Speed and memory of the input pipeline, against the loaders of timm and torchvision: a table of docs/results.md.

python benchmarks/input_pipeline.py [--rounds 5] [--out FILE.json] [--quick]        about 12 minutes on two cores

All loaders read the same generated JPEGs with two threads or workers: random resized crop (area .35-1) and mirror, to
normalized float32 batches on the CPU. An epoch reads every file four times, through hard links, so that its start and
end matter little. Workers persist if the loader supports it, and one epoch before the first round is not timed. In each
round every contender runs once, in rotated order; a metric is the median over rounds of the ratio within a round. timm
runs with its prefetcher (bytes from the workers, normalized in the main process: its default) and without, and the
faster of the two counts. For all contenders, the main process normalizes with one thread and keeps freed memory.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_loader
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from toolkit.config.settings import Settings
from toolkit.data.images.decode import decode
from toolkit.data.images.views import views
from toolkit.data.loading.cache import choose_cache
from toolkit.data.loading.pipeline import DataPipeline, open_pipeline
from toolkit.data.sources.splits import open_splits
from toolkit.data.sources.survey import survey
from toolkit.strategies import Simultaneous, SingleScale
from toolkit.tools.scan import check_images
from toolkit.training import device
from toolkit.training.step_plan import make_step_plan

WORKERS = 2
CROP_SCALE = 0.35
PASSES = 4  # reads of each file in an epoch
MEAN, STD = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
PAGE = os.sysconf("SC_PAGE_SIZE")
MEMORY_EPOCHS, SETTLED = 80, 60  # epochs; growth is fitted to the last 20, when the allocator has settled
VERSIONS = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "numpy")
Contender = Callable[[], int]  # one epoch; returns the number of images


class Files(NamedTuple):
    """Generated JPEGs of one size, px: `count` different ones, `links` paths in total."""

    name: str
    width: int
    height: int
    count: int
    links: int


class Row(NamedTuple):
    """A row of the table: `rounds` holds one ratio per round."""

    name: str
    rounds: list[float]
    target: float
    at_least: bool
    note: str = ""

    def met(self) -> bool:
        median = statistics.median(self.rounds)
        return median >= self.target if self.at_least else median <= self.target


def photo(sources: Sequence[np.ndarray], rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A random window of a photograph, randomly mirrored, resized to height x width x 3, with sensor noise."""
    source = sources[rng.integers(len(sources))]
    side = rng.uniform(0.88, 1.0)  # 375 of the source's 427 px: small files are not enlarged
    h = int(side * min(source.shape[0], source.shape[1] * height / width))
    w = h * width // height
    y, x = rng.integers(source.shape[0] - h + 1), rng.integers(source.shape[1] - w + 1)
    image = Image.fromarray(source[y : y + h, x : x + w][:, :: rng.choice((-1, 1))])
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32)
    return np.clip(pixels + 8 * grain, 0, 255).astype(np.uint8)


def write_files(folder: Path, files: Files) -> Path:
    """Write a data set of two classes; prints the mean file size."""
    sources, rng, root = load_sample_images().images, np.random.default_rng(0), folder / files.name
    for name in ("train/0", "train/1", "val/0", "val/1"):
        (root / name).mkdir(parents=True)
    sizes = []
    for i in range(files.count):
        pixels = photo(sources, rng, files.width, files.height)
        content = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=90, colorsubsampling="420")
        sizes.append(len(content))
        first = root / f"train/{i % 2}/{i}.jpg"
        first.write_bytes(content)
        for link in range(i + files.count, files.links, files.count):
            (root / f"train/{i % 2}/{link}.jpg").hardlink_to(first)
        if i < 2:
            (root / f"val/{i}/0.jpg").hardlink_to(first)
    print(
        f"{files.count} files of {files.width} x {files.height} px, {statistics.mean(sizes) / 1e3:.0f} kB", flush=True
    )
    return root


def open_ours(root: Path, sizes: tuple[int, ...], batch_size: int, cache: str) -> tuple[DataPipeline, Contender]:
    """The toolkit's pipeline as a training run opens it, and a function that reads its next epoch, including views."""
    settings = Settings(
        data_root=str(root),
        crop_scale=CROP_SCALE,
        batch_size=batch_size,
        epochs=1_000_000,
        cache=cache,
        cache_dir=root.parent / "cache",
        num_workers=WORKERS,
    )
    strategy = SingleScale(sizes[0]) if len(sizes) == 1 else Simultaneous(sizes)
    splits = open_splits(settings, sizes[-1])
    plan = make_step_plan(settings, strategy, len(splits.train), 1)
    choice = choose_cache(settings, splits, plan.phases, free_gb=math.inf)
    pipeline, epochs = open_pipeline(settings, strategy, splits, choice, WORKERS), plan.epochs()

    def epoch() -> int:
        count = 0
        for batch in pipeline.batches(next(epochs), 0, plan.share(0)):
            count += len(views(batch.images, batch.step.sizes, MEAN, STD)[0])
        return count

    return pipeline, epoch


def ours(root: Path, sizes: tuple[int, ...], batch_size: int, cache: str = "off") -> Contender:
    return open_ours(root, sizes, batch_size, cache)[1]


def through(loader: Any) -> Contender:
    return lambda: sum(len(images) for images, _ in loader)


def timm(root: Path, size: int, batch_size: int, prefetcher: bool) -> Contender:
    return through(
        create_loader(
            create_dataset("", root=str(root), split="train"),
            input_size=(3, size, size),
            batch_size=batch_size,
            is_training=True,
            scale=(CROP_SCALE, 1.0),
            color_jitter=None,
            interpolation="bilinear",
            num_workers=WORKERS,
            use_prefetcher=prefetcher,
            device=torch.device("cpu"),
        )
    )


def image_folder(root: Path, size: int, batch_size: int) -> Contender:
    steps = [
        v2.RandomResizedCrop(size, (CROP_SCALE, 1.0)),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    ]
    dataset = ImageFolder(root / "train", v2.Compose(steps))
    return through(
        DataLoader(dataset, batch_size, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=True)
    )


def seconds_per_image(contender: Contender, least_s: float) -> float:
    """Mean seconds per image, over as many epochs as take `least_s` seconds."""
    started, images = time.perf_counter(), 0
    while not images or time.perf_counter() - started < least_s:
        images += contender()
    return (time.perf_counter() - started) / images


def race(contenders: Mapping[str, Contender], rounds: int, least_s: float) -> list[dict[str, float]]:
    """Seconds per image of each contender in each round."""
    for contender in contenders.values():
        contender()
    names, results = list(contenders), []
    for shift in range(rounds):
        order = [names[(shift + i) % len(names)] for i in range(len(names))]
        results.append({name: seconds_per_image(contenders[name], least_s) for name in order})
        print("  ".join(f"{name} {1 / results[-1][name]:.0f}/s" for name in names), flush=True)
    return results


def against_timm(times: Sequence[Mapping[str, float]], who: str) -> list[float]:
    return [min(round_["timm, prefetcher"], round_["timm"]) / round_[who] for round_ in times]


def small_rows(root: Path, size: int, rounds: int, least_s: float) -> Iterator[Row]:
    batch = 64
    contenders = {
        "ours": ours(root, (size,), batch),
        "ours, RAM": ours(root, (size,), batch, "ram"),
        "timm": timm(root, size, batch, prefetcher=False),
        "timm, prefetcher": timm(root, size, batch, prefetcher=True),
        "ImageFolder": image_folder(root, size, batch),
    }
    if size == 64:
        contenders["ours, disk"] = ours(root, (size,), batch, "disk")
    if size == 224:
        contenders["ours, three sizes"] = ours(root, (64, 112, 224), batch)
    times = race(contenders, rounds, least_s)
    yield Row(f"small files, {size} px, against timm", against_timm(times, "ours"), 1.4, True)
    folder = [round_["ImageFolder"] / round_["ours"] for round_ in times]
    yield Row(f"small files, {size} px, against ImageFolder", folder, 1.5, True)
    if size == 64:
        copies = against_timm(times, "ours, disk")
        yield Row("64 px from 128-px copies, against timm on the originals", copies, 6.0, True)
    yield Row(f"RAM-cached, {size} px, against timm", against_timm(times, "ours, RAM"), 10.0, True)
    if size == 224:
        three = [round_["ours, three sizes"] / round_["ours"] for round_ in times]
        yield Row("224+112+64 px, views derived: time against 224 px alone", three, 1.2, False)


def large_row(root: Path, rounds: int, least_s: float) -> Row:
    contenders = {
        "ours": ours(root, (224,), 8),
        "timm": timm(root, 224, 8, prefetcher=False),
        "timm, prefetcher": timm(root, 224, 8, prefetcher=True),
    }
    times = race(contenders, rounds, least_s)
    return Row("3-megapixel files, 224 px, against timm", against_timm(times, "ours"), 1.3, True)


def scan_row(root: Path, rounds: int) -> Row:
    """Time of `check_images` against full decoding of every file, on the same cores."""
    paths = sorted(root.glob("train/*/*.jpg"))

    def decode_all() -> int:
        with ThreadPoolExecutor(WORKERS) as pool:
            return sum(pool.map(lambda path: len(decode(path.read_bytes())) > 0, paths, chunksize=16))

    def scan_all() -> int:
        return sum(len(index) for index in check_images(survey(str(root)), WORKERS).indices.values())

    times = race({"scan": scan_all, "decode": decode_all}, rounds, 0)
    ratios = [round_["scan"] / round_["decode"] for round_ in times]
    return Row(f"scan of {len(paths)} small files: time against decoding them", ratios, 1.15, False)


def resident_mb() -> dict[str, float]:
    """Resident memory of this process, and the part of it that is shared memory, MB."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "RssShmem")}


def memory_rows(root: Path) -> Iterator[dict[str, Any]]:
    """Memory growth over epochs, and the size of the RAM cache."""
    for title, sizes, cache in (("files, 64+112+224 px", (64, 112, 224), "off"), ("RAM-cached, 64 px", (64,), "ram")):
        before = resident_mb()["RssShmem"]
        pipeline, epoch = open_ours(root, sizes, 64, cache)
        resident = []
        for _ in range(MEMORY_EPOCHS):
            epoch()
            resident.append(resident_mb()["VmRSS"])
        slope = np.polyfit(np.arange(MEMORY_EPOCHS - SETTLED), resident[SETTLED:], 1)[0]
        found = {"case": title, "resident_mb": resident, "slope_mb_per_epoch": float(slope)}
        if cache == "ram":
            index = pipeline.sources[0].index
            bound = index.decoded_bytes + len(index) + 2 * PAGE  # one byte per image marks it as cached
            found |= {"cache_mb": resident_mb()["RssShmem"] - before, "bound_mb": bound / 1e6}
        yield found


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, Python {platform.python_version()}, {versions}, {torch.get_num_threads()} threads"


def table(rows: Sequence[Row], memory: Sequence[Mapping[str, Any]]) -> str:
    lines = [machine(), "", "| measured | median | least - most | target | met |", "|---|---|---|---|---|"]
    for row in rows:
        bound = f"{'>=' if row.at_least else '<='} {row.target:g}x"
        spread = f"{min(row.rounds):.2f} - {max(row.rounds):.2f}"
        met = "yes" if row.met() else "NO"
        lines.append(f"| {row.name} | {statistics.median(row.rounds):.2f}x | {spread} | {bound} | {met} |")
    for found in memory:
        slope = found["slope_mb_per_epoch"]
        lines.append(
            f"| resident memory, {found['case']}: growth over epochs {SETTLED + 1}-{MEMORY_EPOCHS} | "
            f"{slope:.2f} MB/epoch | {min(found['resident_mb']):.0f} - {max(found['resident_mb']):.0f} MB | "
            f"< 1 MB/epoch | {'yes' if slope < 1 else 'NO'} |"
        )
        if "cache_mb" in found:
            met = "yes" if found["cache_mb"] <= found["bound_mb"] else "NO"
            lines.append(f"| RAM cache | {found['cache_mb']:.1f} MB | | <= {found['bound_mb']:.1f} MB | {met} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="few files, one round: only to see that it runs")
    options = parser.parse_args()
    rounds, share, least_s = (1, 4, 0.0) if options.quick else (options.rounds, 1, 1.0)
    device.start(Settings(log_with="none"))
    torch.set_num_threads(1)  # in the main process: more threads would spin on the cores of the workers
    count, large_count = 300 // share, 40 // share
    small = Files("small", 500, 375, count, count * PASSES)
    large = Files("large", 2000, 1500, large_count, large_count * PASSES)
    many = Files("many", 500, 375, count, 10_000 // share**2)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = write_files(folder, small)
        memory = list(memory_rows(root))
        for size in (64, 112, 224):
            rows += small_rows(root, size, rounds, least_s)
        rows.append(large_row(write_files(folder, large), rounds, least_s))
        rows.append(scan_row(write_files(folder, many), rounds))
    print("\n" + table(rows, memory))
    if options.out:
        found = {"machine": machine(), "rows": [row._asdict() for row in rows], "memory": memory}
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
