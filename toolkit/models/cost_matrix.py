"""What it costs to take an image of one class for another: the CSV file of --cost-matrix."""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from toolkit.system.errors import InputError, expected, nearest

SHOWN = 3  # names in a message


def read_costs(path: Path, classes: Sequence[str]) -> np.ndarray:
    """C x C costs in the order of `classes`: rows are true classes, columns predicted ones. Raises InputError."""
    flag = f"--cost-matrix {path}"
    try:
        rows = _rows(path, flag)
    except OSError as error:
        raise InputError(f"{flag}: cannot be read: {expected(error)}") from None
    except csv.Error as error:
        raise InputError(f"{flag}: not CSV: {error}") from None
    if not rows:
        raise InputError(f"{flag}: the file is empty: its first row has the names of the classes")
    header = rows[0][1][1:]
    if not header:
        raise InputError(f"{flag}: its first row has one cell: give the names of the classes, separated by commas")
    columns = _places(header, classes, f"{flag}, first row")
    lines = _places([row[0] for _, row in rows[1:]], classes, f"{flag}, first column")
    costs = np.empty((len(classes), len(classes)))
    for (number, row), true in zip(rows[1:], lines, strict=True):
        if len(row) != 1 + len(classes):
            raise InputError(
                f"{flag}, line {number} ({row[0]}): {len(row) - 1} costs for {len(classes)} classes: one for each"
            )
        costs[true, columns] = [
            _cost(cell, f"{flag}, line {number} ({row[0]}, column {name})")
            for cell, name in zip(row[1:], header, strict=True)
        ]
    return costs


def written_costs(costs: np.ndarray, classes: Sequence[str]) -> str:
    """The file of a cost matrix."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["", *classes])
    writer.writerows([name, *map(repr, row)] for name, row in zip(classes, costs.tolist(), strict=True))
    return text.getvalue()


def _rows(path: Path, flag: str) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of its line."""
    if not path.is_file():
        raise InputError(f"{flag}: {'is a folder: give a file' if path.is_dir() else 'no such file'}")
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file)
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]


def _places(given: Sequence[str], classes: Sequence[str], where: str) -> list[int]:
    """The class of each name; raises InputError unless every class is there once."""
    of_name = {name: label for label, name in enumerate(classes)}
    names = [name if name in of_name else name.strip() for name in given]
    if unknown := [name for name in names if name not in of_name]:
        told = nearest(unknown[0], of_name) or "; the names of the classes stand there"
        raise InputError(f"{where}: {unknown[0]!r} is no class of the data{told}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{where}: {twice[0]!r} is there {Counter(names)[twice[0]]} times: each class once")
    if missing := [name for name in of_name if name not in {*names}]:
        named = ", ".join(map(repr, missing[:SHOWN])) + ", ..." * (len(missing) > SHOWN)
        raise InputError(f"{where}: it lacks {len(missing)} of {len(classes)} classes: {named}")
    return [of_name[name] for name in names]


def _cost(cell: str, where: str) -> float:
    try:
        cost = float(cell)
    except ValueError:
        cost = math.nan
    if not (math.isfinite(cost) and cost >= 0):
        raise InputError(f"{where}: {cell.strip()!r} is no cost: a number, 0 or more")
    return cost
