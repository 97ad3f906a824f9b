"""The weights that --weights names: a file, a run's best model or one of its checkpoints, or an exported folder."""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from toolkit.config.data_roots import is_url
from toolkit.models.initial_weights import StoredWeights, names_in_order
from toolkit.runs.best_model import BEST
from toolkit.runs.directory import RunDirectory
from toolkit.runs.mirror.copies import find_weights
from toolkit.runs.snapshot import EMA, MODEL, TRAINER
from toolkit.system import files, places
from toolkit.system.errors import InputError, first_line
from toolkit.system.run_lock import run_of

EXPORTED = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")  # as timm looks in local-dir:
LOCAL = "local-dir:"
AVERAGED = re.compile(r"(^|[._])ema([._]|$)")
# Types of values that trainers save beside the tensors: arguments, and a metric as NumPy has it.
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.float64(0).__reduce__()[0],
    np.dtype,
    type(np.dtype("f8")),
    type(np.dtype("f4")),
]
OF_CLASSES = ("class_to_idx", "label_names", "class_names", "classes")  # keys beside the tensors, in others' files


def find(given: Path | str) -> Path:
    """The file of tensors that --weights names, of a URL a copy; raises InputError if there is none."""
    flag, text = f"--weights {given}", str(given)
    path = find_weights(text) if is_url(text) else places.expanded(text.removeprefix(LOCAL))
    if path.is_file():
        return path
    if not path.is_dir():
        hub = ": for a model of the hub, --arch hf-hub:NAME --pretrained" if text.startswith("hf-hub:") else ""
        raise InputError(f"{flag}: no such file or folder{hub}")
    if run_of(path) != path:  # a checkpoint: those that are evaluated and exported
        raw = _json(path / TRAINER).get("progress", {}).get("best", {}).get("weights") == "raw"
        names: tuple[str, ...] = (MODEL,) if raw else (EMA, MODEL)
    elif RunDirectory(path).config() and (path / "class_map.json").exists():  # others have a config.yaml too
        names = (f"best/{BEST}",)
    else:
        names = EXPORTED
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None and names[0].startswith("best/"):
        raise InputError(f"{flag}: the run has no best model yet: its first epoch is not evaluated")
    if found is None:
        raise InputError(f"{flag}: neither a run nor a folder with {', '.join(EXPORTED)}")
    return found


def sha256(given: Path | str) -> str | None:
    """SHA-256 of the file that --weights names; None if there is none."""
    try:
        return files.sha256(find(given))
    except (InputError, OSError):
        return None


def read(given: Path | str) -> StoredWeights:
    """The weights that --weights names; raises InputError if they cannot be read. Runs no code of a file."""
    path = find(given)
    flag = f"--weights {given}" if run_of(Path(given)) == Path(given) else f"--weights {given} ({path.name})"
    try:
        metadata: Mapping[str, str] = {}
        found: Any
        if _is_safetensors(path):
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            with torch.serialization.safe_globals(HARMLESS):
                found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{flag}: cannot be read: {first_line(error)}") from None
    except Exception as error:  # torch's reader raises any type of exception on what is no file of tensors
        code = re.search(r"GLOBAL (\S+)", str(error))
        holds = f" (it holds {code[1]})" if code else ""
        raise InputError(
            f"{flag}: neither safetensors nor tensors alone as torch.save writes them{holds}, and code of a file is "
            "not run: save the model's state_dict() alone"
        ) from None
    key, tensors = _tensors(found, flag)
    flag += f" ({key})" if key else ""
    if (run := _run_that_wrote(path)) is not None:
        return StoredWeights(flag, tensors, run.classes(), str(run.config().get("arch", "")))
    config = _json(path.with_name("config.json"))
    beside = next((found[name] for name in OF_CLASSES if _are_names(found.get(name))), None)
    classes = names_in_order(beside) if beside else _classes(metadata, config)
    return StoredWeights(flag, tensors, classes, str(config.get("architecture", "")))


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do, whatever its name: the length of a header of JSON, and that."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _run_that_wrote(path: Path) -> RunDirectory | None:
    """The run of which a file is the best model or in a checkpoint; None if it is in no run."""
    folder = path.absolute().parent
    run = RunDirectory(folder.parent if folder.name == "best" else run_of(folder))
    return run if run.path != folder and run.config() and (run.path / "class_map.json").exists() else None


def _tensors(found: Any, flag: str) -> tuple[str, dict[str, Tensor]]:
    """The tensors by name, and the keys of the dictionary that holds them; raises InputError if there is none.

    Of several dictionaries with as many tensors as any other, that of the averaged weights, as timm has it; else the
    first.
    """
    if not isinstance(found, Mapping):
        raise InputError(f"{flag}: it holds {type(found).__name__}, not tensors by name: save the model's state_dict()")
    held = dict(_dictionaries(found))
    counts = {key: sum(isinstance(value, Tensor) for value in each.values()) for key, each in held.items()}
    highest = max(counts.values())
    most = [key for key, count in counts.items() if count == highest]
    key = next((key for key in most if AVERAGED.search(key)), most[0])
    tensors = {str(name): value for name, value in held[key].items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{flag}: there are no tensors by name in it")
    return key, tensors


def _dictionaries(found: Mapping[str, Any], key: str = "", depth: int = 3) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A dictionary and those in it, with their keys joined by dots."""
    yield key, found
    for name, value in found.items():
        if isinstance(value, Mapping) and depth:
            yield from _dictionaries(value, f"{key}.{name}" if key else str(name), depth - 1)


def _classes(metadata: Mapping[str, str], config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names in the order of labels: from the file's metadata, else from the export that it lies in."""
    for value in (
        _loaded(metadata.get("class_map")),
        _loaded(metadata.get("label_names")),
        config.get("label_names"),
        config.get("pretrained_cfg", {}).get("label_names"),
    ):
        if value:
            return names_in_order(value)
    return None


def _are_names(value: Any) -> bool:
    """Whether a value in a file lists names of classes, or gives their numbers."""
    if not isinstance(value, Mapping | list | tuple) or not value:
        return False
    if isinstance(value, Mapping):
        return all(isinstance(part, int) for part in value.values()) or all(str(key).isdecimal() for key in value)
    return all(isinstance(part, str) for part in value)


def _loaded(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:
        return None


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
