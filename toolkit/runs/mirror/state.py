"""What this machine last knew of a run's store, beside the local directory that stands for it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.runs.mirror.layout import FileState
from toolkit.system import files


@dataclass
class State:
    """`authors`: if one of them wrote last, the directory is up to date or ahead; `records`: as they were when sent."""

    authors: tuple[str, ...] = ()
    records: dict[str, FileState] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "State":
        """Empty if there is none, or none that can be read."""
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            return cls(tuple(values["authors"]), {key: FileState(*state) for key, state in values["records"].items()})
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def write(self, path: Path) -> None:
        files.write_json(path, {"authors": self.authors, "records": dict(self.records)})
