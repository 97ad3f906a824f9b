"""The data pipeline of a run: sample order, augmentation, one reader per phase, and workers that load batches."""

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from toolkit.config.settings import Settings
from toolkit.data.images.augment import Augmenter
from toolkit.data.images.mixing import Mixer
from toolkit.data.images.transform import Transform
from toolkit.data.loading.balance import balance_of
from toolkit.data.loading.batches import Batch, TrainBatchBuilder
from toolkit.data.loading.cache import CacheChoice, open_readers
from toolkit.data.loading.orders import MIN_IMAGES, VERSION, Orders
from toolkit.data.loading.prefetch import fetching_ahead
from toolkit.data.loading.reader import ImageReader
from toolkit.data.loading.sampler import BatchSpec, Consecutive, Epoch, RankShare, Sampler, Shards, micro_batches
from toolkit.data.loading.workers import by_processes, by_threads, wait_on
from toolkit.data.sources.index import Index, Splits
from toolkit.strategies.base import Phase, Strategy
from toolkit.system import files, places
from toolkit.system.errors import InputError


@dataclass(frozen=True)
class DataPipeline:
    """Loads the batches of a run.

    `sources`: readers of the training images, one per phase. `evaluated`: readers of the other splits, by name.
    `kept_gb`: memory that decoded images will take in each process.
    """

    sampler: Sampler
    augmenter: Augmenter
    mixer: Mixer
    sources: tuple[ImageReader, ...]
    evaluated: Mapping[str, ImageReader]
    workers: int
    timeout_s: float
    quarantine: bool
    kept_gb: float

    @property
    def in_processes(self) -> bool:
        """Whether worker processes load the batches, instead of threads."""
        return loads_in_processes(self.augmenter, self.sources[0].index)

    def builder(self, phase: Phase) -> TrainBatchBuilder:
        return TrainBatchBuilder(self.sources[phase.index], self.augmenter, self.mixer, self.quarantine)

    def batches(
        self, epoch: Epoch, from_step: int, share: RankShare, waiting: Callable[[], None] = wait_on
    ) -> Iterator[Batch]:
        """One process's micro-batches of an epoch, starting at optimizer step `from_step` of the run.

        `waiting`: called about once a second while a batch is waited for; it may raise.
        """
        whole = self.sampler.batch_specs(epoch, from_step)
        batch_specs = (part for spec in whole for part in micro_batches(spec, share))
        by, builder = by_processes if self.in_processes else by_threads, self.builder(epoch.phase)

        def load(batch_specs: Iterable[BatchSpec]) -> Iterator[Batch]:
            return by(batch_specs, builder, self.workers, self.timeout_s, waiting)

        if not builder.pixels.remote or not (windows := self.sampler.windows(epoch)):
            return load(batch_specs)
        return fetching_ahead(load, batch_specs, builder.pixels.index, windows, share)


def make_augmenter(settings: Settings, transform: Transform | None) -> Augmenter:
    return Augmenter(
        settings.crop_scale,
        settings.hflip,
        settings.seed,
        settings.rand_augment,
        settings.color_jitter,
        settings.random_erasing,
        transform,
        settings.fit,
    )


def loads_in_processes(augmenter: Augmenter, train: Index) -> bool:
    """Whether worker processes load the batches, instead of threads."""
    return augmenter.holds_interpreter or train.items is not None


def open_pipeline(
    settings: Settings,
    strategy: Strategy,
    splits: Splits,
    cache: CacheChoice,
    workers: int,
    transform: Transform | None = None,
) -> DataPipeline:
    """The pipeline of a run; writes missing downscaled copies. `transform`: the user's own."""
    remember = cache.kind == "ram"
    return DataPipeline(
        sampler=Sampler(
            len(splits.train),
            settings.seed,
            strategy,
            _shards(splits.train),
            balance_of(settings, splits.train.labels),
            _orders(settings, splits.train),
        ),
        augmenter=make_augmenter(settings, transform),
        mixer=Mixer(settings.mixup, settings.cutmix, settings.seed),
        sources=open_readers(cache, splits.train, settings.cache_dir),
        evaluated={
            name: ImageReader(index, remember and name == "val")
            for name, index in splits.all().items()
            if name != "train"
        },
        workers=workers,
        timeout_s=settings.loader_timeout_s,
        quarantine=settings.on_bad_sample == "quarantine",
        kept_gb=cache.decoded_gb if remember else 0.0,
    )


def _shards(index: Index) -> Shards | None:
    """The shards of remote images, else None; half of the cache holds the current window, the other half the next."""
    if index.blocks is None:
        return None
    sizes = tuple(index.blocks.files[url].size for url in index.containers)
    ends, window = np.cumsum(np.bincount(index.container, minlength=len(sizes))), index.blocks.bound // 2
    if bool((np.diff(index.container) >= 0).all()):
        return Shards(Consecutive(ends), sizes, window)
    by_shard = np.argsort(index.container, kind="stable")
    return Shards(tuple(np.split(by_shard, ends[:-1])), sizes, window)


def _orders(settings: Settings, index: Index) -> Orders | None:
    """Where the processes of this machine share the orders of a data set that is large; else None."""
    if len(index) < MIN_IMAGES:
        return None
    run = socket.gethostname(), str(settings.output_dir), settings.seed  # no other machine or run deletes its files
    data = len(index), index.stamp, files.key(index.container.tobytes()), settings.cache_gb
    balanced = settings.sampling != "plain" and (settings.sampling_power, files.key(index.labels.tobytes()))
    key = files.key(repr((VERSION, np.__version__, run, data, balanced)))
    return Orders((settings.cache_dir or places.cache_dir()) / "orders", key, settings.epochs)


def check_readable(splits: Splits) -> None:
    """Raise InputError if the header of any image cannot be read; names the first one and gives their number."""
    bad = {name: index.unreadable() for name, index in splits.all().items()}
    total = sum(map(len, bad.values()))
    for name, ids in bad.items():
        if len(ids):
            try:
                ImageReader(splits.all()[name]).whole(int(ids[0]))
            except InputError as error:
                more = f" (and {total - 1} more)" if total > 1 else ""
                raise InputError(
                    f"{error}{more}; `toolkit scan` lists all of them, --on-bad-sample quarantine trains without"
                ) from None
