"""What 10 million images of shards cost 8 processes of a machine before training: time and memory, against 10,000.

python benchmarks/large_index.py [--images 10000000] [--processes 8]            about 3 minutes, 8 GB

Each process opens the index as a run does whose shards were indexed before (`toolkit scan --write-index`), holds out a
hundredth for validation, compares digests, and draws the first epoch's order. The shards are made up: only their index
exists. Memory is the proportional set size (PSS), which counts a page that n processes share as 1/n of it in each.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import Settings, SingleScale
from toolkit.data.images.preprocess import readable_formats
from toolkit.data.loading.orders import Orders
from toolkit.data.loading.pipeline import _orders, _shards
from toolkit.data.loading.sampler import Sampler
from toolkit.data.sources import index_tables
from toolkit.data.sources.containers import VERSION, Container, index_containers
from toolkit.data.sources.index import Found, Names
from toolkit.data.sources.remote import BlockCache, FileVersion
from toolkit.data.sources.splits import with_validation
from toolkit.system import files
from toolkit.training.step_plan import make_step_plan

PER_SHARD, CLASSES, BYTES = 10_000, 1000, 100_000
ROOT = "s3://bucket/data"


def containers(images: int) -> list[Container]:
    names = [f"train/{shard:06d}.tar" for shard in range(images // PER_SHARD)]
    return [Container(name, f"{ROOT}/{name}", FileVersion(PER_SHARD * BYTES, name)) for name in names]


def write_index(images: int, cache: Path) -> None:
    """The index as it is after the first start: of images of 100 kB and 400 x 300 px in shards of 1 GB."""
    shards, kind = containers(images), ("", *readable_formats())
    made_from = [[shard.name, *shard.version] for shard in shards] + [VERSION, *kind]
    members = [f"{i:05d}.jpg" for i in range(PER_SHARD)]
    names = Names.joined([Names.of(f"{shard.name}/{member}" for member in members) for shard in shards])
    columns = {
        "blob": names.blob,
        "ends": names.ends,
        "container": np.repeat(np.arange(len(shards), dtype=np.int32), PER_SHARD),
        "offset": np.tile(np.arange(PER_SHARD, dtype=np.int64) * BYTES, len(shards)),
        "length": np.full(images, BYTES, dtype=np.int64),
        "labels": np.arange(images) * 7919 % CLASSES,
        "width": np.full(images, 400, dtype=np.int32),
        "height": np.full(images, 300, dtype=np.int32),
        "orientation": np.ones(images, dtype=np.uint8),
    }
    (cache / "index").mkdir(parents=True)
    path = cache / "index" / f"{files.key(repr(shards), *kind)}-v{VERSION}.index"
    index_tables.write(path, columns, {"made_from": made_from, "left_out": ""})


def pss_mb() -> float:
    """Proportional set size of this process, MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def start(rank: int, processes: int, images: int, cache: Path, barrier: Any, results: Any) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["WORLD_SIZE"] = str(processes)
    settings = Settings(data_root=ROOT, cache_dir=cache, batch_size=1024, val_split=0.01)
    barrier.wait()
    begun = time.perf_counter()
    shards = containers(images)
    blocks = BlockCache(cache, int(400e9), {shard.path: shard.version for shard in shards})
    train = index_containers(ROOT, shards, lambda _: never(), cache, blocks)
    splits = with_validation(Found(train, None, None, [f"{i:04d}" for i in range(CLASSES)], ROOT), settings)
    splits.digests()
    assert not len(splits.train.unreadable())
    strategy = SingleScale(224)
    sampler = Sampler(len(splits.train), 0, strategy, _shards(splits.train), None, _orders(settings, splits.train))
    epoch = next(iter(make_step_plan(settings, strategy, len(splits.train), 1).epochs()))
    spec = next(sampler.batch_specs(epoch))
    seconds = time.perf_counter() - begun
    barrier.wait()
    time.sleep(2)  # orders that are drawn ahead
    results.put((rank, seconds, pss_mb(), int(spec.ids.sum()), isinstance(sampler.orders, Orders)))
    barrier.wait()


def never() -> Any:
    raise AssertionError("a shard was read")


def measure(images: int, processes: int) -> list[tuple[int, float, float, int, bool]]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        write_index(images, Path(folder))
        for name in ("first start", "next start"):
            barrier, results = context.Barrier(processes, timeout=600), context.Queue()
            words = (processes, images, Path(folder), barrier, results)
            started = [context.Process(target=start, args=(rank, *words)) for rank in range(processes)]
            for process in started:
                process.start()
            found = sorted(results.get(timeout=600) for _ in started)
            for process in started:
                process.join()
            assert len({ids for _, _, _, ids, _ in found}) == 1
            slowest, memory = max(seconds for _, seconds, *_ in found), sum(mb for _, _, mb, *_ in found)
            shared = ", orders shared" if all(entry[4] for entry in found) else ""
            print(f"{images:>10,} images, {name}: ready after {slowest:.1f} s, {memory:,.0f} MB{shared}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--processes", type=int, default=8)
    options = parser.parse_args()
    few, many = (
        sum(mb for _, _, mb, *_ in measure(images, options.processes)) for images in (PER_SHARD, options.images)
    )
    print(f"{options.images:,} images take {many - few:,.0f} MB more than {PER_SHARD:,}, all processes together")


if __name__ == "__main__":
    main()
