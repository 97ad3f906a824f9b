"""Which columns of a CSV file name the image and its label."""

import contextlib
import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from toolkit.system.errors import InputError

DELIMITERS = ",;\t|"
SEPARATOR = re.compile(r"\"?sep=.\"?", re.IGNORECASE)
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # a byte-order mark, as Excel writes it for "Unicode text"
# Lower case, words joined by "_". Of several, the first here names the image; `label` alone is taken among others.
FILES = (
    *("filepath", "filepaths", "file_path", "image_path", "img_path", "path", "filename", "filenames", "file_name"),
    *("image_name", "img_name", "image_file", "file", "image", "images", "img", "image_id", "img_id", "id_code", "id"),
)
LABEL = "label"
MOST_NAMED = 12  # columns that a message lists
LABELS = frozenset(
    {
        *("labels", "label_name", "label_id", "class", "class_name", "class_id", "classname", "classid", "target"),
        *("category", "category_name", "category_id", "species", "breed", "diagnosis"),
    }
)
SPLITS = frozenset({"split", "set", "subset", "data_set", "dataset", "partition"})  # columns that tell train from test
# Never the label, although the only other column: several labels, or none.
OTHERS = frozenset({"tags", "attributes", "caption", "text", "description", "url", "width", "height"}) | SPLITS


class Columns(NamedTuple):
    """Positions in a row; `file` None: no column names images; `label` None: none holds labels, or `choices` do.

    `split`: that of a column that tells train from test; None if there is none.
    """

    names: tuple[str, ...]
    delimiter: str
    file: int | None
    label: int | None
    choices: tuple[str, ...] = ()
    split: int | None = None

    def listed(self) -> str:
        """The names of the first columns, and how many there are if there are more."""
        more = f",... ({len(self.names)} in all)" if len(self.names) > MOST_NAMED else ""
        return (",".join(self.names[:MOST_NAMED]) or "none") + more


def encoding(file: Path) -> str:
    with file.open("rb") as stream:
        return "utf-16" if stream.read(2) in UTF16 else "utf-8-sig"  # drops a byte-order mark before the first name


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tuple[TextIO, int]]:
    """A CSV file at the names of its columns, and how many lines are before them: empty ones, Excel's `sep=;`."""
    with file.open(newline="", encoding=encoding(file)) as handle:
        start, skipped = 0, 0
        while (line := handle.readline()) and (not line.strip() or SEPARATOR.fullmatch(line.strip())):
            start, skipped = handle.tell(), skipped + 1
        handle.seek(start)
        yield handle, skipped


def read_columns(file: Path, label_column: str | None = None) -> Columns:
    """The columns by the first line of a CSV file, whatever separates them.

    Raises InputError if it is no text, or `label_column` is none of them.
    """
    try:
        with _opened(file) as (handle, _):
            line = handle.readline()
        found = [_columns(next(csv.reader([line], delimiter=one), []), one, label_column) for one in DELIMITERS]
    except (UnicodeError, csv.Error) as error:
        raise InputError(f"{file}: not a CSV file in UTF-8: {error}") from None
    columns = next((one for one in found if one.file is not None), found[0])
    if label_column is not None and columns.label is None:
        raise InputError(f"--label-column {label_column}: {file} has the columns {columns.listed()}")
    return columns


def read_cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of the line and the cells of each row below the names; raises InputError if it is no text."""
    columns = read_columns(file)
    try:
        with _opened(file) as (handle, skipped):
            reader = csv.reader(handle, delimiter=columns.delimiter, skipinitialspace=True)
            next(reader, None)
            yield from ((skipped + reader.line_num, cells) for cells in reader if any(map(str.strip, cells)))
    except (UnicodeError, csv.Error) as error:
        raise InputError(f"{file}: not a CSV file in UTF-8: {error}") from None


def in_words(names: Sequence[str]) -> list[str]:
    """Names of columns in lower case, words joined by "_"."""
    return ["_".join(name.lower().replace("-", " ").split()) for name in names]


def _columns(header: list[str], delimiter: str, label_column: str | None) -> Columns:
    names = [name.strip() for name in header]
    words = in_words(names)
    file = next((words.index(name) for name in FILES if name in words), None)
    choices = [i for i, word in enumerate(words) if word in LABELS and i != file]
    named = [i for i, word in enumerate(words) if word and not word.startswith("unnamed:")]  # pandas' numbers of rows
    if label_column is not None:
        choices = [i for i, name in enumerate(names) if name == label_column]
    elif LABEL in words:
        choices = [words.index(LABEL)]
    elif not choices and file is not None and len(named) == 2:
        choices = [i for i in named if i != file and words[i] not in OTHERS]
    label = choices[0] if len(choices) == 1 else None
    split = next((i for i, word in enumerate(words) if word in SPLITS), None)
    return Columns(tuple(names), delimiter, file, label, tuple(names[i] for i in choices), split)
