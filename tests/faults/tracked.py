"""A run with a dashboard that a fault is put into: python tracked.py OUTPUT LOG_WITH FAULT.

Prints how long the dashboard's start and its end held up the run. FAULT happens in the middle of training: `service`:
wandb's process is killed; `folder`: the dashboard's folder is taken away; `draw`: the dashboard draws from the
generator that dropout uses, which it must not; `stop`: the run is asked to stop; `none`.
"""

import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from toolkit import Settings, SingleScale, train
from toolkit.runs.dashboards import Tracking, on_wandb
from toolkit.system.exit_codes import exit_code
from toolkit.training import loop

FAULT_AT = 3


def happen(fault: str, folder: Path) -> None:
    if fault == "service":
        found = [child for child in psutil.Process().children(recursive=True) if "wandb" in " ".join(child.cmdline())]
        assert found
        for child in found:
            child.kill()
        psutil.wait_procs(found, 10)
    elif fault == "folder":
        assert folder.is_dir()
        shutil.rmtree(folder)
        folder.write_text("no folder any more")
    elif fault == "draw":
        torch.rand(1)
    elif fault == "stop":
        signal.raise_signal(signal.SIGTERM)


def timed(name: str) -> None:
    """Have a method of Tracking say how long it took."""
    inner = getattr(Tracking, name)

    def outer(*words: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return inner(*words, **named)
        finally:
            print(f"{name} took {time.perf_counter() - started:.2f} s", flush=True)

    setattr(Tracking, name, outer)


def main(output: Path, log_with: str, fault: str) -> dict[str, Any]:
    timed("start")
    timed("finish")
    train_step, steps = loop.train_step, 0

    def counting(*words: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == FAULT_AT:
            happen(fault, output / log_with)
        return train_step(*words)

    loop.train_step = counting
    loop.LOG_EVERY_STEPS_OF_SHORT = 2
    on_wandb.FINISH_S = 6.0
    settings = Settings(
        synthetic_count=120,
        synthetic_size=32,
        batch_size=12,
        epochs=2,
        dropout_rate=0.3,
        num_workers=1,
        log_with=log_with,
        wandb_artifact=log_with == "wandb",
        output_dir=output,
    )
    return train(settings, SingleScale(16))


if __name__ == "__main__":
    output, log_with, fault = sys.argv[1:]
    sys.exit(exit_code(lambda: main(Path(output), log_with, fault)))
