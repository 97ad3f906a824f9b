"""quarantine.jsonl: the images that could not be read."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from toolkit.runs.sample_log import append_line
from toolkit.system import files
from toolkit.system.locks import locked

log = logging.getLogger(__name__)


class Quarantine:
    """quarantine.jsonl: one line for each unreadable image, across all processes and starts of a run."""

    def __init__(self, path: Path, rank: int) -> None:
        self._path, self._rank = path, rank
        self._known: set[str] = set()

    def add(self, bad: Sequence[tuple[str, str]]) -> None:
        """Append (name, reason) of each image that no process or earlier start has listed yet."""
        new = {name: reason for name, reason in bad if name not in self._known}
        if not new:
            return
        with locked(self._path.with_name(f".{self._path.name}.lock")):
            text = self._path.read_text() if self._path.exists() else ""
            lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
            if len("".join(lines)) < len(text):  # a partial line, left by a kill or a full disk
                files.write_text(self._path, "".join(lines))
            self._known |= {json.loads(line)["name"] for line in lines}
            for name, reason in new.items():
                if name not in self._known:
                    append_line(self._path, {"name": name, "reason": reason, "rank": self._rank})
                    log.warning("quarantine %s: %s", name, reason)
        self._known |= new.keys()
