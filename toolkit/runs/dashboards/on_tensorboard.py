"""TensorBoard: event files in the run's folder, read by `tensorboard --logdir`."""

import time
from pathlib import Path

import numpy as np
from accelerate.tracking import TensorBoardTracker
from PIL import Image

from toolkit.runs.dashboards.base import DashboardRun, TrackerDashboard, flat
from toolkit.runs.dashboards.tables import Errors, Table

THUMBNAIL_PX = 128


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
            tracker.store_init_configuration(flat(run.config))
        return cls(tracker)

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
        files = [row[0] for row in errors.hardest.rows]
        if files:
            writer.add_images("errors/hardest", np.stack([*map(_thumbnail, files)]), step, dataformats="NHWC")


def _markdown(table: Table) -> str:
    rows = [[cell.stem if isinstance(cell, Path) else cell for cell in row] for row in table.rows]
    lines = [table.columns, ["---"] * len(table.columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _thumbnail(file: Path) -> np.ndarray:
    """One image centered on a square, because TensorBoard needs equal shapes; THUMBNAIL_PX x THUMBNAIL_PX x 3."""
    square = Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))
    with Image.open(file) as image:
        square.paste(image, ((THUMBNAIL_PX - image.width) // 2, (THUMBNAIL_PX - image.height) // 2))
    return np.asarray(square)
