"""What a run's folder remembers of its dashboard, so that a resumed run goes on where that stands."""

import json
import logging
import os
import re
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from toolkit.system import files

log = logging.getLogger(__name__)


@dataclass
class Notes:
    """`.dashboard-NAME.json`: the run's id there, how often it started, and what the dashboard has seen.

    Behind them stand the rows that were shown since, a line each with its step and kind. These are not forced to the
    disk, which would hold up training: a kill leaves them there, and a machine that dies loses the last seconds.
    """

    path: Path
    id: str
    starts: int = 1
    shown: list[int] = field(default_factory=lambda: [0, 0])  # step of the last row, and its kind
    model: int | None = None  # step of the model that was uploaded

    @classmethod
    def open(cls, folder: Path, name: str) -> "Notes":
        """Those of an earlier start, counted on, or new ones; they are on the disk when this returns."""
        path = folder / f".dashboard-{name}.json"
        notes = cls(path, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))  # a sweep's agent gives the id
        try:
            text = path.read_text()
            known, end = json.JSONDecoder().raw_decode(text)
            *_, shown = known["shown"], *re.findall(r"^(\d+) (\d)$", text[end:], re.MULTILINE)
            notes = cls(path, str(known["id"]), int(known["starts"]) + 1, [*map(int, shown)], known["model"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: not readable, the dashboard begins anew: %s", path, error)
        notes.write()
        return notes

    def show(self, step: int, kind: int) -> None:
        """Note a row that is on the dashboard."""
        self.shown = [step, kind]
        with self.path.open("a") as file:
            file.write(f"{step} {kind}\n")

    def write(self) -> None:
        """Force everything to the disk."""
        files.write_json(self.path, {name: value for name, value in asdict(self).items() if name != "path"})
