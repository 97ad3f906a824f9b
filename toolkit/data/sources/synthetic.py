"""The built-in data: real JPEG files, drawn once, on which accuracy depends on the image size.

Ten classes = 5 shapes x 2 fine textures on 1/f color noise. The shape is visible at any resolution. The texture is
visible only if its period of 4-7 px (at 64 px) survives, so the accuracy shows the cost of a smaller size. Does not
import torch, so that the drawing processes start quickly.
"""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import simplejpeg
from filelock import FileLock
from tqdm import tqdm

from toolkit.system import files, host
from toolkit.system.errors import InputError

SHAPES = ("disc", "square", "triangle", "star", "cross")
TEXTURES = ("stripes", "checks")
CLASSES = tuple(f"{shape}-{texture}" for shape in SHAPES for texture in TEXTURES)
JPEG_QUALITY = 92
COUNT = 6000  # default number of train images
FLUSH_EVERY = 100  # images: how often the drawing processes report progress
VERSION = 1  # part of the folder's name, so that a changed drawing does not use old files


def _outline(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance of each point to the outline of a shape of radius 1: positive inside, about 1 unit per radius."""
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    if shape == "disc":
        return 0.95 - radius
    if shape == "square":
        return 0.82 - np.maximum(np.abs(x), np.abs(y))
    if shape == "triangle":
        return 0.52 - np.maximum.reduce(
            [np.cos(k * 2 * np.pi / 3) * x + np.sin(k * 2 * np.pi / 3) * y for k in range(3)]
        )
    if shape == "star":
        return 0.72 + 0.3 * np.cos(5 * angle) - radius
    arm, reach = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    return np.minimum(0.3 - arm, 1.0 - reach)  # cross


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """1/f color noise, size x size x 3, mean 0, standard deviation 1 per channel."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((3, size, size))) / frequency
    noise = np.fft.irfft2(spectrum, s=(size, size)).transpose(1, 2, 0)
    return noise / noise.std(axis=(0, 1))


def draw(label: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """One image of a class: size x size x 3 uint8; random position, size, rotation and color."""
    shape, texture = SHAPES[label // len(TEXTURES)], TEXTURES[label % len(TEXTURES)]
    radius = size * rng.uniform(0.28, 0.44)
    cx, cy = rng.uniform(0.8 * radius, size - 0.8 * radius, 2)
    turn, weave = rng.uniform(0, 2 * np.pi, 2)
    grid = np.arange(size) + 0.5
    x, y = (grid - cx)[None, :] / radius, (grid - cy)[:, None] / radius
    x, y = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    mask = np.clip(_outline(shape, x, y) * radius + 0.5, 0, 1)[..., None]  # one pixel of antialiasing

    phase = 2 * np.pi / (size / 64 * rng.uniform(4, 7)) * radius
    along, across = np.cos(weave) * x + np.sin(weave) * y, np.cos(weave) * y - np.sin(weave) * x
    wave = np.sin(phase * along + rng.uniform(0, 2 * np.pi))
    if texture == "checks":
        wave = wave * np.sin(phase * across + rng.uniform(0, 2 * np.pi)) * 2**0.5  # the same power as stripes
    background, color = rng.uniform(60, 195, (2, 3))
    color = background + np.where(rng.random(3) < 0.5, -1, 1) * rng.uniform(35, 95, 3)
    image = background + 22 * _noise(rng, size)
    image = image + mask * (color + 60 * wave[..., None] + 10 * rng.standard_normal((size, size, 1)) - image)
    return np.clip(image, 0, 255).astype(np.uint8)


def _counts(count: int) -> dict[str, int]:
    """Images per split: `count` for train, a sixth of it for val, a third for test, at least one per class."""
    return {"train": count, "val": max(count // 6, len(CLASSES)), "test": max(count // 3, len(CLASSES))}


def _write_share(folder: Path, size: int, count: int, seed: int, worker: int, workers: int) -> None:
    """Draw every `workers`-th image, starting at number `worker`; prints a dot to stdout for each."""
    for key, (split, number) in enumerate(_counts(count).items()):
        for i in range(worker, number, workers):
            label = i % len(CLASSES)
            pixels = draw(label, size, np.random.default_rng((seed, key, i)))
            jpeg = simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorsubsampling="444")
            (folder / split / CLASSES[label] / f"{i:06d}.jpg").write_bytes(jpeg)
            print(".", end="", flush=i % FLUSH_EVERY < workers)


def write(folder: Path, size: int, count: int, seed: int = 0) -> None:
    """Draw the images of all splits at `size` px on all cores; raises OSError on failure."""
    counts = _counts(count)
    for split in counts:
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
    # Plain processes: a pool would run a user's script again in each worker, or fork a process that has threads.
    here = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}
    workers = host.cpu_quota()
    call = [sys.executable, "-m", "toolkit.data.sources.synthetic", str(folder), *map(str, (size, count, seed))]
    processes = [
        subprocess.Popen([*call, str(worker), str(workers)], stdout=subprocess.PIPE, env=environment)
        for worker in range(workers)
    ]
    with tqdm(total=sum(counts.values()), desc=f"drawing {size} px images", unit="image", disable=None) as bar:
        for process in processes:
            assert process.stdout is not None
            while dots := os.read(process.stdout.fileno(), 65536):
                bar.update(len(dots) * workers if process is processes[0] else 0)
            process.stdout.close()
    if any(process.wait() for process in processes):
        raise OSError(errno.EIO, "drawing the built-in images failed", str(folder))


def prepare(size: int, count: int, seed: int = 0) -> Path:
    """The folder of the built-in data, drawn if it is missing; safe to call from many processes at once."""
    folder = files.cache_dir() / f"synthetic-v{VERSION}-{size}px-{count}-seed{seed}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                staging = folder.with_name(f".tmp-{folder.name}")
                shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed while drawing
                write(staging, size, count, seed)
                os.replace(staging, folder)
    except OSError as error:
        raise InputError(
            f"built-in data: {error.filename}: {error.strerror}; TOOLKIT_CACHE names another place"
        ) from None
    return folder


if __name__ == "__main__":
    _write_share(Path(sys.argv[1]), *map(int, sys.argv[2:]))
