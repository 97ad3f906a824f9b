"""One of two processes of `test_two_ranks.py`: takes every example strategy through its first steps and records them.

torchrun ... worker.py FOLDER writes FOLDER/rank-R.json, by name of the example, and the runs of `interrupt`.
"""

import json
import os
import shutil
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from examples import EPOCHS, EXAMPLES
from torch import Tensor, nn

from toolkit import Settings, Strategy, train
from toolkit.data.loading.batches import load
from toolkit.data.loading.sampler import micro_batches
from toolkit.runs.run_config import config_of
from toolkit.system.preemption import Preemption
from toolkit.training import device
from toolkit.training import run as running
from toolkit.training.parts import make_parts
from toolkit.training.resume import fingerprint_of
from toolkit.training.run import Run
from toolkit.training.run_plan import make_run_plan
from toolkit.training.session import open_run_directory, set_up
from toolkit.training.step import train_step
from toolkit.training.train_state import build_train_state

RATE = 0.01


def digest(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().contiguous().numpy().tobytes())


def parameters(model: nn.Module) -> dict[str, int]:
    return {name: digest(parameter) for name, parameter in model.named_parameters()}


def views_of_all_ranks(run: Run) -> dict[str, list[int]]:
    """What this process would load and derive for the share of each rank, at the first step of every epoch."""
    seen = {}
    for epoch in run.plan.epochs():
        spec = next(run.data.sampler.batch_specs(epoch))
        for rank in range(run.plan.processes):
            for part in micro_batches(spec, run.plan.share(rank, epoch.phase)):
                batch = load(run.data.builder(epoch.phase), part)
                views = run.state.views(batch.images, batch.step.sizes)
                seen[f"step {spec.number}, share of rank {rank}"] = [digest(view) for view in views]
    return seen


def record(settings: Settings, strategy: Strategy) -> dict[str, Any]:
    """Train all steps of the run, looking at the parameters after each of them."""
    accelerator = device.start(settings)
    try:
        run_plan = make_run_plan(accelerator, *make_parts(settings, strategy))
        built = build_train_state(accelerator, run_plan)
        fingerprint = fingerprint_of(
            accelerator, config_of(run_plan.settings, strategy), run_plan.splits, run_plan.steps
        )
        point = open_run_directory(accelerator, settings, "contract", fingerprint)
        run = set_up(accelerator, run_plan, point, built, fingerprint, Preemption())
        model = run.state.model
        found = {"processes": accelerator.num_processes, "views": views_of_all_ranks(run)}
        found |= {"initial": parameters(model), "sizes": [], "ids": [], "parameters": [], "finite": True}
        for epoch in run.plan.epochs():
            run.begin(epoch)
            for batch in run.batches(epoch):
                loss = train_step(run.state, batch, epoch.phase, RATE)
                found["finite"] &= bool(torch.isfinite(loss.total))
                found["sizes"].append(batch.step.sizes)
                found["ids"].append(batch.ids.tolist())
                found["parameters"].append(parameters(model))
                run.state.progress.step = batch.number + 1
        with model.no_sync():  # the control: gradients are not averaged over the ranks
            train_step(run.state, batch, epoch.phase, RATE)
        found["apart"] = parameters(model)
        return found
    finally:
        device.stop()


def interrupt(whole: Settings, folder: Path) -> None:
    """From a finished run, make two that stopped after their first epoch, and go on with them.

    FOLDER/resumed as it should be; FOLDER/forgetful without seeding the generators of rank 1. FOLDER/opened-R.json: the
    files below `checkpoints/` that rank R opened in the former.
    """
    strategy, rank = EXAMPLES["simultaneous"], int(os.environ["RANK"])
    train(whole, strategy)
    opened, place = list[str](), f"{folder}/resumed/checkpoints/"

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(place):
            opened.append(str(arguments[0]).removeprefix(place))

    sys.addaudithook(note)
    for name in ("resumed", "forgetful"):
        if rank == 0:
            staging = folder / f".{name}"
            shutil.copytree(whole.output_dir, staging)
            (staging / "summary.json").unlink()
            shutil.rmtree(max((staging / "checkpoints").iterdir()))
            staging.rename(folder / name)
        while not (folder / name).exists():
            time.sleep(0.01)
        if name == "forgetful" and rank == 1:
            running.seed_generators = lambda *key: None
        train(whole.model_copy(update={"output_dir": folder / name}), strategy)
    (folder / f"opened-{rank}.json").write_text(json.dumps(opened))


def main(folder: Path) -> None:
    tiny = Settings(
        synthetic_size=32,
        synthetic_count=100,
        batch_size=40,  # the remainder is left out
        epochs=EPOCHS,
        num_workers=0,
        label_smoothing=0.1,
        log_with="none",
        output_dir=folder / "whole",
    )
    results = {}
    for name, strategy in EXAMPLES.items():
        results[name] = record(tiny.model_copy(update={"output_dir": folder / name}), strategy)
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(results))
    interrupt(tiny.model_copy(update={"epochs": 2, "dropout_rate": 0.2, "record_samples": True}), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
