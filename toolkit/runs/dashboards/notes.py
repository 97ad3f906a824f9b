"""The state of a run's dashboard, stored in the run's folder, so that a resumed run continues the dashboard."""

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
    """`.dashboard-NAME.json`: the run's id on the dashboard, its number of starts, and the last row logged.

    Rows logged since the last `write` follow the JSON, one line each with step and kind. They are not fsynced, because
    that would delay training: they survive a kill, but a machine crash loses those of the last seconds.
    """

    path: Path
    id: str
    starts: int = 1
    shown: list[int] = field(default_factory=lambda: [0, 0])  # step and kind of the last row
    model: int | None = None  # step of the uploaded model

    @classmethod
    def open(cls, folder: Path, name: str) -> "Notes":
        """Read those of an earlier start and count this one, or create new ones; fsynced when this returns."""
        path = folder / f".dashboard-{name}.json"
        notes = cls(path, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))  # a sweep's agent sets the id
        try:
            text = path.read_text()
            known, end = json.JSONDecoder().raw_decode(text)
            *_, shown = known["shown"], *re.findall(r"^(\d+) (\d)$", text[end:], re.MULTILINE)
            notes = cls(path, str(known["id"]), int(known["starts"]) + 1, [*map(int, shown)], known["model"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: not readable, the dashboard starts a new run: %s", path, error)
        notes.write()
        return notes

    def show(self, step: int, kind: int) -> None:
        """Record a row that was logged to the dashboard."""
        self.shown = [step, kind]
        with self.path.open("a") as file:
            file.write(f"{step} {kind}\n")

    def write(self) -> None:
        """Rewrite the file and fsync it."""
        files.write_json(self.path, {name: value for name, value in asdict(self).items() if name != "path"})
