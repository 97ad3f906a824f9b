"""Combinations of strategy, task, processes and what else shapes a run, each a command of a recipe.

`python combinations.py DATA FOLDER NAME ...` in each of two processes trains those, and again from the middle.
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from toolkit.commands import train_multi, train_single
from toolkit.config.tables import TABLES

SIZES = {"sandwich": "12,16,24"}  # of strategies that need others than 16 and 24
AROUND = {"alone": (), "head first": ("--head-epochs", "1"), "finish": ("--finish-size", "32", "--finish-epochs", "1")}
AROUND["both"] = (*AROUND["head first"], *AROUND["finish"])
WITH: dict[str, tuple[str, ...]] = {  # what else is on
    "balanced sampling": ("--sampling", "balanced", "--mixup", "0.2"),
    "frozen BatchNorm": ("--freeze-bn", "--cutmix", "1"),
    "layer decay, average": ("--layer-decay", "0.7", "--ema-decay", "0.9"),
    "padded": ("--fit", "pad", "--crop-scale", "0.6", "--random-erasing", "0.3"),
    "frozen below a stage": ("--unfreeze-from", "layer3", "--backbone-lr-scale", "0.5"),
    "weighed classes": ("--class-weights", "effective", "--class-weights-power", "0.5", "--label-smoothing", "0.1"),
    "asymmetric loss": ("--loss", "asl", "--gradient-clip", "1"),
    "linear probe": ("--freeze", "--sampling", "balanced", "--sampling-power", "0.5"),
}
TASKS = ("classification", "multilabel")  # of which there is data
EPOCHS, BATCH, IMAGES = 4, 16, 52  # 3 steps an epoch, 4 images are left out
STEPS, MIDDLE = 12, 5  # a checkpoint of the second epoch
USUAL = (
    *("--arch", "test_resnet", "--epochs", str(EPOCHS), "--batch-size", str(BATCH), "--warmup-epochs", "0.5"),
    *("--dropout-rate", "0.2", "--num-workers", "1", "--no-amp", "--log-with", "none", "--record-samples"),
    *("--save-every-steps", str(MIDDLE), "--keep", "20"),
)


class Combination(NamedTuple):
    strategy: str
    around: str
    task: str
    more: str

    @property
    def name(self) -> str:
        return "-".join(self).replace(" ", "_").replace(",", "")

    def train(self, data: Path, output: Path) -> None:
        """As a recipe does it."""
        main = train_single.main if self.strategy == "single" else train_multi.main
        if code := main(self.words(data, output)):
            raise SystemExit(f"{self.name}: exit code {code}")

    def words(self, data: Path, output: Path) -> list[str]:
        several = ("--strategy", self.strategy, "--scales", SIZES.get(self.strategy, "16,24"))
        sizes = ("--img-size", "16") if self.strategy == "single" else several
        images = ("--data-root", str(data / self.task), "--task", self.task)
        return [*images, *USUAL, *sizes, "--output-dir", str(output), *AROUND[self.around], *WITH[self.more]]


def _all() -> list[Combination]:
    """Every strategy, alone and with what goes around it, for every task; of what else is on, one after the other."""
    found, extras = [], [*WITH]
    for i, strategy in enumerate(TABLES["strategy"]):
        for j, around in enumerate(AROUND):
            for k, task in enumerate(TABLES["task"]):
                usable = [more for more in extras if not (more == "linear probe" and "--head-epochs" in AROUND[around])]
                found.append(Combination(strategy, around, task, usable[(3 * i + 2 * j + 5 * k) % len(usable)]))
    return found


ALL = {combination.name: combination for combination in _all()}


def representatives() -> list[str]:
    """As few combinations as have every strategy, every task, all that goes around and all that is on."""
    chosen: list[str] = []
    missing = {part for combination in ALL.values() for part in combination}
    while missing:
        best = max(ALL, key=lambda name: len(missing & {*ALL[name]}))
        chosen.append(best)
        missing -= {*ALL[best]}
    return chosen


def make_data(folder: Path) -> Path:
    """Images of noise with up to three colors in uneven numbers; a folder per task, which tells them by its labels."""
    rng, names = np.random.default_rng(0), ("red", "green", "blue")
    for task in TASKS:
        (folder / task).mkdir(parents=True)
    for split, count in {"train": IMAGES, "val": 10, "test": 11}.items():
        rows: dict[str, list[str]] = {task: ["filepath,label"] for task in TASKS}
        for i in range(count):
            colors = [color for color, share in enumerate((0.7, 0.3, 0.15)) if rng.random() < share or i == color]
            pixels = rng.integers(0, 130, (26, 34, 3), dtype=np.uint8)
            pixels[..., colors] += 90
            for task in TASKS:
                Image.fromarray(pixels).save(folder / task / f"{split}{i}.png")
            rows["multilabel"].append(f"{split}{i}.png,{'|'.join(names[color] for color in colors)}")
            rows["classification"].append(f"{split}{i}.png,{names[colors[-1] if colors else 0]}")
        for task, lines in rows.items():
            (folder / task / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def interrupted(whole: Path, output: Path) -> Path:
    """A copy of a finished run as it was in the middle."""
    staging = output.with_name(f".tmp-{output.name}")
    shutil.copytree(whole, staging)
    (staging / "summary.json").unlink()
    for folder in (staging / "checkpoints").iterdir():
        if folder.name > f"step-{MIDDLE:09d}":
            shutil.rmtree(folder)
    staging.rename(output)
    return output


def main(data: Path, folder: Path, names: Sequence[str]) -> None:
    for name in names:
        whole, resumed = folder / name / "whole", folder / name / "resumed"
        ALL[name].train(data, whole)
        if os.environ["RANK"] == "0":
            interrupted(whole, resumed)
        while not resumed.exists():
            time.sleep(0.01)
        ALL[name].train(data, resumed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
