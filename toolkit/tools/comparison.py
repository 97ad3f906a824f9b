"""Results of comparing runs: as text, as an HTML table in notebooks, and as JSON-serializable values."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from toolkit.models.paired import Difference
from toolkit.strategies.base import Metric
from toolkit.system.result import Result

TITLES = {"top1": "top-1 %", "balanced_accuracy": "balanced accuracy %", "macro_f1": "macro F1 %"}
HEADS = ("size", "metric", "baseline", "run", "difference (95%)", "only baseline right", "only run right", "verdict")
NUMBERS = range(2, 7)  # columns aligned to the right


@dataclass(frozen=True)
class ComparedSize:
    """A run against the baseline at one eval spec, such as `64px`, on the same images.

    `baseline` and `values`: metrics of the baseline and of the run, by name: top1, balanced_accuracy and macro_f1, in
    percent, and `selected`, the metric that selected both, if it is another. `differences`: run minus baseline.
    `only_baseline` and `only_run`: images that only this one has right.
    """

    run: Path
    spec: str
    images: int
    baseline: Mapping[str, float]
    values: Mapping[str, float]
    differences: Mapping[str, Difference]
    only_baseline: int
    only_run: int
    left_out: int = 0  # images that one of the two could not read
    selected: Metric | None = None

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The cells of HEADS, a row for each metric."""
        for name, title in {**TITLES, **self._selected_title()}.items():
            values, difference = (self.baseline[name], self.values[name]), self.differences[name]
            counts = (str(self.only_baseline), str(self.only_run)) if name == "top1" else ("", "")
            digits = 2 if difference.percent else 4
            cells = (*(f"{value:.{digits}f}" for value in values), str(difference), *counts, difference.verdict)
            yield (self.spec if name == "top1" else "", title, *cells)

    def _selected_title(self) -> dict[str, str]:
        if self.selected is None:
            return {}
        notes = " %" * self.selected.percent + f" ({self.selected.direction})" * bool(self.selected.direction)
        return {self.selected.name: f"{self.selected.title}{notes}"}


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """Runs against a baseline; `sizes` has an entry for each run and eval spec that it shares with the baseline."""

    baseline: Path
    split: str
    sizes: tuple[ComparedSize, ...]

    @property
    def runs(self) -> dict[Path, list[ComparedSize]]:
        """The entries of each run, in the order in which the runs were given."""
        found: dict[Path, list[ComparedSize]] = {}
        for compared in self.sizes:
            found.setdefault(compared.run, []).append(compared)
        return found

    @property
    def text(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"baseline  {self.baseline}"
        for run, sizes in self.runs.items():
            yield f"run       {run}: {self._images(sizes)}"
            rows = [HEADS, *(row for compared in sizes for row in compared.rows())]
            wides = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
            for row in rows:
                cells = [f"{cell:{'>' if i in NUMBERS else '<'}{wides[i]}}" for i, cell in enumerate(row)]
                yield "  ".join(cells).rstrip()

    def _images(self, sizes: list[ComparedSize]) -> str:
        left_out = f", {sizes[0].left_out} unreadable left out" if sizes[0].left_out else ""
        return f"{sizes[0].images} {self.split} images{left_out}"

    def _repr_html_(self) -> str:
        parts = [f"<p>baseline {escape(str(self.baseline))}</p>"]
        for run, sizes in self.runs.items():
            parts.append(f"<p>run {escape(str(run))}: {escape(self._images(sizes))}</p><table>")
            parts.append(f"<tr>{''.join(f'<th>{head}</th>' for head in HEADS)}</tr>")
            rows = [row for compared in sizes for row in compared.rows()]
            parts += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
            parts.append("</table>")
        return "\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        """All numbers as JSON-serializable values."""
        sizes = [
            {
                **asdict(compared),
                "run": str(compared.run),
                "selected": compared.selected and compared.selected.name,
                "differences": {
                    name: {**asdict(difference), "verdict": difference.verdict}
                    for name, difference in compared.differences.items()
                },
            }
            for compared in self.sizes
        ]
        return {"baseline": str(self.baseline), "split": self.split, "sizes": sizes}
