"""Which checkpoints of a run are committed: their names, manifests and markers. Does not import torch."""

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

from toolkit.system import files

MANIFEST, COMMITTED = "MANIFEST.json", "COMMITTED"
STAGED, FORMER, CORRUPT, REPLACED = ".tmp-", ".former-", ".corrupt-", ".replaced-"
WENT_BACK = ".went-back-to"  # in the run's directory: the checkpoint that the run last went back to


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a committed checkpoint."""
    return json.loads((path / MANIFEST).read_text())


def folders(root: Path) -> list[Path]:
    """Folders named like checkpoints, committed or not, oldest step first."""
    found = (path for path in root.glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return sorted(found, key=step_of)


def committed(root: Path) -> list[Path]:
    """Committed checkpoints, oldest step first. Checks manifests and file sizes, but not the files' hashes."""
    return [path for path in folders(root) if not fault(path, hashes=False)]


def fault(path: Path, hashes: bool, alone: bool = False) -> str:
    """The first fault of a checkpoint, with the file's name; empty if there is none.

    `hashes`: read every byte. `alone`: look at the manifest only.
    """
    try:
        mark, manifest = (path / COMMITTED).read_bytes(), (path / MANIFEST).read_bytes()
        if mark != f"{hashlib.sha256(manifest).hexdigest()}\n".encode():
            return f"{COMMITTED} does not fit {MANIFEST}"
        for name, entry in {} if alone else json.loads(manifest)["files"].items():
            if (path / name).stat().st_size != entry["bytes"]:
                return f"{name} has {(path / name).stat().st_size} bytes instead of {entry['bytes']}"
            if hashes and files.sha256(path / name) != entry["sha256"]:
                return f"{name} was changed since it was saved"
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            raise  # a storage error, not a damaged checkpoint
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return ""
