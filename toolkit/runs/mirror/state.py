"""What this machine last knew of a run's store, beside the local directory that stands for it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.runs.mirror.layout import FileState
from toolkit.system import files


@dataclass
class State:
    """`tokens`: of writers after whom the directory here is not outdated; `records`: as they were when sent."""

    tokens: tuple[str, ...] = ()
    records: dict[str, FileState] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "State":
        """Empty if there is none, or none that can be read."""
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            return cls(tuple(values["tokens"]), {key: FileState(*state) for key, state in values["records"].items()})
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def write(self, path: Path) -> None:
        files.write_json(path, {"tokens": self.tokens, "records": dict(self.records)})
