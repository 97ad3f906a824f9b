"""Accuracy cost of scaled decoding and downscaled caches, against full decoding: a table of docs/results.md.

python benchmarks/decode_accuracy.py [--out FILE.json] [--arms disk ...] [--quick]   about two hours on two cores

Each case trains recipes/single_scale.py on images much larger than the training size. Arms: decoded in full (no flag
for this: the decoder's fractions are patched out); at a fraction if the crop allows it (--cache off); from the
downscaled cache (--cache disk); from smaller images in memory (--cache ram). The built-in data is drawn at 256 px. The
photographs are scikit-learn's two: each quarter of one is a class. A chessboard divides a quarter into fields; training
crops come from white fields, test crops from black ones, enlarged.

Sizes, crops, epochs and fields were chosen with full decoding only, so that seeds differ little. Rejected: for the
built-in data 32 px and smaller crops (73 and 93%); for the photographs 12, 35 and 70 fields, and training without a
moving average of the weights (58 to 78%, up to 8 points between seeds). A case that is already in the output file is
not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.stats import t
from sklearn.datasets import load_sample_images

from toolkit.config.settings import Settings
from toolkit.data.images.augment import Augmenter
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.splits import open_splits

ROOT = Path(__file__).parent.parent
FULL, LIMIT = "in full", 1.0  # points of top-1
ARMS = {FULL: "off", "scaled": "off", "disk": "disk", "memory": "ram"}  # arm: value of --cache
IN_FULL = """
import runpy, sys
from toolkit.data.images import decode
decode.SCALES, decode.CHROMA_MARGIN = (), float("inf")
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FIELDS = (9, 13)  # rows and columns of the chessboard on each quarter
PHOTO_SIZE = 192  # px of a crop's file: about 8 times the photograph's resolution
COMPARED = 400  # images whose crops are compared


class Case(NamedTuple):
    """A data set, its training settings, and the number of seeds."""

    seeds: int
    size: int  # px
    epochs: int
    crop_scale: float
    flags: tuple[str, ...]
    settings: dict[str, object]


