"""Run state in and out: safetensors and JSON, committed by one rename, verified on load. Nothing is pickled."""

import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit import storage
from toolkit.errors import InputError

SCHEMA = 1
KEEP = 2
BEST = "model.safetensors"


@dataclass
class Progress:
    """All of a run's state that is neither tensor nor a function of the step."""

    step: int = 0  # optimizer steps done
    images_seen: int = 0
    best_top1: float | None = None  # in percent, at the selection size
    best_epoch: int | None = None
    reference_top1: float | None = None  # what patience and plateau compare with, in the last phase
    stale_epochs: int = 0  # since it was last exceeded by min_delta
    plateau_epochs: int = 0
    plateau_factor: float = 1.0
    stopped_early: bool = False
    train_seconds: float = 0.0
    wall_seconds: float = 0.0


def _split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as named tensors and the JSON that is left."""
    tensors, rest = {}, {"param_groups": state["param_groups"], "state": {}}
    for index, entry in state["state"].items():
        rest["state"][index] = {}
        for name, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous().clone()
            else:
                rest["state"][index][name] = value
    return tensors, rest


def _join_optimizer(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(entry) for index, entry in rest["state"].items()}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state[int(index)][name] = tensor
    return {"param_groups": rest["param_groups"], "state": state}


def generator_state() -> dict[str, Tensor]:
    """The states of this process's global generators."""
    version, keys, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *keys], dtype=torch.int64),
        "numpy": torch.tensor(
            [*legacy["state"]["key"].tolist(), legacy["state"]["pos"], legacy["has_gauss"]], dtype=torch.int64
        ),
        "gauss": torch.tensor([gauss or 0.0, float(gauss is not None), legacy["gauss"]], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    gauss, has_gauss, cached = states["gauss"].tolist()
    version, *keys = states["python"].tolist()
    random.setstate((version, tuple(keys), gauss if has_gauss else None))
    *words, position, numpy_has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, numpy_has_gauss, cached))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds, as read back."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    progress: Progress
    scaler: dict[str, Any] | None
    data: str  # a hash of the data it was trained on
    generators: dict[str, Tensor] | None  # None: saved by fewer processes than there are now


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def save(
    folder: Path,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    progress: Progress,
    scaler: Mapping[str, Any] | None,
    data: str,
) -> None:
    """Write everything but the generators into a staging folder; called by rank 0. `data` is a hash of what is seen."""
    save_file(_on_cpu(model), folder / "model.safetensors")
    tensors, rest = _split_optimizer(optimizer)
    save_file(tensors, folder / "optimizer.safetensors")
    (folder / "optimizer.json").write_text(json.dumps(rest))
    (folder / "trainer.json").write_text(
        json.dumps({"progress": asdict(progress), "scaler": scaler, "data": data}, indent=2)
    )


def save_generators(folder: Path, rank: int) -> None:
    """Write this process's generators into the staging folder; called by every rank."""
    save_file(generator_state(), folder / "rng" / f"rank-{rank:05d}.safetensors")


def checkpoint_path(root: Path, step: int) -> Path:
    return root / f"step-{step:09d}"


def staging_path(root: Path, step: int) -> Path:
    return root / f".tmp-step-{step:09d}"


def stage(root: Path, step: int) -> Path:
    """An empty folder beside the final one, on the same file system."""
    staging = staging_path(root, step)
    shutil.rmtree(staging, ignore_errors=True)
    (staging / "rng").mkdir(parents=True)
    return staging


def commit(staging: Path, step: int) -> Path:
    """Hash, sync and rename; only then older checkpoints go."""
    root, final = staging.parent, checkpoint_path(staging.parent, step)
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    manifest = {
        "schema": SCHEMA,
        "step": step,
        "files": {
            str(path.relative_to(staging)): {"bytes": path.stat().st_size, "sha256": storage.sha256(path)}
            for path in files
        },
    }
    storage.write_json(staging / "MANIFEST.json", manifest)
    storage.write_text(staging / "COMMITTED", storage.sha256(staging / "MANIFEST.json") + "\n")
    for path in (*files, staging / "rng", staging):
        storage.sync(path)
    shutil.rmtree(final, ignore_errors=True)  # the same step of an earlier attempt, about to be repeated
    os.replace(staging, final)
    storage.sync(root)
    for old in committed(root)[:-KEEP]:
        shutil.rmtree(old)
    return final


def is_committed(path: Path) -> bool:
    """Whether the folder was committed whole: its mark fits its manifest, and all files have their sizes."""
    try:
        if (path / "COMMITTED").read_text().strip() != storage.sha256(path / "MANIFEST.json"):
            return False
        files = json.loads((path / "MANIFEST.json").read_text())["files"]
        return all((path / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError):
        return False


def committed(root: Path) -> list[Path]:
    """The committed checkpoints under a run's `checkpoints/`, oldest step first."""
    return [path for path in sorted(root.glob("step-*")) if is_committed(path)]


def load(path: Path, rank: int) -> Snapshot:
    """Read a checkpoint; raises InputError naming the file that is not what was committed."""
    if not is_committed(path):
        raise InputError(f"{path}: not a committed checkpoint")
    for name, entry in json.loads((path / "MANIFEST.json").read_text())["files"].items():
        if storage.sha256(path / name) != entry["sha256"]:
            raise InputError(f"{path / name}: the file changed since it was saved; remove {path} to use the one before")
    trainer = json.loads((path / "trainer.json").read_text())
    own = path / "rng" / f"rank-{rank:05d}.safetensors"
    return Snapshot(
        model=load_file(path / "model.safetensors"),
        optimizer=_join_optimizer(
            load_file(path / "optimizer.safetensors"), json.loads((path / "optimizer.json").read_text())
        ),
        progress=Progress(**trainer["progress"]),
        scaler=trainer["scaler"],
        data=trainer["data"],
        generators=load_file(own) if own.exists() else None,
    )


def save_best(folder: Path, model: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replace the exported best model, one file with its facts in it; a reader finds the old one or the new one."""
    folder.mkdir(exist_ok=True)
    staging, final = folder / ".tmp-model.safetensors", folder / BEST
    save_file(_on_cpu(model), staging, metadata={"facts": json.dumps(dict(facts))})
    storage.sync(staging)
    os.replace(staging, final)
    storage.sync(folder)


def load_best(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The best model's tensors and facts; raises InputError where they cannot be read."""
    try:
        with safe_open(folder / BEST, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
        return load_file(folder / BEST), facts
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / BEST}: the best model cannot be read: {error}") from None
