"""A dashboard of one's own: the rows as lines of JSON in the run's folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit import Dashboard, DashboardRun, register


class Lines(Dashboard):
    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, run: DashboardRun) -> "Lines":
        board = cls(run.folder / "rows.jsonl")
        board.add({"start": run.step, "first": run.first, "id": run.id, "epochs": run.config["epochs"]})
        return board

    def log(self, row: Mapping[str, float], step: int) -> None:
        self.add(dict(row))

    def alert(self, title: str, text: str, step: int) -> None:
        self.add({"alert": title})

    def add(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


register("dashboard", "lines", Lines)
