"""Try another project's test images: nothing crashes, and every difference from PIL's pixels has a reason.

python benchmarks/foreign_images.py FOLDER   about a minute for 1,000 files on two cores

FOLDER: any files, such as Tests/images of Pillow's source distribution. Copies of them make class folders, and each of
scan, a training with --on-bad-sample quarantine and predict runs over all of them as a process. Then each file is
decoded here and by PIL (any format, EXIF orientation, RGB). Prints tables of docs/results.md. Exit code: 1 if a
difference is not explained, or if a process crashed: a traceback, a signal, or an exit code that is none of its own.
"""

import argparse
import collections
import csv
import io
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from toolkit.data.images.decode import decode
from toolkit.data.images.formats import FORMATS
from toolkit.data.images.header import read_header, silence_libraries
from toolkit.data.images.preprocess import is_deep

ROOT = Path(__file__).parent.parent
VAL_EVERY = 5  # one in so many files is for validation
TRAINING = ("--arch", "test_resnet", "--img-size", "32", "--epochs", "1", "--batch-size", "16", "--log-with", "none")
ALIKE = 2  # most difference of a gray level between two JPEG decoders
SMOOTHED = 3.0  # the same on average, where two of libjpeg's releases smooth colors otherwise
UNEXPLAINED = "unexplained"
EXIT_CODES = {"scan": (0, 2), "single_scale": (0,), "predict": (0,)}
PATIENCE_S = 1800
MOST_NAMES = 3
LIBRARIES = re.compile(r"Warning\b|^tempfile\.tif|TIFF\w+:|Corrupt JPEG data(?!.*\.\w+: )|site-packages")


class Outcome(NamedTuple):
    """A process: its exit code, whether it crashed, lines of libraries that name no file, and its last line."""

    name: str
    code: int
    crashed: bool
    nameless: int
    last: str


def copy_files(files: list[Path], folder: Path) -> Path:
    """Copies in DATA/train/CLASS and DATA/val/CLASS; names are numbered, because those of a tree may be alike."""
    for i, file in enumerate(files):
        split = "val" if i % VAL_EVERY == 0 else "train"
        place = folder / split / "ab"[i // VAL_EVERY % 2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place / f"{i:05d}-{file.name}")
    return folder


def start(recipe: str, *words: str, cwd: Path) -> Outcome:
    """Run a recipe as a user would."""
    command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    told = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    crashed = "Traceback" in done.stdout + done.stderr or done.returncode not in EXIT_CODES[recipe]
    if crashed:
        print("\n".join(told[-30:]), file=sys.stderr)
    nameless = [line for line in told if LIBRARIES.search(line) and not re.search(r"\d{5}-", line)]
    print(*nameless, sep="\n", end="", file=sys.stderr)
    return Outcome(recipe, done.returncode, crashed, len(nameless), told[-1] if told else "")


def run_all(files: list[Path], work: Path) -> list[Outcome]:
    """Scan, training and prediction over copies of the files."""
    data = copy_files(files, work / "data")
    copies = [str(path) for path in sorted(data.rglob("*")) if path.is_file()]
    return [
        start("scan", str(data), "--output-dir", "scan", cwd=work),
        start(
            *("single_scale", "--data-root", str(data), "--on-bad-sample", "quarantine", *TRAINING),
            *("--output-dir", "run"),
            cwd=work,
        ),
        start("predict", "run", *copies, "--output", "rows.csv", cwd=work),
    ]


def by_us(content: bytes) -> np.ndarray | str:
    """The pixels, or the reason of the refusal."""
    try:
        return decode(content, orientation=read_header(io.BytesIO(content)).orientation)
    except ValueError as error:
        return str(error)


def by_pil(content: bytes) -> tuple[np.ndarray, Image.Image] | str:
    """The pixels and the opened image, or the reason of the refusal."""
    try:
        image = Image.open(io.BytesIO(content))
        return np.array(ImageOps.exif_transpose(image).convert("RGB")), image
    except Exception as error:  # PIL's formats raise any type of exception
        return f"{type(error).__name__}: {error}"


def compare(content: bytes) -> str:
    """What is different and why, in a line; empty if nothing is."""
    ours, theirs = by_us(content), by_pil(content)
    if isinstance(theirs, str):
        if isinstance(ours, str):
            return ""
        return f"read here, refused by PIL: {re.sub(r'[0-9]+', 'N', theirs)[:60]}"
    pixels, image = theirs
    if isinstance(ours, str):
        if image.format not in (*FORMATS, "MPO"):
            return f"refused: {image.format} is no format of photographs"
        return f"refused: {re.sub(r'-?[0-9][0-9.]+(e[+-]?[0-9]+)?', 'N', ours)}"
    return _difference(ours, pixels, image)


def _difference(ours: np.ndarray, pixels: np.ndarray, image: Image.Image) -> str:
    """Why two decoders' pixels differ; empty if they do not."""
    apart = np.abs(ours.astype(int) - pixels) if ours.shape == pixels.shape else np.array([256])
    if apart.max(initial=0) <= ALIKE:
        return ""
    if is_deep(image.mode):
        return f"other pixels: gray of more than 8 bits ({image.mode}), which PIL clips at 255"
    if ours.shape != pixels.shape:
        return "turned otherwise: PIL takes an orientation that stands behind the pixels, or XMP's" + (
            "" if ours.shape[:2] == pixels.shape[1::-1] else "; another size"
        )
    if image.format in ("JPEG", "MPO") and apart.mean() <= SMOOTHED:
        return f"other pixels: {image.mode} JPEG, smoothed otherwise by another libjpeg"
    return f"other pixels: {image.format} of mode {image.mode}, {UNEXPLAINED}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with tempfile.TemporaryDirectory() as work:
        outcomes = run_all(files, Path(work))
        rows = list(csv.DictReader((Path(work) / "rows.csv").open(newline=""))) if not outcomes[-1].crashed else []
    print(f"{len(files)} files; predicted {sum(not row['error'] for row in rows)}, refused with a reason the others.\n")
    print("| process | exit code | crashed | lines without a file's name | last line |\n" + "|---" * 5 + "|")
    for outcome in outcomes:
        crashed = "yes" if outcome.crashed else "no"
        print(f"| {outcome.name} | {outcome.code} | {crashed} | {outcome.nameless} | {outcome.last[:120]} |")
    print("\n| difference from PIL | files | such as |\n|---|---|---|")
    unexplained = False
    for reason, names in differences(files):
        unexplained |= UNEXPLAINED in reason
        print(f"| {reason.replace('|', '/')} | {len(names)} | {', '.join(names[:MOST_NAMES])} |")
    return int(unexplained or any(outcome.crashed for outcome in outcomes))


def differences(files: list[Path]) -> Iterator[tuple[str, list[str]]]:
    """Reasons and the names of their files, most first."""
    silence_libraries()
    found = collections.defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in files:
            if reason := compare(file.read_bytes()):
                found[reason].append(file.name)
    yield from sorted(found.items(), key=lambda pair: -len(pair[1]))


if __name__ == "__main__":
    sys.exit(main())
