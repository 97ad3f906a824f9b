"""What each choice of `toolkit train finetune` is worth: tables of docs/finetuning.md and docs/results.md.

python benchmarks/finetune.py [--parts defaults grid choices combined sizes] [--jobs 2]  three hours of two cores in all
python benchmarks/finetune.py --report                                   tables of what is there
python benchmarks/finetune.py --weights FILE --arch NAME                 the same from weights of your own

test_resnet, trained on the built-in characters, is tuned on three small data sets: 400 shapes (32 px), 200 of
scikit-learn's digits (32 px), 104 photographs (32 px, the task of decode_accuracy.py). Arms are compared seed by seed
with the defaults, but that the statistics of BatchNorm learn. The best setting of the grid is chosen on validation
images: all 24 with two seeds, then the three best with all five; it meets the defaults with ten. Tables show test
images. What has its row in benchmarks/finetune.csv is not run again.
"""

import argparse
import contextlib
import csv
import itertools
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from decode_accuracy import write_photographs
from PIL import Image
from scipy.stats import t
from sklearn.datasets import load_digits
from strategies import append_row
from strategies import weights as weights_of_characters

from toolkit import Finish, Progressive, Settings, Simultaneous, SingleScale, Strategy, train
from toolkit.data.sources import synthetic
from toolkit.system import places
from toolkit.tools.finetuning import finetuning
from toolkit.tools.rate_sweep import find_rate

ROWS = Path(__file__).parent / "finetune.csv"
COLUMNS = ("model", "task", "arm", "seed", "val", "test", "seconds")
SEEDS = range(5)
TRIAL_SEEDS, FINALISTS = 2, 3  # of the grid
GATE_SEEDS = range(5, 10)  # further ones for the defaults and the best of the grid
TASKS = {"shapes": (32, {"hflip": True}), "digits": (32, {"hflip": False}), "photographs": (32, {"hflip": False})}
CROPS = {"shapes": 1.0, "digits": 0.7, "photographs": 0.7}
RATES, DECAYS, HEADS = (3e-4, 1e-3, 3e-3, 1e-2), (1.0, 0.75, 0.5), (0, None)


class Arm(NamedTuple):
    """Settings beside those of `toolkit train finetune`, and epochs of the classifier; `find`: --lr-find.

    `strategy`: of the task's size.
    """

    settings: Mapping[str, Any] = {}
    head_epochs: int | None = None
    strategy: Callable[[int], Strategy] = SingleScale
    find: bool = False


