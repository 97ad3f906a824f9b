"""Capture the training state in a snapshot and restore it, for a resume or a rollback."""

import copy
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from toolkit.data.sources.index import Splits
from toolkit.models import optimizer_state
from toolkit.models.collectives import tensors_from_main
from toolkit.models.multiview import copy_state, inherited_names, state_tensors
from toolkit.runs import best_model, checkpoint
from toolkit.runs.checkpoint import read_manifest
from toolkit.runs.directory import RunDirectory
from toolkit.runs.progress import Progress
from toolkit.runs.run_config import learned
from toolkit.runs.snapshot import Snapshot, read_exported, read_snapshot
from toolkit.system.errors import InputError
from toolkit.training import device
from toolkit.training.main_work import on_main
from toolkit.training.step_plan import StepPlan
from toolkit.training.train_state import TrainState

log = logging.getLogger(__name__)

PACKAGES = ("torch", "accelerate", "timm", "numpy")
# A run resumes despite a difference in these, but not bit-exactly.
PLACE = ("processes", "micro_batch", "device", "hardware", "precision", *PACKAGES)


def fingerprint_of(
    accelerator: Accelerator,
    config: Mapping[str, Any],
    splits: Splits,
    plan: StepPlan,
    code: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Settings, data and environment of a state; stored in the manifest and compared on a resume.

    `code`: SHA-256 of the source files of the user's own parts, by module.
    """
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
        "code": {**(code or {})},
        "inherits_norms": True,  # the rule of TrainState.inherit_norms, which earlier versions do not have
        "draws_by_step": True,  # what Run.batches seeds; in earlier versions, checkpoints held states of generators
        "selects_raw": True,  # of averaged and raw weights, the better ones are selected; in earlier versions, averaged
        **{package: version(package) for package in PACKAGES},
    }


def capture(state: TrainState) -> Snapshot:
    """Copy to host memory everything that a checkpoint holds, except running means."""
    scaler = state.accelerator.scaler
    tensors, rest = optimizer_state.split_optimizer(state.optimizer.state_dict())
    return Snapshot(
        model=optimizer_state.on_cpu(state_tensors(state.weights.model)),
        average=optimizer_state.on_cpu(state.weights.average()),
        optimizer=tensors,
        optimizer_rest=rest,
        progress=copy.deepcopy(state.progress),
        scaler=None if scaler is None else scaler.state_dict(),
    )


def restore(start: Path, state: TrainState, fingerprint: Mapping[str, Any], plan: StepPlan) -> None:
    """Load the run's own, verified checkpoint into the training state; every rank must call it."""
    accelerator, progress = state.accelerator, state.progress
    saved, snapshot = _read_on_main(accelerator, start)
    try:
        copy_state(snapshot.model, state.weights.model)
    except RuntimeError as error:  # the user's own code makes another model now
        raise InputError(
            f"{start}: {error}; restore the model's code, or start another run with --output-dir"
        ) from None
    state.optimizer.load_state_dict(snapshot.optimizer_state())
    _lay_out_alike(state.optimizer)
    if accelerator.scaler is not None and snapshot.scaler is not None:
        accelerator.scaler.load_state_dict(dict(snapshot.scaler))
    progress.become(snapshot.progress)
    state.weights.restore(snapshot.average, progress.optimizer_updates)
    rank, alike = accelerator.process_index, saved["processes"] == accelerator.num_processes
    state.running_means.restart({name: of[rank] if alike else of.mean(0) for name, of in snapshot.means.items()})
    state.non_finite.forget()
    # An entry that an earlier version did not record counts as unchanged.
    changes = [
        f"{name} {saved[name]} -> {fingerprint[name]}"
        for name in PLACE
        if saved.get(name, fingerprint[name]) != fingerprint[name]
    ] + changed_code(saved.get("code"), fingerprint["code"])
    if "inherits_norms" not in saved and _will_inherit(state, plan):
        changes.append("normalization of new scales starts from the nearest trained one now")
    if "selects_raw" not in saved and len(state.weights.states()) > 1:
        changes.append("the better of averaged and raw weights is selected now")
    if "draws_by_step" not in saved and (any(state.drop_rates.now()) or fingerprint["code"]):
        changes.append("dropout and your own code draw other random numbers now")
    if changes:
        progress.inexact.append(f"step {progress.step}: {', '.join(changes)}")
        log.info("resume    not bit-exact: %s", ", ".join(changes))


def _read_on_main(accelerator: Accelerator, start: Path) -> tuple[dict[str, Any], Snapshot]:
    """The manifest and the state in a checkpoint, which rank 0 reads and sends to all others."""
    read: list[Snapshot] = []

    def described() -> tuple[dict[str, Any], Snapshot]:
        """The same with tensors that have a shape and no values."""
        read.append(read_snapshot(start))
        return read_manifest(start), read[0].each(lambda tensors: {name: t.to("meta") for name, t in tensors.items()})

    saved, snapshot = on_main(accelerator, described)
    whole = read[0] if accelerator.is_main_process else snapshot
    return saved, whole.each(lambda tensors: tensors_from_main(tensors, accelerator.device))


def changed_code(before: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """Differences between the digests of the user's own code; none if they were not recorded before."""
    known = now if before is None else before
    return [f"code of {name} changed" for name in sorted({*known, *now}) if known.get(name) != now.get(name)]


def _will_inherit(state: TrainState, plan: StepPlan) -> bool:
    """Whether a phase that is still to begin trains the normalization of a scale first."""
    network: Any = state.weights.model
    starts = (epoch for epoch in plan.epochs() if not epoch.first and epoch.start >= state.progress.step)
    return any(inherited_names(network, epoch.phase.sizes, plan.sizes_before(epoch.phase)) for epoch in starts)


def _lay_out_alike(optimizer: torch.optim.Optimizer) -> None:
    """Restore the memory format of the optimizer's tensors to that of their parameters: otherwise steps are slower."""
    for parameter, entry in optimizer.state.items():
        for name, value in entry.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape == parameter.shape:
                entry[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def restore_best(directory: RunDirectory, progress: Progress) -> None:
    """Make `best/` hold the model that `progress` calls the best, if it does not; rank 0 only.

    A run can be killed between a checkpoint and its export, or resume from a checkpoint before the last export.
    """
    step = progress.best_step
    if step is None:
        return
    try:
        if best_model.load(directory.best)[1]["step"] == step:
            return
    except InputError:
        pass  # missing or damaged: exported again below
    source = directory.store.path(step)
    try:
        checkpoint.check(source)
        best_model.save(directory.best, read_exported(source, progress), progress.best)
        log.info("best      exported again from %s", source)
    except InputError as error:
        log.warning("the best model so far, of epoch %s, is lost: %s", progress.best["epoch"] + 1, error)
        progress.best_score, progress.best = None, {}
        progress.inexact.append(f"step {progress.step}: the best model so far was lost")
