"""The run directory: paths and records of one run."""

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.config.scales import Scales
from toolkit.config.settings import Settings
from toolkit.config.yaml_values import fit, read_written, to_yaml
from toolkit.runs import earlier, sample_log
from toolkit.runs.checkpoint import Store
from toolkit.runs.committed import STAGED, WENT_BACK
from toolkit.runs.metrics_row import MetricsRow
from toolkit.runs.progress import Progress
from toolkit.runs.step_log import truncate_steps
from toolkit.system import files
from toolkit.system.errors import InputError
from toolkit.system.run_lock import RunLock
from toolkit.system.system_files import is_system

log = logging.getLogger(__name__)

FINISHED = ("done", "early stop")


class RunDirectory:
    """Paths and records of one run; all processes may read, only rank 0 writes (except `samples` and `quarantine`)."""

    def __init__(self, path: Path, keep: int = 3) -> None:
        self.path = path
        self.store = Store(path / "checkpoints", keep)
        self.best = path / "best"
        self.samples = path / "samples.jsonl"
        self.quarantine = path / "quarantine.jsonl"
        self.predictions = path / "predictions"
        self.steps = path / "steps.csv"
        self.costs = path / "cost_matrix.csv"  # a copy of --cost-matrix
        self._metrics = path / "metrics.csv"
        self._summary = path / "summary.json"
        self._config = path / "config.yaml"
        self.lock = RunLock(path)

    def is_empty(self) -> bool:
        """Whether there is nothing except system files and leftovers of a start that was killed before it wrote one."""
        entries = [*self.path.iterdir()] if self.path.is_dir() else []
        return all(is_system(entry.name) for entry in entries)  # ours begin with a dot

    def exit_reason(self) -> str | None:
        return self.summary().get("exit_reason")

    def summary(self) -> dict[str, Any]:
        """summary.json, empty if the run has not ended; raises InputError if the file cannot be read."""
        try:
            return dict(earlier.keys_now(json.loads(self._summary.read_text())))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{self._summary}: cannot be read: {error}") from None

    def went_back_to(self) -> str | None:
        """Name of the checkpoint that the run last went back to, or None; newer checkpoints were saved after that."""
        note = self.path / WENT_BACK
        return note.read_text().strip() if note.exists() else None

    def had_saved(self) -> bool:
        """Whether a checkpoint was committed. One always is before a best model is exported or a third epoch ends."""
        return self.best.exists() or self.went_back_to() is not None or len(self.metrics()) > 2

    def go_back_to(self, start: Path) -> None:
        """Set aside the checkpoints after `start`, and record it: the same command must not do that twice."""
        self.store.go_back_to(start)
        files.write_text(self.path / WENT_BACK, f"{start.name}\n")

    def create(self, config: Mapping[str, Any], classes: Sequence[str]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in self.path.glob(f"{STAGED}*"):
            leftover.unlink()
        files.write_text(self._config, to_yaml(config))  # first: a folder with this file counts as a run
        self.store.root.mkdir(parents=True, exist_ok=True)
        files.write_json(self.path / "class_map.json", dict(enumerate(classes)))

    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of labels; raises InputError if class_map.json cannot be read."""
        path = self.path / "class_map.json"
        try:
            return tuple(json.loads(path.read_text()).values())
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None

    def config(self) -> dict[str, Any]:
        """The settings and the strategy's fields by name, without tuples; empty if there is no run."""
        written = read_written(self._config) if self._config.exists() else {}
        known = {**Scales.model_fields, **Settings.model_fields}
        types = {name: known[name].annotation if name in known else Any for name in written}
        return earlier.settings_now({name: fit(value, types[name]) for name, value in written.items()})

    def truncate_to(self, progress: Progress) -> None:
        """Drop records that will be written again: those of epochs not closed and of steps not done."""
        rows = [row for row in self.metrics() if row.epoch < progress.epoch]
        if self._metrics.exists():
            self._write_metrics(rows)
        truncate_steps(self.steps, progress.step)
        sample_log.truncate_samples(self.samples, progress.step)

    def metrics(self) -> list[MetricsRow]:
        """The rows of metrics.csv; raises InputError if one has no epoch."""
        if not self._metrics.exists():
            return []
        try:
            with self._metrics.open(newline="") as file:
                return [MetricsRow.from_cells(cells) for cells in csv.DictReader(file)]
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise InputError(f"{self._metrics}: not what a run writes: {error}") from None

    def add_metrics(self, row: MetricsRow) -> None:
        """Append the row of one epoch; adds its new columns."""
        self._write_metrics([*self.metrics(), row])

    def _write_metrics(self, rows: Sequence[MetricsRow]) -> None:
        text, lines = io.StringIO(newline=""), [row.columns() for row in rows]
        writer = csv.DictWriter(text, list(dict.fromkeys(name for line in lines for name in line)), restval="")
        writer.writeheader()
        writer.writerows(lines)
        files.write_text(self._metrics, text.getvalue())

    def add_notes(self, notes: Mapping[str, Any], main: bool) -> None:
        """Write more JSON files, by name, on the main process only; replaces existing ones."""
        for name, values in notes.items() if main else ():
            files.write_json(self.path / name, values)

    def remove_summary(self) -> None:
        """Delete summary.json, if it exists."""
        self._summary.unlink(missing_ok=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        files.write_json(self._summary, dict(summary))
