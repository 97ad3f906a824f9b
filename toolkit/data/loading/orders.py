"""Orders of large data sets as files that the processes of a machine share; each is drawn once, and one epoch ahead."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.system import files, storage
from toolkit.system.locks import locked

log = logging.getLogger(__name__)

MIN_IMAGES = 1_000_000  # from which on a file is worth it
VERSION = 2  # of how orders are drawn
UNUSED_S = 7 * 24 * 3600.0  # files of other runs are deleted then


@dataclass(frozen=True)
class Orders:
    """The files in `folder` of one run of `epochs` on one machine; their names begin with `key`."""

    folder: Path
    key: str
    epochs: int

    def get(self, epoch: int, kind: tuple[int, ...], draw: Callable[[], np.ndarray]) -> np.ndarray:
        """The order of an epoch, mapped into memory; the first process that asks draws it.

        `kind`: what it depends on besides the epoch. Where the disk is full, each process draws its own.
        """
        path = self.folder / ("-".join(map(str, (self.key, f"{epoch:06d}", *kind))) + ".npy")
        if (order := _mapped(path)) is not None:
            return order
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(f"{self.folder / self.key}.lock"):
            if (order := _mapped(path)) is not None:
                return order
            self._delete_old(epoch)
            drawn = draw()
            try:
                with files.replacing(path) as staging, staging.open("wb") as stream:
                    np.save(stream, drawn)
            except OSError as error:
                if not storage.concerns_place(error):
                    raise
                log.warning("each process draws its own order of the images: %s", storage.explain(error, self.folder))
            return drawn if (order := _mapped(path)) is None else order

    def draw_ahead(self, epoch: int, kind: tuple[int, ...], draw: Callable[[], np.ndarray]) -> None:
        """Draw the order of a later epoch, if there is one, while training uses the current one."""
        if epoch >= self.epochs:
            return

        def work() -> None:
            with contextlib.suppress(Exception):  # whoever needs it draws it, and raises the same
                self.get(epoch, kind, draw)

        threading.Thread(target=work, daemon=True, name="order").start()

    def _delete_old(self, epoch: int) -> None:
        """Delete files of this run that no process needs at this epoch, and old ones of other runs."""
        needed = tuple(f"{self.key}-{number:06d}-" for number in range(epoch - 1, epoch + 2))
        for file in self.folder.glob("*.npy"):  # among them unfinished ones, of processes that were killed
            with contextlib.suppress(OSError):
                is_own, age_s = self.key in file.name, time.time() - file.stat().st_mtime
                if (is_own and not file.name.startswith(needed)) or age_s > UNUSED_S:
                    file.unlink()  # whoever has mapped it keeps it


def _mapped(path: Path) -> np.ndarray | None:
    """The file; None if it is not there or cut short."""
    try:
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except Exception:  # NumPy raises many kinds of errors on damage
        return None
