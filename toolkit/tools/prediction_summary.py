"""Counts of one call of `predict`, and the lines that report them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.models.cascade import saving
from toolkit.system.result import Result
from toolkit.system.system_files import describe_system
from toolkit.tools.prediction_rows import STDOUT, PredictionRow


@dataclass(frozen=True, repr=False)
class PredictionSummary(Result):
    """Of `images` in total, `read` were predicted and `bad` cannot be read; `first_error`: the first path and reason.

    `rows`: one for each image, where no `output` was given. `left_out`: other files in the folders; `system`: those of
    systems there. `exits`: images per exit of the cascade, keyed as the column `size`. `stopped`: Ctrl-C stopped it
    early. `closed`: the reader of standard output left. `cascade`: its sizes, px, empty without one. `gmacs`: 10^9
    multiply-adds of one image by size. `norm_from`: for each size that the run was not trained at, the size whose
    normalization it uses.
    """

    output: str | None
    rows: tuple[PredictionRow, ...]
    images: int
    read: int
    bad: int
    first_error: str
    left_out: int
    system: Sequence[str]
    exits: Mapping[str, int]
    stopped: bool
    closed: bool
    cascade: tuple[int, ...]
    gmacs: Mapping[int, float]
    norm_from: Mapping[int, int]

    @property
    def none_read(self) -> bool:
        """Whether all images were tried and none can be read."""
        return bool(self.bad) and not self.read and not self.stopped

    @property
    def text(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        if self.stopped:
            yield f"stopped   after {self.read + self.bad} of {self.images} images"
        where = "" if self.output in (STDOUT, None) else f", written to {self.output}"
        bad = f", {self.bad} cannot be read (column error)" if self.bad else ""
        left_out = f", {self.left_out} other files left out" if self.left_out else ""
        system = f", {describe_system(self.system)} left out" if self.system else ""
        yield f"images    {self.read} predicted{bad}{left_out}{system}{where}"
        if self.cascade and self.read:
            yield self._cascade_line()
        for size, scale in self.norm_from.items():
            yield f"{f'{size} px':9} normalization of {scale} px: the run was not trained at {size} px"

    def _cascade_line(self) -> str:
        last = self.cascade[-1]
        shares = [self.exits.get(str(size), 0) / self.read for size in self.cascade]
        costs = np.cumsum([self.gmacs[size] for size in self.cascade])
        exits = "  ".join(f"{size} px {100 * part:.1f}%" for size, part in zip(self.cascade, shares, strict=True))
        saved = saving(float(costs @ shares), self.gmacs[last])
        return f"cascade   exits at {exits}: {saved} compute than {last} px alone"
