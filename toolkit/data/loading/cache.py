"""The choice of `--cache`: resolved once for a run, described in its plan, and turned into readers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.config.choices import CacheKind
from toolkit.config.settings import Settings
from toolkit.data.loading.downscaled import downscaled_side, is_worthwhile, open_downscaled, shrunk
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.index import Index, Splits
from toolkit.strategies.base import Phase
from toolkit.system import files
from toolkit.system.errors import InputError

GB = 1e9
MOST_OF_MEMORY = 0.8  # of what is free, for decoded images


@dataclass(frozen=True)
class CacheChoice:
    """What is kept of the images, and at which size each phase reads them.

    `sides`: per phase the shorter side, px, of downscaled images, None where the originals serve as well;
    `decoded_gb`: memory that decoded images take in each process.
    """

    kind: CacheKind
    sides: tuple[int | None, ...]
    decoded_gb: float

    def describe(self, phases: Sequence[Phase]) -> str:
        """A part of the plan's line on the data."""
        if self.kind == "off":
            return "nothing cached"
        sides = zip(phases, self.sides, strict=True)
        smaller = "".join(f", {side} px for phase {phase.index}" for phase, side in sides if side)
        if self.kind == "ram":
            return f"decoded images kept in memory, {self.decoded_gb:.2g} GB per process{smaller}"
        return f"downscaled copies on disk{smaller}".replace(",", ":", 1) if smaller else "nothing cached"


def choose_cache(settings: Settings, splits: Splits, phases: Sequence[Phase], free_gb: float) -> CacheChoice:
    """What `--cache` means for this data where each process could still take `free_gb` of memory.

    All processes must give the same `free_gb`. Raises InputError where `--cache ram` does not fit.
    """
    train, bound = splits.train, settings.cache_gb
    wanted = [downscaled_side(max(phase.sizes), settings.crop_scale) for phase in phases]
    sides = tuple(side if is_worthwhile(train, side) else None for side in wanted)
    # Training images at each size that a phase reads, validation images in full.
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
    return CacheChoice(automatic if settings.cache == "auto" else settings.cache, sides, needed)


def open_readers(choice: CacheChoice, index: Index, cache_dir: Path | None) -> tuple[ImageReader, ...]:
    """A reader of the training images for each phase; phases of the same size share theirs.

    Writes the downscaled copies that are not there yet.
    """
    folder = cache_dir or files.cache_dir()
    remember = choice.kind == "ram"

    def reader(side: int | None) -> ImageReader:
        try:
            if side is None:
                return ImageReader(index, remember)
            if remember:
                return ImageReader(shrunk(index, side), True, index)
            return ImageReader(open_downscaled(index, side, folder))
        except OSError as error:  # no memory, or no room on the disk
            where = error.filename or folder
            raise InputError(
                f"--cache {choice.kind}: {where}: {error.strerror}; --cache-dir names another place, and "
                "--cache off needs none"
            ) from None

    sides = choice.sides if choice.kind != "off" else tuple(None for _ in choice.sides)
    known = {side: reader(side) for side in {*sides}}
    return tuple(known[side] for side in sides)
