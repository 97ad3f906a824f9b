"""TensorBoard: event files in the run's folder, read by `tensorboard --logdir`."""

import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from accelerate.tracking import TensorBoardTracker
from PIL import Image, ImageDraw, ImageFont

from toolkit.runs.dashboards.base import DashboardRun, TrackerDashboard, flat, without_axes
from toolkit.runs.dashboards.tables import Errors, Table

THUMBNAIL_PX, CAPTION_PX = 128, 28


class OnTensorBoard(TrackerDashboard):
    """Event files of one run, in one folder for all its starts.

    Readers hide rows of an earlier file whose steps a later file repeats.
    """

    package = "tensorboard"
    can_rewind = True

    @classmethod
    def open(cls, run: DashboardRun) -> "OnTensorBoard":
        tracker = TensorBoardTracker("tensorboard", logging_dir=str(run.folder), purge_step=run.step + 1)
        tracker.start()
        if run.first:
            # Not the tracker's store_init_configuration: its hyperparameters are a second run for TensorBoard.
            settings = Table(["setting", "value"], [[*pair] for pair in flat(run.config).items()])
            tracker.writer.add_text("run/config", _markdown(settings), 0)
        return cls(tracker)

    def log(self, row: Mapping[str, float], step: int) -> None:
        super().log(without_axes(row), step)

    def rewind(self, step: int) -> None:
        self.tracker.writer.close()
        time.sleep(1)  # readers order files by name: its second, then text in which writer 10 comes before writer 9
        self.tracker.writer.purge_step = step + 1  # the next row opens a file that stores it

    def alert(self, title: str, text: str, step: int) -> None:
        self.tracker.writer.add_text("run/alerts", f"**{title}** {text}", step)

    def show(self, errors: Errors, step: int) -> None:
        writer = self.tracker.writer
        for name, table in errors.tables().items():
            writer.add_text(f"errors/{name}", _markdown(table), step)
        tiles = [_tile(file, caption) for file, caption in errors.captioned()]
        if tiles:
            writer.add_images("errors/hardest", np.stack(tiles), step, dataformats="NHWC")


def _markdown(table: Table) -> str:
    rows = [[cell.stem if isinstance(cell, Path) else cell for cell in row] for row in table.rows]
    lines = [table.columns, ["---"] * len(table.columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _tile(file: Path, caption: str) -> np.ndarray:
    """One image centered on a square, because TensorBoard needs equal shapes, above its caption; H x W x 3."""
    tile = Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX + CAPTION_PX))
    with Image.open(file) as image:
        tile.paste(image, ((THUMBNAIL_PX - image.width) // 2, (THUMBNAIL_PX - image.height) // 2))
    words = "\n".join(textwrap.wrap(caption, 24)[:2])
    ImageDraw.Draw(tile).text((2, THUMBNAIL_PX + 2), words, "white", ImageFont.load_default(9))
    return np.asarray(tile)
