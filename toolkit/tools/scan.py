"""A check of a whole data set before money is spent on it: every image read and decoded once, by all cores."""

import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import simplejpeg
from tqdm import tqdm

from toolkit.data.images.decode import DAMAGE, WHOLE, read_pixels
from toolkit.data.images.header import Header, TooLargeError, read_header
from toolkit.data.sources.index import Index
from toolkit.data.sources.read import read_bytes
from toolkit.data.sources.survey import Finding, Survey
from toolkit.system import host
from toolkit.system.errors import BadSampleError

PIECE = 32  # images that one thread takes at a time
DIGEST_BYTES = 16
BAD = ("unreadable", "empty", "truncated", "damaged", "too large")  # kinds of images that cannot be used
HARMLESS = frozenset(
    {"wrong type", "duplicate", "class untested", "left out"}
)  # training goes on, its figures are right
EVALUATED_FIRST = ("test", "val", "train")  # of copies the one in the earliest of these splits stays
FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".avif": "AVIF",
}


class ImageCheck(NamedTuple):
    """What was seen of one image; `kind` and `reason` of a fault, `digest` of the content of a good one."""

    size: int = 0  # bytes
    header: Header | None = None
    digest: bytes = b""
    kind: str = ""
    reason: str = ""


class Extreme(NamedTuple):
    """The image of fewest or most pixels."""

    name: str
    width: int
    height: int


@dataclass
class SplitReport:
    """Counts over one split; `sizes`, `modes`, `formats` and the extremes are of its good images."""

    images: int = 0
    bytes: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    per_class: dict[str, int] = field(default_factory=dict)
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


@dataclass(frozen=True)
class ScanReport:
    """What a scan found; `kept` are the ids of each split's images worth training and evaluating on."""

    source: str
    classes: tuple[str, ...]
    indices: dict[str, Index]
    splits: dict[str, SplitReport]
    findings: tuple[Finding, ...]
    kept: dict[str, np.ndarray]

    def serious(self) -> list[Finding]:
        """What training would refuse or stop at, or what makes its figures wrong."""
        return [finding for finding in self.findings if finding.kind not in HARMLESS]


def scan(found: Survey, threads: int | None = None) -> ScanReport:
    """Read and decode every image of every split; a progress bar on a terminal."""
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
        counts = np.bincount(index.labels, minlength=len(found.classes)).tolist()
        report.per_class = dict(zip(found.classes, counts, strict=True))
        reports[split] = report
    for split, i, kind, reason in _find_copies(found, digests):
        findings.append(Finding(split, found.splits[split].names[i], kind, reason))
        if kind not in HARMLESS:
            left_out[split].add(i)
    kept = {
        split: np.array([i for i in range(len(index)) if i not in left_out[split]], dtype=np.int64)
        for split, index in found.splits.items()
    }
    return ScanReport(found.source, found.classes, found.splits, reports, tuple(findings), kept)


def _examine_all(index: Index, threads: int, split: str) -> Iterator[ImageCheck]:
    """Every image in order; most of the time is spent where the interpreter is not held."""
    pieces = [range(start, min(start + PIECE, len(index))) for start in range(0, len(index), PIECE)]
    pool = ThreadPoolExecutor(threads)
    bar = tqdm(total=len(index), desc=f"scanning {split}", unit="image", disable=None)
    with bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's own, of files that are reported all the same
        try:
            for piece in pool.map(lambda ids: [examine(index, i) for i in ids], pieces):
                yield from piece
                bar.update(len(piece))
        finally:
            pool.shutdown(cancel_futures=True)


def examine(index: Index, i: int) -> ImageCheck:
    """One image, read once."""
    try:
        content = read_bytes(index, i)
    except BadSampleError as error:
        return ImageCheck(kind="unreadable", reason=error.reason)
    if not content:
        return ImageCheck(kind="empty", reason="the file is empty")
    size, header = len(content), None
    try:
        header = read_header(io.BytesIO(content))
        damage = _decode(content, header)
    except TooLargeError as error:
        return ImageCheck(size, kind="too large", reason=str(error))
    except ValueError as error:
        kind = "damaged" if DAMAGE.match(str(error)) else "unreadable"
        return ImageCheck(size, header, kind="truncated" if _is_cut(content, str(error)) else kind, reason=str(error))
    if damage:
        return ImageCheck(size, header, kind="damaged", reason=damage)
    digest = hashlib.sha256(content).digest()[:DIGEST_BYTES]
    promised = FORMATS.get(PurePath(index.names[i]).suffix.lower(), header.form)
    if promised != header.form:
        return ImageCheck(size, header, digest, "wrong type", f"the content is {header.form}, the name says {promised}")
    return ImageCheck(size, header, digest)


def _decode(content: bytes, header: Header) -> str:
    """What the decoder warned of in an image that training would accept; raises ValueError where it would not."""
    if header.form != "JPEG" or header.mode not in ("L", "RGB"):
        read_pixels(content)
        return ""
    try:
        simplejpeg.decode_jpeg(content, "RGB", **WHOLE)
    except (ValueError, KeyError) as error:
        read_pixels(content)
        return str(error) if str(error).startswith("Corrupt JPEG data") else ""  # bytes left over before the end
    return ""


def _is_cut(content: bytes, reason: str) -> bool:
    """Whether an unreadable file is the beginning of a readable one, as far as that can be told."""
    if content[:4] == b"RIFF":  # WebP says how long it is
        return int.from_bytes(content[4:8], "little") + 8 > len(content)
    if content[:3] == b"\xff\xd8\xff" and not content.rstrip(b"\0").endswith(b"\xff\xd9"):
        return True
    return "truncated" in reason.lower()


def _find_copies(found: Survey, digests: dict[str, list[bytes]]) -> Iterator[tuple[str, int, str, str]]:
    """(split, id, kind, reason) of images with the very bytes of another."""
    order = [(split, i) for split in EVALUATED_FIRST if split in digests for i in range(len(digests[split]))]
    seen: dict[bytes, int] = {}
    groups: dict[int, list[int]] = {}
    for number, (split, i) in enumerate(order):
        digest = digests[split][i]
        first = seen.setdefault(digest, number) if digest else number
        if first != number:
            groups.setdefault(first, [first]).append(number)
    for group in groups.values():
        yield from _judge(found, [order[number] for number in group])


def _judge(found: Survey, copies: list[tuple[str, int]]) -> Iterable[tuple[str, int, str, str]]:
    """Copies in a split that is evaluated later leak; in one split they repeat or contradict each other.

    Where validation images will be drawn from train, a copy there leaks as well.
    """

    def called(split: str, i: int) -> str:
        index = found.splits[split]
        return f"the same content as {index.names[i]}, class {found.classes[index.labels[i]]}"

    keeper, first = copies[0]
    labels = found.splits[keeper].labels
    own = [i for split, i in copies if split == keeper]
    contradictory = len({*labels[own].tolist()}) > 1
    for split, i in copies:
        if split != keeper:
            yield split, i, "leak", called(keeper, first)
        elif contradictory:
            yield split, i, "contradiction", called(keeper, next(j for j in own if labels[j] != labels[i]))
        elif i != first and keeper == "train" and "val" not in found.splits:
            yield split, i, "would leak", f"{called(keeper, first)}; of train a part would be held out for validation"
        elif i != first:
            yield split, i, "duplicate", called(keeper, first)
