"""steps.csv: learning rate and training loss within the epochs, a row every few optimizer steps."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from toolkit.system import files


class StepRow(NamedTuple):
    """`step`: optimizer steps done; `epoch`: epochs done, such as 2.4; `train_loss`: the mean since the epoch began."""

    step: int
    epoch: float
    lr: float
    train_loss: float


def read_steps(path: Path) -> list[StepRow]:
    """The rows of the file; none if there is no file. Skips lines that are not whole."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for cells in csv.reader(file) if (row := _row(cells)) is not None]


def _row(cells: Sequence[str]) -> StepRow | None:
    try:
        return StepRow(int(cells[0]), *map(float, cells[1:]))
    except (ValueError, TypeError, IndexError):  # the head, or half a line
        return None


def add_steps(path: Path, rows: Sequence[StepRow]) -> None:
    """Append the rows of one epoch."""
    _write(path, [*read_steps(path), *rows])


def truncate_steps(path: Path, step: int) -> None:
    """Drop the rows after `step` optimizer steps, because the run will repeat these steps."""
    if path.exists():
        _write(path, [row for row in read_steps(path) if row.step <= step])


def _write(path: Path, rows: Sequence[StepRow]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(StepRow._fields)
    writer.writerows(rows)
    files.write_text(path, text.getvalue())
