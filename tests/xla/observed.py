"""A recipe, that writes how many graphs XLA has compiled after each step: observed.py FILE RECIPE FLAGS ..."""

import runpy
import sys
from pathlib import Path
from typing import Any

import torch_xla.debug.metrics as metrics

from toolkit.training import loop

log, *sys.argv = sys.argv[1:]
train_step = loop.train_step


def observed(state: Any, batch: Any, *more: Any) -> Any:
    loss = train_step(state, batch, *more)
    compiled = metrics.metric_data("CompileTime")
    with Path(log).open("a") as stream:  # what the step itself compiles shows after the next one
        stream.write(f"{batch.number} {'+'.join(map(str, batch.step.sizes))} {compiled[0] if compiled else 0}\n")
    return loss


loop.train_step = observed
runpy.run_path(sys.argv[0], run_name="__main__")
