"""What a scan leaves behind: a table, JSON, a contact sheet per class, manifests of what is good."""

import io
import os
import re
import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toolkit.data.images.decode import read_pixels, resize_to, upright
from toolkit.data.images.header import read_header
from toolkit.data.sources.index import ALONE, Index
from toolkit.data.sources.labels import CLASS_NAMES
from toolkit.data.sources.read import read_bytes
from toolkit.data.sources.survey import Finding, Survey
from toolkit.system import files, host
from toolkit.system.errors import InputError
from toolkit.tools.prediction_rows import csv_line
from toolkit.tools.scan import HARMLESS, Extreme, ScanReport, SplitReport

SCHEMA = 1  # of scan.json
MOST_LINES = 20  # of the table, for each kind of finding
MOST_CLASSES = 40  # of which the table gives each one's count
COLUMNS, ROWS, TILE, GAP = 6, 4, 112, 4  # of a contact sheet; tile and gap in px
IMAGES = "images"  # the link in a manifest's folder to the data set


def to_json(report: ScanReport) -> dict[str, Any]:
    """All of a report as plain values."""
    splits = {}
    for split, counts in report.splits.items():
        splits[split] = {
            "images": counts.images,
            "bytes": counts.bytes,
            "bad": dict(counts.bad),
            "kept": len(report.kept[split]),
            "per_class": counts.per_class,
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
    """One line: whether the data can be used as it is, and what was found."""
    kinds = Counter(finding.kind for finding in report.findings)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    if report.serious():
        return f"{report.source}: not usable as it is: {counts}"
    return f"{report.source}: usable as it is; {f'to know: {counts}' if counts else 'nothing was found'}"


def table(report: ScanReport) -> str:
    """A report for a person: a column per split, then the findings by kind."""
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
    return text.encode("utf-8", "backslashreplace").decode()  # names of files need not be UTF-8


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
    """How many images there are of each shorter side, by powers of two, and of each format and mode."""
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


def write_contact_sheets(report: ScanReport, folder: Path) -> None:
    """`NUMBER-CLASS.png` for each class: up to 24 of its good images, spread over all there are."""
    folder.mkdir(parents=True, exist_ok=True)
    members: list[list[tuple[Index, int]]] = [[] for _ in report.classes]
    for split, index in report.indices.items():
        for i in report.kept[split].tolist():
            members[index.labels[i]].append((index, i))

    def draw(label: int) -> None:
        safe = re.sub(r"[^\w.-]", "_", report.classes[label])[:80]
        _sheet(members[label]).save(folder / f"{label:04d}-{safe}.png")

    with ThreadPoolExecutor(host.cpu_quota()) as pool:  # each thread has no more than one sheet in memory
        list(pool.map(draw, [label for label, some in enumerate(members) if some]))


def _sheet(members: Sequence[tuple[Index, int]]) -> Image.Image:
    chosen = np.linspace(0, len(members) - 1, min(len(members), COLUMNS * ROWS)).round().astype(int)
    pitch = TILE + GAP
    sheet = Image.new("RGB", (COLUMNS * pitch + GAP, ROWS * pitch + GAP), "white")
    for place, number in enumerate(chosen.tolist()):
        tile = Image.fromarray(_thumbnail(*members[number]))
        left, top = place % COLUMNS * pitch + GAP, place // COLUMNS * pitch + GAP
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
    return sheet


def _thumbnail(index: Index, i: int) -> np.ndarray:
    """All of an image, upright, its longer side TILE px."""
    content = read_bytes(index, i)
    header = read_header(io.BytesIO(content))
    longer = max(header.width, header.height)
    pixels, _ = read_pixels(content, next((d for d in (8, 4, 2) if longer >= d * TILE), 1))
    height, width = (max(1, round(side * TILE / longer)) for side in (header.height, header.width))
    return resize_to(upright(pixels, header.orientation), height, width)


def refuse_manifest(found: Survey, folder: Path) -> None:
    """Raise InputError where no manifest could be written into `folder`: better before the scan than after it."""
    if folder.exists():
        raise InputError(f"--write-manifest: {folder} is there already: give another --output-dir")
    indices = found.splits.values()
    if len({index.root for index in indices}) != 1 or any((index.container != ALONE).any() for index in indices):
        raise InputError(f"--write-manifest: the images of {found.source} are not files of one folder")


def write_manifest(report: ScanReport, folder: Path) -> None:
    """`train.csv`, ... of the images worth keeping, and the names of their classes; `--data-root` on it trains.

    Paths in a manifest must not lead out of its folder: it gets a link to the data set. Raises InputError where what
    is left could not be trained on.
    """
    kept = {split: index.take(report.kept[split]) for split, index in report.indices.items()}
    left = {split: {*index.labels.tolist()} for split, index in kept.items()}
    labels = sorted(left["train"])
    counts = Counter(kept["train"].labels.tolist())
    rules = [
        *([f"{len(labels)} class would be left in train"] if len(labels) < 2 else []),
        *(
            f"class {report.classes[label]!r} would have no image in val"
            for label in labels
            if label not in left.get("val", labels)
        ),
        *(
            f"class {report.classes[label]!r} would have 1 image in train, too few to hold one out for validation"
            for label in labels
            if "val" not in left and counts[label] == 1
        ),
    ]
    if rules:
        raise InputError(f"--write-manifest: {rules[0]}: mend that in {report.source}")
    staging = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        _fill(staging, kept, labels, report)
        os.replace(staging, folder)
    except OSError as error:
        raise InputError(f"--write-manifest: {error.filename or staging}: {error.strerror}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fill(folder: Path, kept: dict[str, Index], labels: Sequence[int], report: ScanReport) -> None:
    """The manifests of what is kept, of the classes `labels` only."""
    try:
        (folder / IMAGES).symlink_to(Path(report.indices["train"].root).resolve(), target_is_directory=True)
    except OSError as error:
        raise InputError(f"--write-manifest: no link can be made in {folder.parent}: {error.strerror}") from None
    _write_names(folder / CLASS_NAMES, [report.classes[label] for label in labels])
    number = {label: new for new, label in enumerate(labels)}
    for split, index in kept.items():
        if not len(index):  # of a test split nothing may be left
            continue
        rows = zip(index.names, index.labels.tolist(), strict=True)
        _write_csv(folder / f"{split}.csv", ((name, number[label]) for name, label in rows if label in number))


def _write_names(file: Path, names: Sequence[str]) -> None:
    """Raises InputError where a name would be read back as another: it ends in a space, say, or is not UTF-8."""
    for name in names:
        if name.encode("utf-8", "replace").decode("utf-8-sig").splitlines() != [name] or name != name.strip():
            raise InputError(f"--write-manifest: class {name!r} cannot stand in {CLASS_NAMES}: rename it in the data")
    files.write_text(file, "".join(f"{name}\n" for name in names))


def _write_csv(file: Path, rows: Iterable[tuple[str, int]]) -> None:
    cells = (("filepath", "label"), *((f"{IMAGES}/{name}", label) for name, label in rows))
    try:
        text = "".join(map(csv_line, cells))
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"--write-manifest: {file.name} would be in UTF-8, and the name of an image is not") from None
    files.write_text(file, text)