def write_photographs(root: Path, train: int, test: int) -> None:
    """Write `train` and `test` crops per quarter of each photograph: train from white fields, test from black ones."""
    for photo, pixels in enumerate(load_sample_images().images):
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        for quarter in range(4):
            top, left = quarter // 2 * height, quarter % 2 * width
            part = pixels[top : top + height, left : left + width]
            rows, columns = np.array_split(np.arange(height), FIELDS[0]), np.array_split(np.arange(width), FIELDS[1])
            fields = [part[np.ix_(y, x)] for y in rows for x in columns]
            colors = [(i + j) % 2 for i in range(FIELDS[0]) for j in range(FIELDS[1])]
            for key, (split, count) in enumerate((("train", train), ("test", test))):
                rng, folder = np.random.default_rng((photo, quarter, key)), root / split / f"{photo}-{quarter}"
                folder.mkdir(parents=True)
                own = [field for field, color in zip(fields, colors, strict=True) if color == key]
                for i in range(count):
                    crop = Image.fromarray(random_square(own[i % len(own)], rng))
                    crop = crop.resize((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.BICUBIC)
                    crop.save(folder / f"{i:05d}.jpg", quality=92)


def random_square(field: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square of random size and position from an H x W x 3 field."""
    side = rng.integers(round(0.8 * min(field.shape[:2])), min(field.shape[:2]) + 1)
    y, x = (rng.integers(length - side + 1) for length in field.shape[:2])
    return field[y : y + side, x : x + side]


def cases(photographs: Path, share: int) -> dict[str, Case]:
    """Cases by name, with 1/`share` of the images."""
    count = 6000 // share
    write_photographs(photographs, 400 // share, 250 // share)
    builtin = {"synthetic_size": 256, "synthetic_count": count}
    training = ("--arch", "test_resnet", "--learning-rate", "2e-3", "--ema-decay", "0.99", "--no-hflip")
    return {
        "built-in, 256 px": Case(5, 48, 10, 0.6, (), builtin),
        "photographs": Case(20, 32, 12, 0.7, training, {"data_root": str(photographs)}),
    }


def run(case: Case, arm: str, seed: int) -> dict[str, float]:
    """Train once; return top-1 on the test images, and seconds of training."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in case.settings.items()]
    flags += [f"--cache={ARMS[arm]}", f"--seed={seed}", f"--epochs={case.epochs}", f"--img-size={case.size}"]
    with tempfile.TemporaryDirectory() as folder:
        start = ["-c", IN_FULL] if arm == FULL else []
        command = [sys.executable, *start, str(ROOT / "recipes/single_scale.py"), *flags, *case.flags]
        command += ["--log-with=none", f"--crop-scale={case.crop_scale}", f"--output-dir={folder}/run"]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    return {"top1": summary["test"][f"{case.size}px"]["top1"], "train_seconds": summary["train_seconds"]}


def closeness(case: Case) -> str:
    """Compare scaled with full decoding, on crops drawn as in training: share of crops, mean and least PSNR."""
    index = open_splits(Settings(**case.settings), case.size).train
    index = index.take(np.linspace(0, len(index) - 1, COMPARED).astype(np.int64))
    boxes, _ = Augmenter(case.crop_scale, True, 0).draw(0, np.arange(len(index)), index.width, index.height, 1.0)
    scaled, full, errors = ImageReader(index), ImageReader(index, remember=True), []
    for i, box in enumerate(boxes):
        ours, exact = (pixels.crop(i, box, case.size).astype(float) for pixels in (scaled, full))
        errors.append(np.mean((ours - exact) ** 2))
    apart = [10 * np.log10(255**2 / error) for error in errors if error]
    share = len(apart) / len(errors)
    if not apart:
        return "no crop is large enough for scaled decoding"
    return f"{share:.0%} of the crops decoded at a fraction, {np.mean(apart):.1f} dB (least {min(apart):.1f})"


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and its 95% confidence interval by Student's t."""
    mean, count = statistics.mean(differences), len(differences)
    if count < 2:
        return mean, float("-inf"), float("inf")
    half = t.ppf(0.975, count - 1) * statistics.stdev(differences) / count**0.5
    return mean, mean - half, mean + half


def table(results: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> Iterator[str]:
    yield f"| data | decoded | seeds | mean top-1 | paired difference | 95% interval | inside +-{LIMIT:g} |"
    yield "|---|---|---|---|---|---|---|"
    for data, arms in results.items():
        for arm, runs in arms.items():
            pairs = [(run["top1"], arms[FULL][seed]["top1"]) for seed, run in runs.items() if seed in arms[FULL]]
            cells = [data, arm, f"{len(pairs)}", f"{statistics.mean(own for own, _ in pairs):.2f}"]
            if arm == FULL:
                cells += ["", "", ""]
            else:
                mean, low, high = interval([own - full for own, full in pairs])
                inside = "yes" if low > -LIMIT and high < LIMIT else "NO"
                cells += [f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}", inside]
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "decode_accuracy.json")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], help="those to run beside `in full`")
    parser.add_argument("--quick", action="store_true", help="few images, one epoch: only to see that it runs")
    options = parser.parse_args()
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        named = cases(Path(folder), 10 if options.quick else 1)
        if options.quick:
            named = {data: case._replace(seeds=1, epochs=1) for data, case in named.items()}
        for data, case in named.items():
            for seed in range(case.seeds):
                for arm in [FULL, *(arm for arm in options.arms if arm != FULL)]:
                    runs = results.setdefault(data, {}).setdefault(arm, {})
                    if str(seed) not in runs:
                        runs[str(seed)] = run(case, arm, seed)
                        print(f"seed {seed}  {data}, {arm}: {runs[str(seed)]}", flush=True)
                        options.out.write_text(json.dumps(results, indent=1) + "\n")
        for data, case in named.items():
            print(f"{data}, trained at {case.size} px: {closeness(case)}")
    print("\n" + "\n".join(table(results)))


if __name__ == "__main__":
    main()