FILLED = ...  # a setting that `toolkit train finetune` fills in
ANY_BATCH = "any"  # the rate without the root of the batch / 64
GRID = {
    f"grid: rate {rate:g}, layer decay {decay:g}, head {'first' if head is None else 'with all'}": Arm(
        {"learning_rate": rate, "layer_decay": decay}, head
    )
    for rate, decay, head in itertools.product(RATES, DECAYS, HEADS)
}
CHOICES = {
    "random weights": Arm({"weights": None, "pretrained": False}, 0),
    "only the classifier": Arm({"freeze": True}),
    "head with all": Arm({}, 0),
    "no layer decay": Arm({"layer_decay": 1.0}),
    "rate / 3": Arm({"learning_rate": 1 / 3}),
    "rate x 3": Arm({"learning_rate": 3.0}),
    "rate x 10": Arm({"learning_rate": 10.0}),
    "--lr-find": Arm(find=True),
    "no average": Arm({"ema_decay": None}),
    "half the epochs": Arm({"epochs": 0.5}),
    "twice the epochs": Arm({"epochs": 2.0}),
    "3/4 of the size": Arm(strategy=lambda size: SingleScale(size * 3 // 4)),
    "label smoothing 0.1": Arm({"label_smoothing": 0.1}),
    "smallest crop 0.35": Arm({"crop_scale": 0.35}),
    "RandAugment 5": Arm({"rand_augment": 5.0}),
    "MixUp 0.2": Arm({"mixup": 0.2}),
}
FROZEN, CHANGED, FASTER = {"freeze_bn": True}, {"rand_augment": 5.0}, {"learning_rate": 3.0}
ONE_RATE = "frozen BatchNorm, one rate for all batches"
DEFAULTS, START = "the defaults: frozen BatchNorm", "statistics of BatchNorm learn"
COMBINED = {
    "frozen BatchNorm, RandAugment 5": Arm({**FROZEN, **CHANGED}),
    "frozen BatchNorm, rate x 3": Arm({**FROZEN, **FASTER}),
    "frozen BatchNorm, RandAugment 5, rate x 3": Arm({**FROZEN, **CHANGED, **FASTER}),
    ONE_RATE: Arm({**FROZEN, "learning_rate": ANY_BATCH}),
}
BESIDE = {"freeze_bn": FILLED}  # the defaults, and:
SIZES = {
    "layer decay 0.75 beside the defaults": Arm({**BESIDE, "layer_decay": 0.75}),
    "3/4 of the size, then a finish": Arm(BESIDE, strategy=lambda size: Finish(SingleScale(size * 3 // 4), size, 3)),
    "two sizes in each step": Arm(BESIDE, strategy=lambda size: Simultaneous((size * 3 // 4, size))),
    "progressive over two sizes": Arm(BESIDE, strategy=lambda size: Progressive((size * 3 // 4, size))),
}
PARTS = {
    "defaults": {START: Arm(), DEFAULTS: Arm({"freeze_bn": FILLED})},
    "grid": GRID,
    "choices": CHOICES,
    "combined": COMBINED,
    "sizes": SIZES,
}
ARMS = {name: arm for part in PARTS.values() for name, arm in part.items()}


def write_digits(root: Path, counts: Mapping[str, int]) -> None:
    digits = load_digits()
    order, taken = np.random.default_rng(0).permutation(len(digits.images)), 0
    for split, count in counts.items():
        for i in order[taken : taken + count]:
            folder = root / split / str(digits.target[i])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = Image.fromarray((digits.images[i] * 255 / 16).astype(np.uint8)).convert("RGB")
            pixels.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{i:04d}.png")
        taken += count


def folder(task: str) -> Path:
    """The images of a task, drawn if they are not there yet."""
    place = places.cache_dir() / "finetune" / task
    if place.exists():
        return place
    staging = place.with_name(f".tmp-{task}-{os.getpid()}")
    if task == "shapes":
        synthetic.write(staging, 64, {"train": 400, "val": 150, "test": 2000}, name="synthetic")
    elif task == "digits":
        write_digits(staging, {"train": 200, "val": 150, "test": 1400})
    else:
        write_photographs(staging, 32, 250)
        for kind in [*(staging / "train").iterdir()]:
            (staging / "val" / kind.name).mkdir(parents=True)
            for file in sorted(kind.iterdir())[13:]:
                shutil.move(file, staging / "val" / kind.name / file.name)
    os.replace(staging, place)
    return place


def settings_of(task: str, arm: Arm, seed: int, arch: str, file: Path) -> tuple[Settings, Strategy, int | None]:
    size, usual = TASKS[task]
    strategy = arm.strategy(size)
    base = {
        "data_root": str(folder(task)),
        "arch": arch,
        "weights": file,
        "seed": seed,
        "crop_scale": CROPS[task],
        **usual,
    }
    base |= {"log_with": "none", "num_workers": 1, "keep": 2, "freeze_bn": False}
    own = dict(arm.settings)
    found = finetuning(Settings(**base), strategy).settings
    if own.get("learning_rate") == ANY_BATCH:
        own["learning_rate"] = math.sqrt(64 / found.batch_size)
    for name in own.keys() & {"learning_rate", "epochs"}:
        usual_value = getattr(found, name)
        relative = arm not in GRID.values()
        own[name] = type(usual_value)(own[name] * usual_value) if relative else own[name]
    given = {name: value for name, value in {**base, **own}.items() if value is not FILLED}
    return Settings(**given), strategy, arm.head_epochs


def carry_out(task: str, name: str, seed: int, arch: str, file: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    started, arm = time.perf_counter(), ARMS[name]
    made = finetuning(*settings_of(task, arm, seed, arch, file))
    with (
        tempfile.TemporaryDirectory() as home,
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        settings = made.settings.model_copy(update={"output_dir": Path(home) / "run"})
        if name == "no average":
            settings = settings.model_copy(update={"ema_decay": None, "ema_warmup": False})
        if arm.find:
            rate = find_rate(settings, made.strategy).learning_rate
            settings = settings.model_copy(update={"learning_rate": rate})
        summary = train(settings, made.strategy)
    val, test = (summary[split][summary["selection"]]["top1"] for split in ("val", "test"))
    seconds = time.perf_counter() - started
    return {
        "model": arch,
        "task": task,
        "arm": name,
        "seed": seed,
        "val": val,
        "test": test,
        "seconds": round(seconds, 1),
    }


def rows() -> list[dict[str, str]]:
    if not ROWS.exists():
        return []
    with ROWS.open() as stream:
        return [*csv.DictReader(stream)]


def scores(model: str) -> dict[tuple[str, str], dict[int, tuple[float, float]]]:
    """Validation and test score by task and arm, then by seed."""
    known: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for row in rows():
        if row["model"] == model:
            both = float(row["val"]), float(row["test"])
            known.setdefault((row["task"], row["arm"]), {})[int(row["seed"])] = both
    return known


def finalists(model: str, task: str) -> set[str]:
    """The settings of the grid that do best with the first seeds, on validation images."""
    known = scores(model)

    def trial(name: str) -> float:
        return statistics.mean(known[task, name][seed][0] for seed in range(TRIAL_SEEDS))

    return {*sorted(GRID, key=trial)[-FINALISTS:]}


def best_of_grid(model: str, task: str) -> str:
    """The setting of the grid with the best mean on validation images, of those with all seeds; empty: none has."""
    known = scores(model)
    means = {
        name: statistics.mean(found[seed][0] for seed in SEEDS)
        for name in GRID
        if {*SEEDS} <= (found := known.get((task, name), {})).keys()
    }
    return max(means, key=lambda name: means[name], default="")


def paired(values: Mapping[int, float], usual: Mapping[int, float]) -> str:
    """Mean difference, and its 95% interval over the seeds that both have."""
    differences = [values[seed] - usual[seed] for seed in values.keys() & usual.keys()]
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.1f}"
    half = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def table(title: str, known: Mapping[tuple[str, str], Mapping[int, float]], first: str, names: Sequence[str]) -> None:
    """Print the mean of the first arm, and the paired differences of the others; nothing where it has no rows yet."""
    if not all((task, first) in known for task in TASKS):
        return
    print(f"\n{title}\n\n| arm | " + " | ".join(TASKS) + " |\n|---|" + "---|" * len(TASKS))
    means = (f"{statistics.mean(known[task, first].values()):.1f}" for task in TASKS)
    print(f"| {first} | " + " | ".join(means) + " |")
    for name in names:
        cells = (paired(values, known[task, first]) if (values := known.get((task, name))) else "" for task in TASKS)
        print(f"| {name} | " + " | ".join(cells) + " |")


def report(model: str) -> None:
    """Print tables of all arms, and the best of the grid by validation."""
    known = scores(model)
    val, tests = (
        {key: {seed: both[split] for seed, both in found.items() if seed in SEEDS} for key, found in known.items()}
        for split in (0, 1)
    )
    table("Test, learned statistics", tests, START, [DEFAULTS, *CHOICES])
    table("Test, against the defaults", tests, DEFAULTS, [*COMBINED, *SIZES, *CHOICES, *GRID])
    table("Validation, against the defaults", val, DEFAULTS, [START, *COMBINED, *SIZES])
    for task in TASKS:
        if (best := best_of_grid(model, task)) and (task, DEFAULTS) in tests:
            usual, other = ({seed: both[1] for seed, both in known[task, arm].items()} for arm in (DEFAULTS, best))
            gain = paired(usual, other)
            print(f"{task}: best of {len(GRID)} on validation: {best}; the defaults against it {gain}")


def of_seed(model: str, task: str, seed: int, parts: Sequence[str]) -> list[str]:
    """The arms of some parts that a task is trained with."""
    if seed in GATE_SEEDS:
        best = best_of_grid(model, task) if "grid" in parts else ""
        return [DEFAULTS, best] if best else []
    out = {*GRID} - finalists(model, task) if seed >= TRIAL_SEEDS and "grid" in parts else set()
    return [name for part in parts for name in PARTS[part] if name not in out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--arch", default="test_resnet")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if options.report:
        report(options.arch)
        return
    file = options.weights or weights_of_characters()
    done = {(row["model"], row["task"], row["arm"], int(row["seed"])) for row in rows()}
    for task in options.tasks:
        folder(task)
    failed = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for seed in (*range(options.seeds), *GATE_SEEDS):
            asked = {task: of_seed(options.arch, task, seed, options.parts) for task in options.tasks}
            cases = [(task, name, seed) for task, names in asked.items() for name in names]
            cases = [case for case in cases if (options.arch, *case) not in done]
            for future in as_completed([pool.submit(carry_out, *case, options.arch, file) for case in cases]):
                if error := future.exception():  # the other cases go on
                    failed += 1
                    print(f"failed: {error!r}", flush=True)
                    continue
                append_row(ROWS, COLUMNS, row := future.result())
                print(json.dumps(row), flush=True)
    if failed:
        raise SystemExit(f"{failed} cases failed: start again for them")


if __name__ == "__main__":
    main()
