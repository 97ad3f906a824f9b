"""A source of one's own: `table:FILE`, a table of split, image and class."""

import csv
from pathlib import Path

from toolkit import Found, Index, Source, SourceOptions, register


class TableSource(Source):
    def recognizes(self, data_root: str) -> bool:
        return data_root.startswith("table:")

    def read(self, data_root: str, options: SourceOptions) -> Found:
        file = Path(data_root.removeprefix("table:"))
        with file.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        classes = sorted({row["class"] for row in rows})

        def index(split: str) -> Index | None:
            own = [row for row in rows if row["split"] == split]
            labels = [classes.index(row["class"]) for row in own]
            return Index.of_files(file.parent, [row["image"] for row in own], labels) if own else None

        return Found(index("train"), index("val"), index("test"), classes)


register("source", "table", TableSource)
