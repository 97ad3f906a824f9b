"""What helps with uneven classes: weights in the loss, balanced sampling, or nothing, on digits made uneven 1:50.

python benchmarks/uneven_classes.py [--seeds 5]          about 20 minutes of one core; prints Markdown

scikit-learn's 10 handwritten digits at 16 px: the commonest class has 100 training images, each next one a constant
factor fewer, the rarest 2. Validation (20 images a class) and test (50) are balanced, and the epoch with the best macro
F1 on validation counts. A seed takes other images for each part, puts the classes in another order and trains another
model, the same for all arms. A run becomes a row of benchmarks/uneven_classes.csv; one that has its row is not trained
again. Differences to plain training are paired by seed, with Student's 95% interval; better: it lies above 0.
"""

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from decode_accuracy import interval
from PIL import Image
from sklearn.datasets import load_digits

from toolkit.commands import train_single

ROWS = Path(__file__).with_suffix(".csv")
CLASSES, MOST, RATIO = 10, 100, 50
COUNTS = [round(MOST * RATIO ** (-place / (CLASSES - 1))) for place in range(CLASSES)]  # training images of each class
VAL, TEST = 20, 50  # images of each class
FEW = 3  # so many classes are called rare, and as many common
PLAIN, AS_THEY_ARE = "plain", ", no augmentation"
CHANGED = ("--crop-scale", "0.6", "--random-erasing", "0.25")  # the augmentation
ARMS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "`--class-weights inverse`": ("--class-weights", "inverse"),
    "`--class-weights inverse`, power 0.5": ("--class-weights", "inverse", "--class-weights-power", "0.5"),
    "`--class-weights effective`": ("--class-weights", "effective"),
    "`--sampling balanced`": ("--sampling", "balanced"),
    "`--sampling balanced`, power 0.5": ("--sampling", "balanced", "--sampling-power", "0.5"),
}
ARMS |= {arm + AS_THEY_ARE: ARMS[arm] for arm in (PLAIN, "`--class-weights inverse`", "`--sampling balanced`")}
TRAINED = (
    *("--arch", "test_resnet", "--img-size", "16", "--epochs", "40", "--batch-size", "32", "--learning-rate", "4e-3"),
    *("--no-hflip", "--select-by", "macro_f1", "--no-amp", "--num-workers", "1", "--log-with", "none", "--keep", "2"),
)
MEASURED = {
    "macro_f1": "macro F1",
    "worst": "worst class",
    "rare": f"{FEW} rarest",
    "common": f"{FEW} commonest",
    "top1": "top-1",
}
COLUMNS = ("arm", "seed", *MEASURED, "best_epoch")


def write_digits(folder: Path, seed: int) -> list[str]:
    """The data set of a seed; returns its classes from the commonest to the rarest."""
    digits, rng = load_digits(), np.random.default_rng(seed)
    order = rng.permutation(CLASSES).tolist()
    for label, count in zip(order, COUNTS, strict=True):
        ids = rng.permutation(np.flatnonzero(digits.target == label))
        parts = {"test": ids[:TEST], "val": ids[TEST : TEST + VAL], "train": ids[TEST + VAL : TEST + VAL + count]}
        for split, chosen in parts.items():
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for i in chosen.tolist():
                Image.fromarray((digits.images[i] * (255 / 16)).astype(np.uint8)).save(place / f"{i}.png")
    return [str(label) for label in order]


def train(arm: str, seed: int) -> dict[str, object]:
    """The row of a run: what its best model reached on test images."""
    with tempfile.TemporaryDirectory() as home:
        data, run = Path(home, "data"), Path(home, "run")
        order = write_digits(data, seed)
        images = ("--crop-scale", "1") if arm.endswith(AS_THEY_ARE) else CHANGED
        words = ["--data-root", str(data), "--output-dir", str(run), "--seed", str(seed), *TRAINED, *images, *ARMS[arm]]
        if code := train_single.main(words, prog="single_scale.py"):
            raise SystemExit(code)
        summary = json.loads((run / "summary.json").read_text())
        names = json.loads((run / "class_map.json").read_text())
        with (run / "predictions" / "test.csv").open(newline="") as file:
            rows = [(names[row["label"]], names[row["16px/predicted"]]) for row in csv.DictReader(file)]
    recall = [100 * np.mean([said == label for label, said in rows if label == name]) for name in order]
    scores = summary["test"]["16px"]
    found = {"macro_f1": scores["macro_f1"], "worst": min(recall), "rare": np.mean(recall[-FEW:])}
    found |= {"common": np.mean(recall[:FEW]), "top1": scores["top1"]}
    figures = {name: f"{value:.3f}" for name, value in found.items()}
    return {"arm": arm, "seed": seed, **figures, "best_epoch": summary["best_epoch"]}


def rows() -> list[dict[str, str]]:
    if not ROWS.exists():
        return []
    with ROWS.open(newline="") as file:
        return [*csv.DictReader(file)]


def study(seeds: int) -> None:
    """Train what has no row yet, seed by seed, on one core."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the toolkit takes as many threads
    for seed in range(seeds):
        for arm in ARMS:
            if any((row["arm"], row["seed"]) == (arm, str(seed)) for row in rows()):
                continue
            row, new = train(arm, seed), not ROWS.exists()
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
    yield f"| trained | seeds | {' | '.join(MEASURED.values())} |"
    yield "|" + "---|" * (len(MEASURED) + 2)
    for arm, seeds in found.items():
        means = [statistics.mean(scores[name] for scores in seeds.values()) for name in MEASURED if seeds]
        yield f"| {arm} | {len(seeds)} | {' | '.join(f'{mean:.1f}' for mean in means)} |"
    shown = [name for name in MEASURED if name != "top1"]
    yield ""
    yield f"| against plain | {' | '.join(f'{MEASURED[name]}, points' for name in shown)} |"
    yield "|" + "---|" * (len(shown) + 1)
    for arm, seeds in found.items():
        plain = found[PLAIN + (AS_THEY_ARE if arm.endswith(AS_THEY_ARE) else "")]
        both = sorted(seeds.keys() & plain.keys())
        if seeds is not plain and len(both) > 1:
            cells = [verdict([seeds[seed][name] - plain[seed][name] for seed in both]) for name in shown]
            yield f"| {arm} | {' | '.join(cells)} |"


def verdict(differences: list[float]) -> str:
    """Mean difference, its interval, and the word for it; two seeds or fewer decide nothing."""
    mean, low, high = interval(differences)
    decided = len(differences) > 2
    word = "better" if decided and low > 0 else "worse" if decided and high < 0 else "undecided"
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}), {word}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    study(parser.parse_args().seeds)
    print("\n".join(report()))


if __name__ == "__main__":
    main()
