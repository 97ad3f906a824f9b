"""A recipe that writes after each step and epoch how many graphs XLA has compiled: observed.py FILE RECIPE FLAGS ..."""

import runpy
import sys
from pathlib import Path
from typing import Any

import torch_xla.debug.metrics as metrics

from toolkit.training import loop

log, *sys.argv = sys.argv[1:]
train_step, end_step, close_epoch = loop.train_step, loop.end_step, loop.close_epoch
sizes = ""


def write(after: str) -> None:
    compiled = metrics.metric_data("CompileTime")
    with Path(log).open("a") as stream:
        stream.write(f"{sizes} {after} {compiled[0] if compiled else 0}\n")


def observed_step(state: Any, batch: Any, *more: Any) -> Any:
    global sizes
    sizes = "+".join(map(str, batch.step.sizes))
    return train_step(state, batch, *more)


def observed_end() -> None:
    end_step()
    write("step")


def observed_epoch(*arguments: Any) -> None:
    close_epoch(*arguments)
    write("epoch")


loop.train_step, loop.end_step, loop.close_epoch = observed_step, observed_end, observed_epoch
runpy.run_path(sys.argv[0], run_name="__main__")
