"""From what learns to a checkpoint's contents, and back: for a resume and for a rollback alike."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from toolkit.data.sources.index import Splits
from toolkit.models import optimizer_state
from toolkit.models.create import copy_state, state_tensors
from toolkit.runs import best_model, checkpoint, state
from toolkit.runs.checkpoint import Contents, load, rank_file, read_manifest
from toolkit.runs.directory import RunDirectory, learned
from toolkit.runs.state import EMA, MODEL, OPTIMIZER, OPTIMIZER_REST, TRAINER, Progress
from toolkit.system.errors import InputError
from toolkit.training import device
from toolkit.training.monitor import RunningMeans, averaged
from toolkit.training.step_plan import StepPlan
from toolkit.training.train_state import TrainState

log = logging.getLogger(__name__)

PACKAGES = ("torch", "accelerate", "timm", "numpy")
# A difference in these lets a run go on, but not to the same bits.
PLACE = ("processes", "micro_batch", "device", "hardware", "precision", *PACKAGES)


def fingerprint_of(
    accelerator: Accelerator, config: Mapping[str, Any], splits: Splits, plan: StepPlan
) -> dict[str, Any]:
    """What a state belongs to; it stands in the manifest and is compared on a resume."""
    return {
        "config": learned(config),
        "data": splits.digests(),
        "classes": [*splits.classes],
        "processes": plan.processes,
        "micro_batch": plan.micro_batch,
        "global_batch": plan.budget.batch_size,
        "device": accelerator.device.type,
        "hardware": device.arithmetic(accelerator),
        "precision": accelerator.mixed_precision,
        **{package: version(package) for package in PACKAGES},
    }


def capture(train_state: TrainState, progress: Progress) -> Contents:
    """Everything that a checkpoint holds but the generators, as copies in host memory."""
    scaler = train_state.accelerator.scaler
    tensors, rest = optimizer_state.split_optimizer(train_state.optimizer.state_dict())
    average = train_state.weights.average()
    return {
        MODEL: optimizer_state.on_cpu(state_tensors(train_state.weights.model)),
        **({EMA: optimizer_state.on_cpu(average)} if average else {}),
        OPTIMIZER: tensors,
        OPTIMIZER_REST: rest,
        TRAINER: {"progress": asdict(progress), "scaler": None if scaler is None else scaler.state_dict()},
    }


def restore(
    start: Path,
    train_state: TrainState,
    running_means: RunningMeans,
    fingerprint: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Put the run's own checkpoint, verified, into the learner, `progress`, and this process's generators and means."""
    accelerator, saved = train_state.accelerator, read_manifest(start)
    own = rank_file(accelerator.process_index)
    held = load(start, (MODEL, EMA, OPTIMIZER, OPTIMIZER_REST, TRAINER, own))
    copy_state(held[MODEL], train_state.weights.model)
    train_state.optimizer.load_state_dict(optimizer_state.join_optimizer(held[OPTIMIZER], held[OPTIMIZER_REST]))
    _lay_out_alike(train_state.optimizer)
    if accelerator.scaler is not None and held[TRAINER]["scaler"] is not None:
        accelerator.scaler.load_state_dict(held[TRAINER]["scaler"])
    progress.become(Progress(**held[TRAINER]["progress"]))
    train_state.weights.restore(held.get(EMA, {}), progress.optimizer_updates)
    train_state.non_finite.forget()
    # One that an earlier version did not note is taken to be the same.
    changes = [
        f"{name} {saved[name]} -> {fingerprint[name]}"
        for name in PLACE
        if saved.get(name, fingerprint[name]) != fingerprint[name]
    ]
    if changes:
        progress.inexact.append(f"step {progress.step}: {', '.join(changes)}")
        log.info("resume    not bit for bit: %s", ", ".join(changes))
    if all(saved[name] == fingerprint[name] for name in ("processes", "device")):
        state.restore_generators(held[own])
        running_means.restart(held[own], accelerator.device)
    else:
        parts = load(start, [rank_file(rank) for rank in range(saved["processes"])])
        running_means.restart(averaged([*parts.values()]), accelerator.device)
        state.seed_generators(fingerprint["config"]["seed"], progress.step, accelerator.process_index)


def _lay_out_alike(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's tensors the memory format of their parameters, as they had it: else steps are slower."""
    for parameter, entry in optimizer.state.items():
        for name, value in entry.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape == parameter.shape:
                entry[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def restore_best(directory: RunDirectory, progress: Progress) -> None:
    """See that `best/` holds the model that `progress` calls the best; for rank 0 alone.

    A run can be killed between a checkpoint and its export, or go on from a checkpoint before the last export.
    """
    step = progress.best_step
    if step is None:
        return
    try:
        if best_model.load(directory.best)[1]["step"] == step:
            return
    except InputError:
        pass  # not there, or damaged: below it is written anew
    source = directory.store.path(step)
    try:
        checkpoint.check(source)
        best_model.save(directory.best, state.exported(load(source, (MODEL, EMA))), progress.best)
        log.info("best      exported anew from %s", source)
    except InputError as error:
        log.warning("the best model so far, of epoch %s, is lost: %s", progress.best["epoch"], error)
        progress.best_top1, progress.best = None, {}
        progress.inexact.append(f"step {progress.step}: the best model so far was lost")
