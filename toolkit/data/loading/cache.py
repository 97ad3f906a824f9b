"""Resolves `--cache` once per run, describes the choice in the run's plan, and opens the readers."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.config.choices import CacheKind
from toolkit.config.settings import Settings
from toolkit.data.loading.downscaled import downscaled_side, is_worthwhile, open_downscaled, shrunk
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.index import Index, Splits
from toolkit.strategies.base import Phase
from toolkit.system import places, storage
from toolkit.system.errors import InputError

GB = 1e9
MOST_OF_MEMORY = 0.8  # share of free memory that decoded images may take


@dataclass(frozen=True)
class CacheChoice:
    """The cache of a run, and the image size that each phase reads.

    `sides`: per phase, the shorter side in px of the downscaled images, or None to read the originals. `decoded_gb`:
    memory that the decoded images take in each process.
    """

    kind: CacheKind
    sides: tuple[int | None, ...]
    decoded_gb: float

    def describe(self, phases: Sequence[Phase]) -> str:
        """The cache part of the plan's data line."""
        if self.kind == "off":
            return "nothing cached"
        sides = zip(phases, self.sides, strict=True)
        smaller = "".join(f", {side} px for phase {phase.index}" for phase, side in sides if side)
        if self.kind == "ram":
            return f"decoded images kept in memory, {self.decoded_gb:.2g} GB per process{smaller}"
        return f"downscaled copies on disk{smaller}".replace(",", ":", 1) if smaller else "nothing cached"


def choose_cache(settings: Settings, splits: Splits, phases: Sequence[Phase], free_gb: float) -> CacheChoice:
    """Resolve `--cache` for this data, when each process can still take `free_gb` of memory.

    All processes must pass the same `free_gb`. Raises InputError if `--cache ram` does not fit.
    """
    train, bound = splits.train, settings.cache_gb
    if train.items is not None:
        if settings.cache in ("ram", "disk"):
            raise InputError(
                f"--cache {settings.cache}: data sets passed from Python are not cached, their own code may do that: "
                "drop the flag"
            )
        return CacheChoice("off", (None,) * len(phases), 0.0)
    wanted = [downscaled_side(max(phase.sizes), settings.crop_scale) for phase in phases]
    sides = tuple(side if is_worthwhile(train, side) else None for side in wanted)
    # In memory: training images at each size that a phase reads, validation images at full size.
    kept = [shrunk(train, side) if side else train for side in {*sides}]
    needed = sum(index.decoded_bytes for index in (*kept, splits.val)) / GB
    fits = needed <= MOST_OF_MEMORY * free_gb
    if settings.cache == "ram" and needed > bound:
        raise InputError(
            f"--cache ram: the decoded images take {needed:.1f} GB in each process, more than --cache-gb {bound:g}: "
            "raise it, or take --cache disk"
        )
    if settings.cache == "ram" and not fits:
        raise InputError(
            f"--cache ram: {needed:.1f} GB of decoded images in each process would not fit into its {free_gb:.1f} GB "
            "of free memory: take --cache disk or off for a new run; a run that is continued keeps its cache, so "
            "free memory or use fewer processes"
        )
    automatic: CacheKind = "ram" if needed <= bound and fits else "disk" if any(sides) else "off"
    kind = automatic if settings.cache == "auto" else settings.cache
    return CacheChoice(kind, sides if kind != "off" else (None,) * len(sides), needed)


def open_readers(choice: CacheChoice, index: Index, cache_dir: Path | None) -> tuple[ImageReader, ...]:
    """One reader of the training images per phase; phases with the same size share a reader.

    Writes missing downscaled copies. Raises InputError if memory or disk space runs out, OSError for other reasons.
    """
    folder = cache_dir or places.cache_dir()
    remember = choice.kind == "ram"

    def reader(side: int | None) -> ImageReader:
        try:
            if side is None:
                return ImageReader(index, remember)
            if remember:
                return ImageReader(shrunk(index, side), True, index)
            return ImageReader(open_downscaled(index, side, folder))
        except OSError as error:  # out of memory or disk space
            if error.errno != errno.ENOMEM and not storage.concerns_place(error):
                raise
            where = error.filename or folder
            raise InputError(
                f"--cache {choice.kind}: {where}: {storage.explain(error, folder)}; --cache-dir names another "
                "place, and --cache off needs none"
            ) from None

    known = {side: reader(side) for side in {*choice.sides}}
    return tuple(known[side] for side in choice.sides)
