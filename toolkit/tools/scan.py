"""Check a data set before training: read and decode every image of every split once, on all cores."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from toolkit.config.arguments import checked
from toolkit.config.choices import CACHE_GB, GrayRange
from toolkit.config.tables import CLASSIFICATION
from toolkit.data.images.preprocess import AS_STORED
from toolkit.data.sources import index_tables
from toolkit.data.sources.index import Index
from toolkit.data.sources.label_rows import images_of_classes
from toolkit.data.sources.survey import Finding, Survey, survey
from toolkit.system import files, host
from toolkit.system.places import expanded
from toolkit.tools import clean_manifest
from toolkit.tools.contact_sheets import write_contact_sheets
from toolkit.tools.copies import find_copies
from toolkit.tools.image_check import BAD, ImageCheck, examine
from toolkit.tools.scan_outputs import to_json
from toolkit.tools.scan_report import HARMLESS, ScanReport, SplitReport

log = logging.getLogger(__name__)

PIECE = 32  # images per task of a thread


@checked("Scan")
def scan(
    data: str,
    *,
    output_dir: str | Path | None = None,
    write_manifest: bool = False,
    write_index: bool = False,
    contact_sheets: bool = True,
    range: GrayRange = AS_STORED,
    num_workers: int | None = None,
    cache_dir: Path | None = None,
    cache_gb: float = CACHE_GB,
    label_column: str | None = None,
    hf_config: str | None = None,
    task: str = CLASSIFICATION,
) -> ScanReport:
    """Check the data set `data`. The flags of `toolkit scan` describe the arguments.

    Writes scan.json, scan.txt, contact-sheets/ and manifest/ to `output_dir` (None:
    scan-NAME-TIME). Raises InputError if nothing can be scanned or written; bad images are findings, not errors.
    """
    folder = _folder(data) if output_dir is None else expanded(output_dir)
    found = survey(data, cache_dir, cache_gb, label_column, hf_config, task)
    splits = {split: replace(index, gray=range) for split, index in found.splits.items()}
    found = replace(found, splits=splits)
    if write_manifest:
        clean_manifest.refuse_manifest(found, folder / "manifest")
    files.make_folder(folder)
    if write_index:
        for place in index_tables.write_beside(data, found.splits):
            log.info("wrote     %s", place)
    report = replace(check_images(found, num_workers), folder=folder)
    files.write_json(folder / "scan.json", to_json(report))
    files.write_text(folder / "scan.txt", report.text)
    if contact_sheets:
        write_contact_sheets(report, folder / "contact-sheets")
    if write_manifest:
        clean_manifest.write_manifest(report, folder / "manifest")
    return report


def _folder(data: str) -> Path:
    name = expanded(data.rstrip("/")).resolve().name.replace(":", "-")
    return Path(f"scan-{name}-{time.strftime('%Y%m%d-%H%M%S')}")


def check_images(found: Survey, threads: int | None = None) -> ScanReport:
    """Read and decode every image of every split; shows a progress bar on a terminal, writes no files."""
    reports: dict[str, SplitReport] = {}
    findings = list(found.findings)
    digests: dict[str, list[bytes]] = {}
    left_out: dict[str, set[int]] = {split: set() for split in found.splits}
    for split, index in found.splits.items():
        report, digests[split] = SplitReport(), []
        for i, check in enumerate(_examine_all(index, threads or host.cpu_quota(), split)):
            name = index.names[i]
            report.add(name, check)
            digests[split].append(check.digest)
            if check.kind:
                findings.append(Finding(split, name, check.kind, check.reason))
            if check.kind in BAD:
                left_out[split].add(i)
        counts = images_of_classes(index.labels, len(found.classes)).tolist()
        report.per_class = dict(zip(found.classes, counts, strict=True))
        report.unlabeled = int((~index.labels.any(1)).sum()) if index.labels.ndim > 1 else None
        reports[split] = report
    for split, i, kind, reason in find_copies(found, digests):
        findings.append(Finding(split, found.splits[split].names[i], kind, reason))
        if kind not in HARMLESS:
            left_out[split].add(i)
    kept = {
        split: np.array([i for i in range(len(index)) if i not in left_out[split]], dtype=np.int64)
        for split, index in found.splits.items()
    }
    return ScanReport(found.source, found.classes, found.splits, reports, tuple(findings), kept)


def _examine_all(index: Index, threads: int, split: str) -> Iterator[ImageCheck]:
    """Check all images, in order; threads suffice because most time is spent without the interpreter lock."""
    pieces = [range(start, min(start + PIECE, len(index))) for start in range(0, len(index), PIECE)]
    pool = ThreadPoolExecutor(threads)
    bar = tqdm(total=len(index), desc=f"scanning {split}", unit="image", disable=None)
    with bar:
        try:
            for piece in pool.map(lambda ids: [examine(index, i) for i in ids], pieces):
                yield from piece
                bar.update(len(piece))
        finally:
            pool.shutdown(cancel_futures=True)
