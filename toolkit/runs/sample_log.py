"""samples.jsonl: one JSON line per micro-batch served, to verify determinism."""

import errno
import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.data.loading.batches import Batch
from toolkit.system import files


class SampleLog:
    """Logs each micro-batch served, with its learning rate; if `path` is None, nothing is written.

    Every rank appends whole lines to the same file. `digests` holds the CRC-32 of each served image, which verifies
    augmentation too; `mixing` holds the CRC-32 of how each image is mixed with its neighbor.
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
        append_line(self._path, line)


def truncate_samples(path: Path, step: int) -> None:
    """Drop the lines of optimizer steps >= `step`, because the run will repeat these steps."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        files.write_text(path, "".join(line for line in lines if _step_of(line) < step))


def _step_of(line: str) -> float:
    """The step of a line; infinity for a partial line, left by a kill or a full disk."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except ValueError:
        return math.inf


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append a line with one write call, so that processes' lines do not mix; raises OSError on a partial write."""
    line = (json.dumps(values) + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        with files.naming(path):
            if os.write(handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(handle)
