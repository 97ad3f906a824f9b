"""Write predictions as CSV or JSON Lines; every row is complete or absent. Free of torch."""

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.system import storage
from toolkit.system.errors import DiskError, InputError

STDOUT = "-"


class PredictionRow(NamedTuple):
    """Prediction for one image: `label` is the task's answer, with its confidence; `best` are (class, probability),
    most probable first.

    `size`: size of the prediction, px, such as 64, or 32+64 for averaged probabilities. An unreadable image has only
    `path` and `error`.
    """

    path: str
    best: tuple[tuple[str, float], ...] = ()
    size: str = ""
    error: str = ""
    label: str = ""
    confidence: float | None = None


def csv_line(cells: Iterable[Any]) -> str:
    """One row, ending in LF; the writer gets CRLF, so that it quotes cells with either character."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


class CsvFormat:
    """Columns: path, label, probability, size, label_2, probability_2 ... error.

    `several`: an image has any number of labels, so label_1 and probability_1, its most probable class, come too.
    """

    def __init__(self, top: int, several: bool) -> None:
        self._top, self._first = top, 1 if several else 2

    def header(self) -> str:
        places = range(self._first, self._top + 1)
        further = [f"{column}_{place}" for place in places for column in ("label", "probability")]
        return csv_line(("path", "label", "probability", "size", *further, "error"))

    def lines(self, rows: Iterable[PredictionRow]) -> str:
        return "".join(csv_line(self._cells(row)) for row in rows)

    def _cells(self, row: PredictionRow) -> tuple[Any, ...]:
        sure = "" if row.confidence is None else f"{row.confidence:.6g}"
        further = [cell for label, probability in row.best[self._first - 1 :] for cell in (label, f"{probability:.6g}")]
        further += [""] * (2 * (self._top - self._first + 1) - len(further))
        return (row.path, row.label, sure, row.size, *further, row.error)


class JsonLines:
    """Keys: path, label, probability, size, top: [{label, probability}], error; null if there is none."""

    def header(self) -> str:
        return ""

    def lines(self, rows: Iterable[PredictionRow]) -> str:
        return "".join(json.dumps(self._object(row)) + "\n" for row in rows)

    def _object(self, row: PredictionRow) -> dict[str, Any]:
        return {
            "path": row.path,
            "label": row.label if row.best else None,
            "probability": row.confidence,
            "size": row.size or None,
            "top": [{"label": label, "probability": probability} for label, probability in row.best],
            "error": row.error or None,
        }


def refuse_existing(output: str, overwrite: bool) -> None:
    """Raise InputError if `output` is a folder, or a file without `overwrite`; a device or pipe is allowed."""
    if Path(output).is_file() and not overwrite:
        raise InputError(f"--output {output}: is there already: give another name, or --overwrite")
    if Path(output).is_dir():
        raise InputError(f"--output {output}: is a folder: give the name of a file in it")


class RowFile:
    """The output file, written in whole rows without buffering; `closed`: the reader of standard output has left.

    Raises InputError if it cannot be opened, DiskError if it cannot be written.
    """

    def __init__(self, output: str, top: int, several: bool) -> None:
        self.output, self.closed = output, False
        self._format = JsonLines() if output.endswith(".jsonl") else CsvFormat(top, several)
        self._whole = 0  # bytes of complete rows
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            self._handle = sys.stdout.fileno() if output == STDOUT else os.open(output, flags, 0o644)
        except OSError as error:
            raise InputError(f"--output {output}: {storage.explain(error, output)}") from None
        self._write(self._format.header())

    def add(self, rows: Iterable[PredictionRow]) -> None:
        self._write(self._format.lines(rows))

    def close(self) -> None:
        if self.output != STDOUT:
            os.close(self._handle)

    def _write(self, text: str) -> None:
        rest = memoryview(text.encode("utf-8", "surrogateescape"))  # a file name may not be valid UTF-8
        length = len(rest)
        try:
            while len(rest):
                rest = rest[os.write(self._handle, rest) :]
        except BrokenPipeError:  # the reader has left, e.g. `head`
            self.closed = True
        except OSError as error:
            if self.output != STDOUT:  # standard output may be a file with earlier content, so it is not truncated
                with contextlib.suppress(OSError):
                    os.ftruncate(self._handle, self._whole)
            name = "standard output" if self.output == STDOUT else self.output
            raise DiskError(
                f"{name}: {storage.explain(error, self.output)}; the rows before stand there whole"
            ) from None
        self._whole += length
