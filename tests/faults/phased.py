"""A run of twenty phases that measures itself: python phased.py OUTPUT NOTES KIND [leak].

KIND: `repeating` goes up and down between two sizes, loaded by threads; `growing` has a size of its own in each phase,
loaded by processes, and has its page drawn in each. Writes a line of JSON to NOTES at each epoch's end. `leak`: each
epoch leaves behind a thread, a process, a descriptor and 2 MB, so that the measurement is seen to tell.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch
from torch import Tensor

from toolkit import Progressive, Settings, Strategy, train
from toolkit.runs import report
from toolkit.strategies.base import BoundTask, Budget, EvalSpec, Loss, NormPolicy, Phase, Step, at_size
from toolkit.system.exit_codes import exit_code
from toolkit.training import loop

PHASES = 20
STEPS = 5  # in each
LEAKED_BYTES = 2_000_000
leaked: list[Any] = []


@dataclass(frozen=True)
class UpAndDown(Strategy):
    """One size in each phase, the two of them in turn."""

    name: ClassVar[str] = "up-and-down"

    scales: tuple[int, int] = (32, 48)

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        per_epoch = budget.steps_per_epoch
        return tuple(Phase(i, 1, per_epoch, (self.scales[i % 2],), budget.batch_size) for i in range(budget.epochs))

    def step(self, phase: Phase, i: int) -> Step:
        return Step(phase.sizes, phase.batch_size)

    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: BoundTask, phase: Phase, step: Step) -> Loss:
        return Loss(task.loss(logits[0], targets), {})

    def eval_specs(self) -> tuple[EvalSpec, ...]:
        return tuple(map(at_size, self.scales))

    def selection(self) -> EvalSpec:
        return at_size(self.scales[-1])

    def norm(self) -> NormPolicy:
        return NormPolicy("off", self.scales)


STRATEGIES = {
    "repeating": UpAndDown(),
    "growing": Progressive(tuple(range(29, 29 + PHASES)), eval_scales=(24, 48)),
}


def counts() -> dict[str, int]:
    own = psutil.Process()
    return {"threads": own.num_threads(), "children": len(own.children(recursive=True))}


def leak() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    leaked.append(subprocess.Popen(["sleep", "600"]))
    leaked.append(os.open(os.devnull, os.O_RDONLY))
    leaked.append(torch.ones(LEAKED_BYTES, dtype=torch.uint8))


def measure(notes: Path, leaking: bool) -> None:
    """In the last step of each epoch, while its loader works; and at its end, once its checkpoint is written."""
    within: dict[str, int] = {}
    train_step, close = loop.train_step, loop.close_epoch

    def looking(*words: Any) -> Any:
        within.update(counts())
        return train_step(*words)

    def closing(run: Any, epoch: Any, *words: Any) -> None:
        close(run, epoch, *words)
        run.records.saver.join(run.state.progress.step)
        run.records.saver._writer.submit(int).result()  # a thread keeps its last work (4.4 MB) until the next
        if leaking:
            leak()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed, but not given back, is not held
        line = {
            "phase": epoch.phase.index,
            "within": dict(within),
            "after": counts(),
            "descriptors": psutil.Process().num_fds(),
            "bytes": psutil.Process().memory_info().rss,
        }
        with notes.open("a") as file:
            file.write(json.dumps(line) + "\n")

    loop.train_step, loop.close_epoch = looking, closing


def main(output: Path, notes: Path, kind: str, leaking: bool) -> None:
    measure(notes, leaking)
    report.REFRESH_S = 0.0 if kind == "growing" else float("inf")  # whatever the machine's pace
    settings = Settings(
        synthetic_count=8 * STEPS,
        synthetic_size=48,
        batch_size=8,
        epochs=PHASES,
        num_workers=2,
        rand_augment=5.0 if kind == "growing" else 0.0,
        log_with="none",
        output_dir=output,
    )
    train(settings, STRATEGIES[kind])


if __name__ == "__main__":
    output, notes, kind, *rest = sys.argv[1:]
    code = exit_code(lambda: main(Path(output), Path(notes), kind, bool(rest)))
    for left in leaked:
        if isinstance(left, subprocess.Popen):
            left.kill()
    sys.exit(code)
