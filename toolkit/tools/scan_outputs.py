"""Format a scan as a table and as JSON."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from toolkit.data.sources.survey import Finding
from toolkit.tools.scan_report import HARMLESS, Extreme, ScanReport, SplitReport

SCHEMA = 1  # version of scan.json
MOST_LINES = 20  # lines of the table per kind of finding
MOST_CLASSES = 40  # up to here the table has a count for each class


def to_json(report: ScanReport) -> dict[str, Any]:
    """The report as JSON-serializable values."""
    splits = {}
    for split, counts in report.splits.items():
        splits[split] = {
            "images": counts.images,
            "bytes": counts.bytes,
            "bad": dict(counts.bad),
            "kept": len(report.kept[split]),
            "per_class": counts.per_class,
            **({} if counts.unlabeled is None else {"unlabeled": counts.unlabeled}),
            "formats": dict(counts.formats),
            "progressive_jpegs": counts.progressive,
            "modes": dict(counts.modes),
            "sizes": {f"{width}x{height}": count for (width, height), count in counts.sizes.most_common()},
            "smallest": counts.smallest and counts.smallest._asdict(),
            "largest": counts.largest and counts.largest._asdict(),
        }
    return {
        "schema": SCHEMA,
        "source": report.source,
        "usable": not report.serious(),
        "classes": report.classes,
        "splits": splits,
        "findings": [{**finding._asdict(), "harmless": finding.kind in HARMLESS} for finding in report.findings],
    }


def verdict(report: ScanReport) -> str:
    """One line: whether the data can be used unchanged, and what was found."""
    kinds = Counter(finding.kind for finding in report.findings)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    if report.serious():
        return f"{report.source}: not usable as it is: {counts}"
    return f"{report.source}: usable as it is; {f'to know: {counts}' if counts else 'nothing was found'}"


def table(report: ScanReport) -> str:
    """The report as text: one column per split, then the findings by kind."""
    splits = list(report.splits.values())
    rows = [("", *report.splits), *_counts(splits), *_per_class(report, splits), *_shares(splits)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *cells in rows:
        right = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        lines.append(f"{first:{widths[0]}}  {right}".rstrip())
    for kind in dict.fromkeys(finding.kind for finding in report.findings):
        lines += ["", *_findings(kind, [finding for finding in report.findings if finding.kind == kind])]
    text = "\n".join([*lines, "", verdict(report)]) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()  # file names may not be valid UTF-8


def _counts(splits: Sequence[SplitReport]) -> Iterator[tuple[str, ...]]:
    yield "images", *(str(split.images) for split in splits)
    yield "MB", *(f"{split.bytes / 1e6:.1f}" for split in splits)
    yield "bad", *(str(split.bad.total()) for split in splits)
    for kind in dict.fromkeys(kind for split in splits for kind in split.bad):
        yield f"  {kind}", *(str(split.bad[kind]) for split in splits)
    yield "progressive JPEG", *(_percent(split.progressive, split.formats["JPEG"]) for split in splits)
    for which in ("smallest", "largest"):
        yield f"{which}, px", *(_extent(getattr(split, which)) for split in splits)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _extent(extreme: Extreme | None) -> str:
    return f"{extreme.width} x {extreme.height}" if extreme else "-"


def _per_class(report: ScanReport, splits: Sequence[SplitReport]) -> Iterator[tuple[str, ...]]:
    if splits[0].unlabeled is not None:
        yield "labels", *(str(sum(split.per_class.values())) for split in splits)
        yield "images without labels", *(str(split.unlabeled) for split in splits)
    yield f"classes ({len(report.classes)})", *(str(sum(map(bool, split.per_class.values()))) for split in splits)
    if len(report.classes) <= MOST_CLASSES:
        for name in report.classes:
            yield f"  {name}", *(str(split.per_class[name]) for split in splits)
    else:
        counts = [split.per_class.values() for split in splits]
        yield "  fewest images in one", *(str(min(count)) for count in counts)
        yield "  median", *(str(statistics.median_low(count)) for count in counts)
        yield "  most images in one", *(str(max(count)) for count in counts)


def _shares(splits: Sequence[SplitReport]) -> Iterator[tuple[str, ...]]:
    """Image counts by shorter side (ranges of powers of two), by format and by mode."""
    sides: list[Counter[int]] = []
    for split in splits:
        sides.append(Counter())
        for (width, height), count in split.sizes.items():
            sides[-1][min(width, height).bit_length()] += count
    yield "shorter side, px", *("" for _ in splits)
    for bits in sorted({bits for side in sides for bits in side}):
        yield f"  {1 << bits - 1} to {(1 << bits) - 1}", *(str(side[bits]) for side in sides)
    for title in ("formats", "modes"):
        counts = [getattr(split, title) for split in splits]
        yield title, *("" for _ in splits)
        for name in sorted({name for count in counts for name in count}):
            yield f"  {name}", *(str(count[name]) for count in counts)


def _findings(kind: str, findings: Sequence[Finding]) -> Iterator[str]:
    yield f"{kind} ({len(findings)}{', harmless' if kind in HARMLESS else ''})"
    for split, name, _, reason in findings[:MOST_LINES]:
        yield f"  {split}: {f'{name}: ' if name else ''}{reason}"
    if len(findings) > MOST_LINES:
        yield f"  ... and {len(findings) - MOST_LINES} more, in scan.json"
