"""Results of a scan."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from toolkit.data.sources.index import Index
from toolkit.data.sources.survey import Finding
from toolkit.system.result import Result
from toolkit.tools.image_check import ASTRAY, BAD, ImageCheck

# Kinds of findings that affect neither training nor its metrics.
HARMLESS = frozenset({"wrong type", ASTRAY, "duplicate", "class untested", "left out"})


class Extreme(NamedTuple):
    """The image with the fewest or most pixels."""

    name: str
    width: int
    height: int


@dataclass
class SplitReport:
    """Counts of one split; `sizes`, `modes`, `formats`, `progressive` and the extremes cover only its usable images.

    `unlabeled`: images without labels, where one may have any number of them; else None.
    """

    images: int = 0
    bytes: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    per_class: dict[str, int] = field(default_factory=dict)
    unlabeled: int | None = None
    formats: Counter[str] = field(default_factory=Counter)
    progressive: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height) px, upright
    smallest: Extreme | None = None
    largest: Extreme | None = None

    def add(self, name: str, check: ImageCheck) -> None:
        self.images += 1
        self.bytes += check.size
        if check.kind in BAD or check.header is None:
            self.bad[check.kind] += 1
            return
        width, height, _, form, mode, progressive = check.header
        self.formats[form] += 1
        self.progressive += progressive
        self.modes[mode] += 1
        self.sizes[width, height] += 1
        if self.smallest is None or width * height < self.smallest.width * self.smallest.height:
            self.smallest = Extreme(name, width, height)
        if self.largest is None or width * height > self.largest.width * self.largest.height:
            self.largest = Extreme(name, width, height)


@dataclass(frozen=True, repr=False)
class ScanReport(Result):
    """`kept`: ids of each split's images fit for training and evaluation; `folder`: folder of the written files."""

    source: str
    classes: tuple[str, ...]
    indices: dict[str, Index]
    splits: dict[str, SplitReport]
    findings: tuple[Finding, ...]
    kept: dict[str, np.ndarray]
    folder: Path | None = None

    @property
    def text(self) -> str:
        """The tables of scan.txt."""
        from toolkit.tools.scan_outputs import table

        return table(self)

    def serious(self) -> list[Finding]:
        """Findings that would make training refuse to start, stop, or report wrong metrics."""
        return [finding for finding in self.findings if finding.kind not in HARMLESS]
