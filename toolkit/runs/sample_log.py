"""Records that every process adds to, a line of JSON each: the images that were delivered, and those that were bad."""

import errno
import json
import logging
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from toolkit.data.loading.batches import Batch
from toolkit.system import files

log = logging.getLogger(__name__)


class SampleLog:
    """What was really delivered, a line per micro-batch, with the learning rate; `path` None: nothing is written.

    Every rank appends whole lines to the same file. `digests` are the CRC-32 of each delivered image, so that the
    proof covers augmentation too; `mixing` those of how it is mixed with its neighbour.
    """

    def __init__(self, path: Path | None, rank: int) -> None:
        self._path, self._rank = path, rank

    def add(self, batch: Batch, learning_rate: float) -> None:
        if self._path is None:
            return
        digests = [zlib.crc32(image.contiguous().numpy().tobytes()) for image in batch.images]
        line = {
            "step": batch.number,
            "rank": self._rank,
            "sizes": batch.step.sizes,
            "ids": batch.ids.tolist(),
            "digests": digests,
            "lr": learning_rate,
        }
        if batch.mixing is not None:
            line["mixing"] = [zlib.crc32(row.numpy().tobytes()) for row in batch.mixing]
        _append_line(self._path, line)


class Quarantine:
    """quarantine.jsonl: one line for each image that could not be read, whichever process met it first, and when."""

    def __init__(self, path: Path, rank: int) -> None:
        self._path, self._rank = path, rank
        self._known: set[str] = set()

    def add(self, bad: Sequence[tuple[str, str]]) -> None:
        """List (name, reason) of images that are not listed yet, neither by this nor by another process or start."""
        new = {name: reason for name, reason in bad if name not in self._known}
        if not new:
            return
        with FileLock(self._path.with_name(f".{self._path.name}.lock")):
            text = self._path.read_text() if self._path.exists() else ""
            lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
            if len("".join(lines)) < len(text):  # half a line, left by a kill or a full disk
                files.write_text(self._path, "".join(lines))
            self._known |= {json.loads(line)["name"] for line in lines}
            for name, reason in new.items():
                if name not in self._known:
                    _append_line(self._path, {"name": name, "reason": reason, "rank": self._rank})
                    log.warning("quarantine %s: %s", name, reason)
        self._known |= new.keys()


def cut_samples(path: Path, step: int) -> None:
    """Drop the lines of optimizer steps from `step` on, which will be repeated."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        files.write_text(path, "".join(line for line in lines if _step_of(line) < step))


def _step_of(line: str) -> float:
    """The step of a sample's line; infinite where a kill or a full disk left half of it."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except ValueError:
        return math.inf


def _append_line(path: Path, values: Mapping[str, Any]) -> None:
    """One write call, so that lines of several processes do not mix; raises OSError where it is not all written."""
    line = (json.dumps(values) + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        with files.naming(path):
            if os.write(handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(handle)
