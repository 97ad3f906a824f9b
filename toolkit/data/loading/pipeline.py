"""What training and evaluation draw from: the cheapest source of images for each phase, and workers to load them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.config.settings import Settings
from toolkit.data.images.augment import Augmenter
from toolkit.data.images.mixing import Mixer
from toolkit.data.loading.batches import Batch, TrainBatchBuilder
from toolkit.data.loading.downscaled import downscaled_side, is_worthwhile, open_downscaled, shrunk
from toolkit.data.loading.prefetch import fetching_ahead
from toolkit.data.loading.reader import ImageReader
from toolkit.data.loading.sampler import BatchSpec, Epoch, RankShare, Sampler, Shards, micro_batches
from toolkit.data.loading.workers import by_processes, by_threads
from toolkit.data.sources.index import Index, Splits
from toolkit.strategies.base import Phase, Strategy
from toolkit.system import files
from toolkit.system.errors import InputError

GB = 1e9
MOST_OF_MEMORY = 0.8  # of what is free, for decoded images


def resolve_cache(settings: Settings, splits: Splits, phases: Sequence[Phase], free_gb: float) -> str:
    """What `--cache` means for this data where each process could still take `free_gb` of memory.

    All processes must give the same `free_gb`. Raises InputError where decoded images were asked for and do not fit.
    """
    needed, bound = _decoded_gb(settings, splits, phases), settings.cache_gb
    fits = needed <= MOST_OF_MEMORY * free_gb
    if settings.cache == "ram" and needed > bound:
        raise InputError(
            f"--cache ram: the decoded images take {needed:.1f} GB in each process, more than --cache-gb {bound:g}: "
            "raise it, or take --cache disk"
        )
    if settings.cache == "ram" and not fits:
        raise InputError(
            f"--cache ram: {needed:.1f} GB of decoded images in each process would not fit into its {free_gb:.1f} GB "
            "of free memory: take --cache disk or off for a new run; one that goes on keeps what it began with, so "
            "free memory or use fewer processes"
        )
    if settings.cache != "auto":
        return settings.cache
    return "ram" if needed <= bound and fits else "disk" if any(_sides(settings, splits.train, phases)) else "off"


def _sides(settings: Settings, index: Index, phases: Sequence[Phase]) -> list[int | None]:
    """The shorter side of the smaller images that serve each phase, px; None where the originals do as well."""
    sides = [downscaled_side(max(phase.sizes), settings.crop_scale) for phase in phases]
    return [side if is_worthwhile(index, side) else None for side in sides]


def _decoded_gb(settings: Settings, splits: Splits, phases: Sequence[Phase]) -> float:
    """What decoded images take: training ones at each size that a phase draws from, validation ones in full."""
    train = splits.train
    kept = [shrunk(train, side) if side else train for side in {*_sides(settings, train, phases)}]
    return sum(index.decoded_bytes for index in (*kept, splits.val)) / GB


def describe(settings: Settings, splits: Splits, phases: Sequence[Phase]) -> str:
    """The resolved cache as words for a person."""
    if settings.cache == "off":
        return "nothing cached"
    sides = zip(phases, _sides(settings, splits.train, phases), strict=True)
    smaller = "".join(f", {side} px for phase {phase.index}" for phase, side in sides if side)
    if settings.cache == "ram":
        needed = _decoded_gb(settings, splits, phases)
        return f"decoded images kept in memory, {needed:.2g} GB per process{smaller}"
    return f"downscaled copies on disk{smaller}".replace(",", ":", 1) if smaller else "nothing cached"


@dataclass(frozen=True)
class DataPipeline:
    """`sources` are the training images by phase, `evaluated` those of the other splits, by name."""

    sampler: Sampler
    augmenter: Augmenter
    mixer: Mixer
    sources: tuple[ImageReader, ...]
    evaluated: Mapping[str, ImageReader]
    workers: int
    timeout_s: float
    quarantine: bool

    def builder(self, phase: Phase) -> TrainBatchBuilder:
        return TrainBatchBuilder(self.sources[phase.index], self.augmenter, self.mixer, self.quarantine)

    def batches(self, epoch: Epoch, from_step: int, share: RankShare) -> Iterator[Batch]:
        """What one process has to see of an epoch from optimizer step `from_step` of the run on."""
        whole = self.sampler.batch_specs(epoch, from_step)
        batch_specs = (part for spec in whole for part in micro_batches(spec, share))
        by, builder = by_processes if self.augmenter.holds_interpreter else by_threads, self.builder(epoch.phase)

        def load(batch_specs: Iterable[BatchSpec]) -> Iterator[Batch]:
            return by(batch_specs, builder, self.workers, self.timeout_s)

        if not builder.pixels.remote:
            return load(batch_specs)
        return fetching_ahead(
            load, batch_specs, builder.pixels.index, self.sampler.windows(epoch.number, epoch.rollbacks), share.rank
        )


def open_pipeline(
    settings: Settings, strategy: Strategy, splits: Splits, phases: Sequence[Phase], workers: int
) -> DataPipeline:
    """The feed of a run, `settings.cache` being resolved; writes the tiers that are not there yet."""
    seed, remember = settings.seed, settings.cache == "ram"
    return DataPipeline(
        sampler=Sampler(len(splits.train), seed, strategy, _shards(splits.train)),
        augmenter=Augmenter(
            settings.crop_scale,
            settings.hflip,
            seed,
            settings.rand_augment,
            settings.color_jitter,
            settings.random_erasing,
        ),
        mixer=Mixer(settings.mixup, settings.cutmix, seed),
        sources=_sources(settings, splits.train, phases, remember),
        evaluated={
            name: ImageReader(index, remember and name == "val")
            for name, index in splits.all().items()
            if name != "train"
        },
        workers=workers,
        timeout_s=settings.loader_timeout_s,
        quarantine=settings.on_bad_sample == "quarantine",
    )


def _shards(index: Index) -> Shards | None:
    """The shards of remote images; half of the cache is drawn from while the other half takes what comes next."""
    if index.blocks is None:
        return None
    sizes = tuple(index.blocks.files[url].size for url in index.containers)
    ids = tuple(np.flatnonzero(index.container == shard) for shard in range(len(sizes)))
    return Shards(ids, sizes, index.blocks.bound // 2)


def _sources(settings: Settings, index: Index, phases: Sequence[Phase], remember: bool) -> tuple[ImageReader, ...]:
    """One source per phase; phases of the same kind share theirs."""
    cache: Path = settings.cache_dir or files.cache_dir()

    def source(side: int | None) -> ImageReader:
        try:
            if side is None:
                return ImageReader(index, remember)
            return (
                ImageReader(shrunk(index, side), True, index)
                if remember
                else ImageReader(open_downscaled(index, side, cache))
            )
        except OSError as error:  # no memory, or no room on the disk
            where = error.filename or cache
            raise InputError(
                f"--cache {settings.cache}: {where}: {error.strerror}; --cache-dir names another place, and "
                "--cache off needs none"
            ) from None

    sides = _sides(settings, index, phases) if settings.cache != "off" else [None] * len(phases)
    known = {side: source(side) for side in {*sides}}
    return tuple(known[side] for side in sides)


def check_readable(splits: Splits) -> None:
    """Raises InputError naming the first image whose header cannot be read, and how many there are."""
    bad = {name: index.unreadable() for name, index in splits.all().items()}
    total = sum(map(len, bad.values()))
    for name, ids in bad.items():
        if len(ids):
            try:
                ImageReader(splits.all()[name]).whole(int(ids[0]))
            except InputError as error:
                more = f" (and {total - 1} more)" if total > 1 else ""
                raise InputError(
                    f"{error}{more}; recipes/scan.py lists all of them, --on-bad-sample quarantine trains without"
                ) from None
