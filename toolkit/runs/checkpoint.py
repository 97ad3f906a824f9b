"""Checkpoints on disk: committed by one rename and verified when read. They use safetensors and JSON, never pickle.

A checkpoint is a folder such as `step-000012000`. MANIFEST.json holds the size and SHA-256 of every file, COMMITTED
the SHA-256 of the manifest. The folder is written as `.tmp-step-...`, fsynced, and renamed.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.runs.committed import (
    COMMITTED,
    CORRUPT,
    FORMER,
    MANIFEST,
    REPLACED,
    STAGED,
    committed,
    fault,
    folders,
    read_manifest,
    step_of,
)
from toolkit.system import files, storage
from toolkit.system.errors import InputError, SaveError

log = logging.getLogger(__name__)

SCHEMA = 2
Tensors = Mapping[str, Tensor]
Contents = Mapping[str, Tensors | Mapping[str, Any]]  # by file name: *.safetensors, *.json


@dataclass(frozen=True)
class Store:
    """The checkpoints of one run. Keeps the newest `keep`, at least 2, and those of the best model that these name."""

    root: Path
    keep: int = 3

    def path(self, step: int) -> Path:
        return self.root / f"step-{step:09d}"

    def staging(self, step: int) -> Path:
        """The staging folder, next to the final one so that both are on the same file system."""
        return self.root / f"{STAGED}{self.path(step).name}"

    def stage(self, step: int, name: str, content: Tensors | Mapping[str, Any]) -> None:
        """Write and fsync one file of a checkpoint; raises SaveError with its path and size."""
        path = self.staging(step) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".json":
                path.write_text(json.dumps(content) + "\n")
            else:
                save_file(on_host(content), path)
            files.sync(path)
        except (OSError, SafetensorError) as error:
            raise self._failed(step, error, path, bytes_of(content)) from None

    def commit(self, step: int, contents: Contents, metadata: Mapping[str, Any]) -> Path:
        """Add `contents` to the staged files, commit the checkpoint, then delete old ones. Raises SaveError.

        The manifest stores `metadata`; its `best_step` names the checkpoint of the best model.
        """
        for name, content in contents.items():
            self.stage(step, name, content)
        staging, final = self.staging(step), self.path(step)
        try:
            _vouch(staging, {"schema": SCHEMA, "step": step, **metadata})
            if final.exists():  # saved at the same step before the epoch was closed
                os.replace(final, self._former(final))
            os.replace(staging, final)
            files.sync(self.root)
        except OSError as error:
            self._put_back_former()
            raise self._failed(step, error, staging, 0) from None
        try:
            shutil.rmtree(self._former(final), ignore_errors=True)
            self._drop_old()
        except OSError as error:
            log.warning("an old checkpoint could not be removed: %s", storage.line(error, final))
        return final

    def _failed(self, step: int, error: Exception, path: Path, needed: int) -> SaveError:
        where, size = storage.file_of(error) or path, f", {needed} bytes" if needed else ""
        advice = storage.advice(error, path)
        then = "; ".join(filter(None, (advice, "" if storage.AGAIN in advice else storage.AGAIN)))
        newest = self.newest()
        kept = f"{newest} is intact" if newest else "there is none before it"
        return SaveError(
            f"the checkpoint of step {step} could not be written: {where}{size}: {storage.reason(error)}"
            f"{storage.room(self.root)}; {kept}; {then}"
        )

    def abandon(self, step: int) -> None:
        """Delete the staged files; the next start deletes any that remain."""
        shutil.rmtree(self.staging(step), ignore_errors=True)

    def _former(self, final: Path) -> Path:
        """Temporary path of a checkpoint while a new one of the same step replaces it."""
        return final.with_name(f"{FORMER}{final.name}")

    def _put_back_former(self) -> None:
        """Restore each former checkpoint that was not replaced, and delete the others."""
        for former in self.root.glob(f"{FORMER}step-*"):
            final = former.with_name(former.name.removeprefix(FORMER))
            if final.exists():
                shutil.rmtree(former, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # the next start tries again
                    os.replace(former, final)

    def _remove(self, path: Path) -> None:
        """Rename, then delete: a partly deleted folder under its own name would look like a damaged checkpoint."""
        doomed = path.with_name(f"{STAGED}old-{path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed)

    def _drop_old(self) -> None:
        found = self.committed()
        kept = found[-max(2, self.keep) :]
        best = {self.path(step) for path in kept if (step := read_manifest(path).get("best_step")) is not None}
        for path in found:
            if path not in kept and path not in best:
                self._remove(path)

    def committed(self) -> list[Path]:
        """Committed checkpoints, oldest step first. Checks manifests and file sizes, but not the files' hashes."""
        return committed(self.root)

    def newest(self) -> Path | None:
        found = self.committed()
        return found[-1] if found else None

    def newest_manifest(self) -> dict[str, Any]:
        """The manifest of the newest committed checkpoint, whose other files need not be here; empty without one."""
        vouched = (
            read_manifest(path) for path in reversed(folders(self.root)) if not fault(path, hashes=False, alone=True)
        )
        return next(vouched, {})

    def recover(self) -> Path | None:
        """The newest checkpoint with correct hashes; None if there is none. Sets damaged newer ones aside.

        Only for the owner of the run lock, before anything is written. Removes partly written checkpoints. Raises
        InputError if there were checkpoints but all are damaged.
        """
        self._put_back_former()
        for leftover in self.root.glob(f"{STAGED}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for path in reversed(folders(self.root)):
            damage = fault(path, hashes=True)
            if not damage:
                return path
            log.warning("%s: %s; set aside as %s", path, damage, set_aside(path, CORRUPT).name)
        damaged = sorted(self.root.glob(f"{CORRUPT}*"))
        if damaged:
            raise InputError(
                f"{self.root}: every checkpoint is damaged ({len(damaged)} set aside as {CORRUPT}*), and starting over "
                "in silence would lose a run: take another --output-dir, or restore them from a copy"
            )
        return None

    def go_back_to(self, start: Path) -> None:
        """Set aside the checkpoints after `start`, because the run will write these steps again."""
        for path in folders(self.root):
            if step_of(path) > step_of(start):
                log.warning("%s: set aside as %s", path, set_aside(path, REPLACED).name)


def set_aside(path: Path, mark: str) -> Path:
    """Rename a checkpoint so that it no longer counts as one, without deleting it; returns its new path."""
    names = (path.with_name(f"{mark}{path.name}" + (f"-{i}" if i else "")) for i in range(1000))
    free = next(name for name in names if not name.exists())
    os.replace(path, free)
    return free


def _vouch(staging: Path, metadata: Mapping[str, Any]) -> None:
    """Write a manifest of all files in a folder, then COMMITTED with its hash; fsync both files and the folders."""
    found = sorted(path for path in staging.rglob("*") if path.is_file())
    described = {
        path.relative_to(staging).as_posix(): {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        for path in found
    }
    (staging / MANIFEST).write_text(json.dumps({**metadata, "files": described}, indent=2) + "\n")
    files.sync(staging / MANIFEST)
    (staging / COMMITTED).write_text(files.sha256(staging / MANIFEST) + "\n")
    files.sync(staging / COMMITTED)
    for folder in {path.parent for path in found} | {staging}:
        files.sync(folder)


def on_host(tensors: Tensors) -> dict[str, Tensor]:
    """Detached and contiguous tensors on the CPU, as safetensors requires."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def bytes_of(content: Tensors | Mapping[str, Any]) -> int:
    return sum(value.nbytes if isinstance(value, Tensor) else len(str(value)) for value in content.values())


def is_committed(path: Path) -> bool:
    """Whether the folder is a committed checkpoint: COMMITTED matches the manifest, and all files have their sizes."""
    return not fault(path, hashes=False)


def check(path: Path) -> None:
    """Verify all hashes of a checkpoint; raises InputError on a mismatch or a missing file."""
    damage = fault(path, hashes=True)
    if damage:
        raise InputError(f"{path}: {damage}")


def load(path: Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Read files of a verified checkpoint, by name: those in `names` that exist, or all if None.

    Raises InputError if a file cannot be read although its hash is correct.
    """
    held = read_manifest(path)["files"]
    contents: dict[str, Any] = {}
    for name in held if names is None else [name for name in names if name in held]:
        try:
            contents[name] = json.loads((path / name).read_text()) if name.endswith(".json") else load_file(path / name)
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"{path / name}: cannot be read: {storage.explain(error)}") from None
    return contents
