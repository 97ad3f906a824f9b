"""Contact sheets: one PNG per class with its name, a few of its images and their file names."""

import io
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from toolkit.data.images.decode import read_pixels, resize_to
from toolkit.data.images.header import read_header
from toolkit.data.images.preprocess import upright
from toolkit.data.sources.index import Index
from toolkit.data.sources.read import read_bytes
from toolkit.system import host
from toolkit.system.errors import printable
from toolkit.system.plotting import matplotlib
from toolkit.tools.scan_report import ScanReport

COLUMNS, ROWS, TILE, GAP = 6, 4, 112, 8  # tile and gap in px
UNLABELED = "without labels"
HEAD, LINE = 30, 14  # height of the class name, and of a file name below its tile, px


def write_contact_sheets(report: ScanReport, folder: Path) -> None:
    """Write `NUMBER-CLASS.png` for each class: up to 24 of its kept images, evenly spaced over all of them.

    Another one shows images without labels, if there are any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [*report.classes, UNLABELED]
    members: list[list[tuple[str, Index, int]]] = [[] for _ in names]
    for split, index in report.indices.items():
        for i in report.kept[split].tolist():
            label = index.labels[i]
            for one in (np.flatnonzero(label).tolist() or [-1]) if label.ndim else [label]:
                members[one].append((split, index, i))

    def draw(label: int) -> None:
        safe = re.sub(r"[^\w.-]", "_", names[label])[:80]
        _sheet(names[label], members[label]).save(folder / f"{label:04d}-{safe}.png")

    with ThreadPoolExecutor(host.cpu_quota()) as pool:  # each thread holds at most one sheet in memory
        list(pool.map(draw, [label for label, some in enumerate(members) if some]))


def _sheet(name: str, members: Sequence[tuple[str, Index, int]]) -> Image.Image:
    chosen = np.linspace(0, len(members) - 1, min(len(members), COLUMNS * ROWS)).round().astype(int)
    rows, down = -(-len(chosen) // COLUMNS), TILE + LINE + GAP
    sheet = Image.new("RGB", (COLUMNS * (TILE + GAP) + GAP, HEAD + rows * down), "white")
    words = ImageDraw.Draw(sheet)
    head, small = _font(15), _font(9)
    words.text((GAP, 7), _fitted(f"{name}, {len(chosen)} of {len(members)} images", head, sheet.width), "black", head)
    for place, number in enumerate(chosen.tolist()):
        split, index, i = members[number]
        tile = Image.fromarray(_thumbnail(index, i))
        left, top = place % COLUMNS * (TILE + GAP) + GAP, place // COLUMNS * down + HEAD
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        file = _fitted(f"{split}: {Path(index.names[i]).name}", small, TILE)
        words.text((left, top + TILE + 2), file, "#555555", small)
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or as much of its end as fits into `width` px: file names differ there."""
    text = printable(text)
    if font.getlength(text) <= width:
        return text
    return next((f"…{text[i:]}" for i in range(1, len(text)) if font.getlength(f"…{text[i:]}") <= width), "…")


def _thumbnail(index: Index, i: int) -> np.ndarray:
    """The whole image, upright, H x W x 3 uint8, longer side TILE px."""
    content = read_bytes(index, i)
    header = read_header(io.BytesIO(content))
    longer = max(header.width, header.height)
    pixels, _ = read_pixels(content, next((d for d in (8, 4, 2) if longer >= d * TILE), 1), index.gray)
    height, width = (max(1, round(side * TILE / longer)) for side in (header.height, header.width))
    return resize_to(upright(pixels, header.orientation), height, width)
