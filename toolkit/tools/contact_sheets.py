"""Contact sheets: one PNG per class with a few of its images."""

import io
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from toolkit.data.images.decode import read_pixels, resize_to
from toolkit.data.images.header import read_header
from toolkit.data.images.preprocess import upright
from toolkit.data.sources.index import Index
from toolkit.data.sources.read import read_bytes
from toolkit.system import host
from toolkit.tools.scan_report import ScanReport

COLUMNS, ROWS, TILE, GAP = 6, 4, 112, 4  # tile and gap in px


def write_contact_sheets(report: ScanReport, folder: Path) -> None:
    """Write `NUMBER-CLASS.png` for each class: up to 24 of its kept images, evenly spaced over all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    members: list[list[tuple[Index, int]]] = [[] for _ in report.classes]
    for split, index in report.indices.items():
        for i in report.kept[split].tolist():
            members[index.labels[i]].append((index, i))

    def draw(label: int) -> None:
        safe = re.sub(r"[^\w.-]", "_", report.classes[label])[:80]
        _sheet(members[label]).save(folder / f"{label:04d}-{safe}.png")

    with ThreadPoolExecutor(host.cpu_quota()) as pool:  # each thread holds at most one sheet in memory
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
    """The whole image, upright, H x W x 3 uint8, longer side TILE px."""
    content = read_bytes(index, i)
    header = read_header(io.BytesIO(content))
    longer = max(header.width, header.height)
    pixels, _ = read_pixels(content, next((d for d in (8, 4, 2) if longer >= d * TILE), 1), index.gray)
    height, width = (max(1, round(side * TILE / longer)) for side in (header.height, header.width))
    return resize_to(upright(pixels, header.orientation), height, width)
