"""Orders of large data sets as files that the processes of a machine share; each is drawn once, and one epoch ahead."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.system import files
from toolkit.system.locks import locked

LEAST = 1_000_000  # images, from which on a file is worth it
VERSION = 1  # of how orders are drawn


@dataclass(frozen=True)
class Orders:
    """The files in `folder` of one data set and seed, whose names begin with `key`."""

    folder: Path
    key: str

    def get(self, epoch: int, kind: tuple[int, ...], draw: Callable[[], np.ndarray]) -> np.ndarray:
        """The order of an epoch, mapped into memory; the first process that asks draws it.

        `kind`: what it depends on besides the epoch. Orders of other epochs are deleted, but for the two next to it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        name = "-".join(map(str, (self.key, f"{epoch:06d}", *kind)))
        path = self.folder / f"{name}.npy"
        with locked(f"{self.folder / self.key}.lock"):
            for unfinished in self.folder.glob(f".tmp-*-{self.key}-*"):  # by a process that ended
                unfinished.unlink(missing_ok=True)
            if not path.exists():
                with files.replacing(path) as staging, staging.open("wb") as stream:
                    np.save(stream, draw())
            near = {f"{number:06d}" for number in range(max(0, epoch - 1), epoch + 2)}
            for other in self.folder.glob(f"{self.key}-*.npy"):
                if other.name.split("-")[1] not in near:
                    other.unlink(missing_ok=True)  # whoever has mapped it keeps it
            return np.load(path, mmap_mode="r").view(np.ndarray)

    def draw_ahead(self, epoch: int, kind: tuple[int, ...], draw: Callable[[], np.ndarray]) -> None:
        """Draw the order of a later epoch while training uses the current one."""

        def work() -> None:
            with contextlib.suppress(Exception):  # whoever needs it draws it, and raises the same
                self.get(epoch, kind, draw)

        threading.Thread(target=work, daemon=True, name="order").start()
