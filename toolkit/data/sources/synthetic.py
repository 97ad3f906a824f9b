"""The built-in data: real JPEG files, drawn once. Imports no torch, so that the drawing processes start quickly."""

import errno
import importlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from tqdm import tqdm

from toolkit.config.data_roots import CHARACTERS, SYNTHETIC
from toolkit.system import console, host, places, storage
from toolkit.system.errors import InputError
from toolkit.system.locks import locked

log = logging.getLogger(__name__)

# Modules with class_names(classes), draw(label, size, rng) -> size x size x 3 uint8, COUNT and VERSION.
DRAWINGS = {SYNTHETIC: "toolkit.data.sources.shapes", CHARACTERS: "toolkit.data.sources.characters"}
JPEG_QUALITY = 92
FLUSH_EVERY = 100  # images: how often the drawing processes report progress


def drawing(name: str) -> Any:
    """The module that draws the built-in data of that name."""
    return importlib.import_module(DRAWINGS[name])


def split_counts(count: int, classes: int) -> dict[str, int]:
    """Images per split: `count` for train, a sixth of it for val, a third for test, at least one per class."""
    return {"train": max(count, classes), "val": max(count // 6, classes), "test": max(count // 3, classes)}


def _write_share(
    name: str, folder: Path, size: int, seed: int, classes: int, worker: int, workers: int, *counts: int
) -> None:
    """Draw every `workers`-th image of each split, from number `worker` on; prints a dot to stdout for each."""
    drawn = drawing(name)
    names = drawn.class_names(classes)
    for key, (split, number) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        for i in range(worker, number, workers):
            label = i % classes
            pixels = drawn.draw(label, size, np.random.default_rng((seed, key, i)))
            jpeg = simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorsubsampling="444")
            (folder / split / names[label] / f"{i:06d}.jpg").write_bytes(jpeg)
            print(".", end="", flush=i % FLUSH_EVERY < workers)


def write(
    folder: Path, size: int, counts: Mapping[str, int], seed: int = 0, name: str = SYNTHETIC, classes: int | None = None
) -> None:
    """Draw the images of all splits at `size` px on all cores; raises OSError on failure.

    `counts`: images of train, val and test. `classes`: their number; None: as many as the drawing has by default.
    """
    names = drawing(name).class_names(classes)
    for split in counts:
        for label in names:
            (folder / split / label).mkdir(parents=True, exist_ok=True)
    # Plain processes: a pool would run a user's script again in each worker, or fork a process that has threads.
    here = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}
    workers = host.cpu_quota()
    call = [sys.executable, "-m", "toolkit.data.sources.synthetic", name, str(folder)]
    call += map(str, (size, seed, len(names)))
    images = [str(counts[split]) for split in ("train", "val", "test")]
    processes = [
        subprocess.Popen([*call, str(worker), str(workers), *images], stdout=subprocess.PIPE, env=environment)
        for worker in range(workers)
    ]
    total, drawn, heartbeat = sum(counts.values()), 0, console.Heartbeat(host.is_main_process())
    log.info("data      drawing %d images of %d px, once", total, size)
    with tqdm(total=total, desc=f"drawing {size} px images", unit="image", disable=None) as bar:
        for process in processes:
            assert process.stdout is not None
            while dots := os.read(process.stdout.fileno(), 65536):
                new = len(dots) * workers if process is processes[0] else 0
                bar.update(new)
                drawn += new
                heartbeat.beat(log, f"data      {min(drawn, total)} of {total} images drawn")
            process.stdout.close()
    if any(process.wait() for process in processes):
        raise OSError(errno.EIO, "drawing the built-in images failed", str(folder))


def prepare(size: int, count: int, seed: int = 0, name: str = SYNTHETIC, classes: int | None = None) -> Path:
    """The folder of the built-in data, drawn if it is missing; safe to call from many processes at once."""
    drawn = drawing(name)
    number = len(drawn.class_names(classes))
    of_classes = f"-{number}classes" if name != SYNTHETIC else ""
    folder = places.cache_dir() / f"{name}-v{drawn.VERSION}-{size}px-{count}{of_classes}-seed{seed}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(f"{folder}.lock"):
            if not folder.exists():
                staging = folder.with_name(f".tmp-{folder.name}")
                shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed while drawing
                write(staging, size, split_counts(count, number), seed, name, number)
                os.replace(staging, folder)
    except OSError as error:
        if not storage.concerns_place(error):
            raise
        raise InputError(f"built-in data: {storage.line(error, folder)}; TOOLKIT_CACHE names another place") from None
    return folder


if __name__ == "__main__":
    _write_share(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
