"""What helps with uneven classes: weights in the loss, balanced sampling, or nothing, on characters made uneven 1:50.

python benchmarks/uneven_classes.py [--seeds 5]          about 15 minutes of one core; prints Markdown

16 classes of the built-in characters, 32 px; the commonest has 200 training images, each next one a constant factor
fewer, the rarest 4. Validation (40 images a class) and test (100) are balanced, and the epoch with the best macro F1 on
validation counts. A seed takes other images for training, puts the classes in another order and trains another model,
the same for all arms. A run becomes a row of benchmarks/uneven_classes.csv; one that has its row is not trained again.
Differences to plain training are paired by seed, with Student's 95% interval: better means that it lies above 0.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from decode_accuracy import interval

from toolkit.config.data_roots import CHARACTERS
from toolkit.data.sources import synthetic
from toolkit.system import places

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "uneven_classes.csv"
COLUMNS = ("arm", "seed", "macro_f1", "worst", "rare", "common", "top1", "best_epoch", "train_seconds")
CLASSES, SIZE, MOST, RATIO = 16, 32, 200, 50
COUNTS = [round(MOST * RATIO ** (-place / (CLASSES - 1))) for place in range(CLASSES)]  # training images of each class
VAL, TEST = 40, 100  # images of each class
FEW = CLASSES // 4  # so many classes are called rare, and as many common
PLAIN = "plain"
ARMS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "weights inverse": ("--class-weights", "inverse"),
    "weights inverse, power 0.5": ("--class-weights", "inverse", "--class-weights-power", "0.5"),
    "weights effective": ("--class-weights", "effective"),
    "balanced sampling": ("--sampling", "balanced"),
    "balanced sampling, power 0.5": ("--sampling", "balanced", "--sampling-power", "0.5"),
}
MEASURED = {
    "macro_f1": "macro F1",
    "worst": "worst class",
    "rare": "4 rarest",
    "common": "4 commonest",
    "top1": "top-1",
}


def order(seed: int) -> np.ndarray:
    """The classes from the commonest to the rarest."""
    return np.random.default_rng(seed).permutation(CLASSES)


def pool() -> Path:
    """All images, as many of each class, drawn if they are not there yet."""
    folder = places.cache_dir() / "uneven-classes"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as staging:
            counts = {"train": CLASSES * MOST, "val": CLASSES * VAL, "test": CLASSES * TEST}
            synthetic.write(Path(staging, "data"), SIZE, counts, 0, CHARACTERS, CLASSES)
            os.replace(Path(staging, "data"), folder)
    return folder


def make_uneven(seed: int, folder: Path) -> Path:
    """A data set whose classes have COUNTS training images: links to those of the pool."""
    rng = np.random.default_rng((seed, 1))
    folder.mkdir()
    for split in ("val", "test"):
        (folder / split).symlink_to(pool() / split)
    names = synthetic.drawing(CHARACTERS).class_names(CLASSES)
    for label, count in zip(order(seed).tolist(), COUNTS, strict=True):
        files = sorted((pool() / "train" / names[label]).iterdir())
        (folder / "train" / names[label]).mkdir(parents=True)
        for i in sorted(rng.permutation(len(files))[:count].tolist()):
            (folder / "train" / names[label] / files[i].name).symlink_to(files[i])
    return folder


def command(folder: Path, arm: str, seed: int, run: Path) -> list[str]:
    """The command of a run, after the interpreter."""
    flags = ["--arch", "test_resnet", "--img-size", str(SIZE), "--epochs", "40", "--batch-size", "32"]
    flags += ["--learning-rate", "4e-3", "--crop-scale", "1", "--no-hflip", "--select-by", "macro_f1", "--no-amp"]
    flags += ["--num-workers", "1", "--log-with", "none", "--keep", "2", "--output-dir", str(run), "--seed", str(seed)]
    return [str(ROOT / "recipes/single_scale.py"), "--data-root", str(folder), *flags, *ARMS[arm]]


def row_of(arm: str, seed: int, run: Path, seconds: float) -> dict[str, object]:
    """What a finished run reached on test images."""
    summary = json.loads((run / "summary.json").read_text())
    names = json.loads((run / "class_map.json").read_text())
    with (run / "predictions" / "test.csv").open(newline="") as file:
        rows = [(int(row["label"]), int(row[f"{SIZE}px/predicted"])) for row in csv.DictReader(file)]
    right = {label: [] for label in range(CLASSES)}
    for label, predicted in rows:
        right[label].append(label == predicted)
    recall = np.array([100 * np.mean(found) for found in right.values()])
    place = {name: label for label, name in enumerate(synthetic.drawing(CHARACTERS).class_names(CLASSES))}
    by_count = recall[[{place[name]: int(number) for number, name in names.items()}[label] for label in order(seed)]]
    scores = summary["test"][f"{SIZE}px"]
    found = {"macro_f1": scores["macro_f1"], "worst": recall.min(), "top1": scores["top1"]}
    found |= {"rare": by_count[-FEW:].mean(), "common": by_count[:FEW].mean()}
    figures = {name: f"{value:.3f}" for name, value in found.items()}
    return {"arm": arm, "seed": seed, **figures, "best_epoch": summary["best_epoch"], "train_seconds": f"{seconds:.1f}"}


def rows() -> list[dict[str, str]]:
    if not ROWS.exists():
        return []
    with ROWS.open(newline="") as file:
        return [*csv.DictReader(file)]


def study(seeds: int) -> None:
    """Train what has no row yet, seed by seed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    for seed in range(seeds):
        for arm in ARMS:
            if any((row["arm"], row["seed"]) == (arm, str(seed)) for row in rows()):
                continue
            with tempfile.TemporaryDirectory() as home:
                images, started = make_uneven(seed, Path(home, "data")), time.perf_counter()
                words = command(images, arm, seed, Path(home, "run"))
                done = subprocess.run(
                    [sys.executable, *words], cwd=home, env=environment, capture_output=True, text=True
                )
                if done.returncode:
                    raise SystemExit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
                row = row_of(arm, seed, Path(home, "run"), time.perf_counter() - started)
            new = not ROWS.exists()
            with ROWS.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(row, file=sys.stderr, flush=True)


