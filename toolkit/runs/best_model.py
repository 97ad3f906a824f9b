"""The best model of a run: one safetensors file with its metadata, replaced by one rename and verified when read."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from toolkit.runs.checkpoint import STAGED, Tensors, bytes_of, on_host
from toolkit.system import files, storage
from toolkit.system.errors import InputError, SaveError

BEST = "model.safetensors"


def save(folder: Path, model: Tensors, metadata: Mapping[str, Any]) -> None:
    """Replace the exported best model and its metadata; a reader sees the old or the new file. Raises SaveError."""
    staging, final = folder / f"{STAGED}{BEST}", folder / BEST
    try:
        folder.mkdir(exist_ok=True)
        tensors = on_host(model)
        # One key, because safetensors writes several keys in any order.
        save_file(tensors, staging, metadata={"facts": json.dumps({**metadata, "sha256": _hash_of(tensors)})})
        files.sync(staging)
        os.replace(staging, final)
        files.sync(folder)
    except (OSError, SafetensorError) as error:
        size = f"{bytes_of(model)} bytes"
        raise SaveError(
            f"the best model could not be written: {final}, {size}: {storage.explain(error, final)}"
        ) from None


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The best model's tensors and metadata; raises InputError if the file cannot be read or was changed."""
    try:
        with safe_open(folder / BEST, "pt") as file:  # opened once: it may be replaced meanwhile
            metadata = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _hash_of(tensors) != metadata.pop("sha256"):
            raise ValueError("it was changed since it was written")
        return tensors, metadata
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(
            f"{folder / BEST}: the best model cannot be read: {storage.explain(error)}; if it is lost or damaged, the "
            "command that trained it writes it again from its checkpoint"
        ) from None


def _hash_of(tensors: Tensors) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()
