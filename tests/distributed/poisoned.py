"""Training that meets a NaN at one image; also one of two processes: torchrun ... poisoned.py DATA OUTPUT WHERE [SEED].

With a SEED, that of the order, the run goes back to its last checkpoint; else it stops.
"""

import csv
import os
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from toolkit import NonFiniteError, Settings, SingleScale, train
from toolkit.data.sources import shapes, synthetic
from toolkit.strategies.base import BoundTask, Loss, Phase, Step
from toolkit.system.exit_codes import exit_code

Where = Literal["both", "loss", "gradient", "nowhere"]
POISON = 10  # the label that only one training image has


@dataclass(frozen=True)
class Poisoned(SingleScale):
    """A loss that is not a number where the batch holds the poisoned label: it and its gradient, or either alone.

    `least`: so many images of that label are needed.
    """

    where: Where = "both"
    least: int = 1

    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: BoundTask, phase: Phase, step: Step) -> Loss:
        loss = super().loss(logits, targets, task, phase, step)
        if self.where == "nowhere" or (targets == POISON).sum() < self.least:
            return loss
        if self.where == "loss":
            return replace(loss, total=loss.total + torch.nan)
        nothing = 0 * logits[0].sum()
        # The root of 0 is 0, and its slope infinite.
        return replace(loss, total=loss.total + (nothing.sqrt() if self.where == "gradient" else nothing * torch.nan))


def write_manifest(folder: Path, images: int, poisoned: Collection[int]) -> None:
    """The built-in images by manifest; some of them have a label of their own, as has one to validate with."""
    root = synthetic.prepare(32, images)
    (folder / "images").symlink_to(root)
    for split, rows in (("train", poisoned), ("val", (0,))):
        paths = sorted((root / split).rglob("*.jpg"), key=lambda path: path.name)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["filepath", "label"])
            for row, path in enumerate(paths):
                label = sorted(shapes.CLASSES).index(path.parent.name)
                writer.writerow([Path("images", path.relative_to(root)), POISON if row in rows else label])


def settings(data: Path, output: Path, device_batch_size: int | None = None, seed: int | None = None) -> Settings:
    """With a seed the run is to go back where it diverges."""
    return Settings(
        data_root=str(data),
        arch="test_resnet",
        epochs=3,
        batch_size=40,
        device_batch_size=device_batch_size,
        log_with="none",
        record_samples=True,
        seed=seed or 0,
        on_divergence="stop" if seed is None else "rollback",
        output_dir=output,
    )


def main(data: Path, output: Path, where: Where, seed: int | None) -> None:
    """Leaves OUTPUT.rank-R.txt with the message; waits for the other, as the launcher ends all when one ends."""
    try:
        train(settings(data, output, seed=seed), Poisoned(32, where=where))
    except NonFiniteError as error:
        notes = [output.with_name(f"{output.name}.rank-{rank}.txt") for rank in (0, 1)]
        notes[int(os.environ["RANK"])].write_text(str(error))
        deadline = time.monotonic() + 30
        while not all(note.exists() for note in notes) and time.monotonic() < deadline:
            time.sleep(0.05)
        raise


if __name__ == "__main__":
    data, output, where, *seed = sys.argv[1:]
    sys.exit(exit_code(lambda: main(Path(data), Path(output), where, int(seed[0]) if seed else None)))