def report() -> Iterator[str]:
    """The means over seeds, and the paired differences to plain training."""
    found: dict[str, dict[str, dict[str, float]]] = {arm: {} for arm in ARMS}
    for row in rows():
        found[row["arm"]][row["seed"]] = {name: float(row[name]) for name in MEASURED}
    yield f"| arm | seeds | {' | '.join(MEASURED.values())} |"
    yield "|" + "---|" * (len(MEASURED) + 2)
    for arm, seeds in found.items():
        means = [statistics.mean(scores[name] for scores in seeds.values()) for name in MEASURED if seeds]
        yield f"| {arm} | {len(seeds)} | {' | '.join(f'{mean:.1f}' for mean in means)} |"
    yield ""
    yield "| against plain | macro F1, points (95% interval) | worst class | 4 rarest | 4 commonest |"
    yield "|---|---|---|---|---|"
    for arm, seeds in found.items():
        both = sorted(seeds.keys() & found[PLAIN].keys())
        if arm != PLAIN and len(both) > 1:
            cells = [
                verdict([seeds[s][name] - found[PLAIN][s][name] for s in both]) for name in MEASURED if name != "top1"
            ]
            yield f"| {arm} | {' | '.join(cells)} |"


def verdict(differences: list[float]) -> str:
    mean, low, high = interval(differences)
    word = "better" if low > 0 else "worse" if high < 0 else "undecided"
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}), {word}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    study(parser.parse_args().seeds)
    print("\n".join(report()))


if __name__ == "__main__":
    main()
