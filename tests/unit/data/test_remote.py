"""Remote shards: fetched once an epoch through a cache that keeps its bound, whoever reads.

The servers are real and count what is fetched: S3 where `s3fs` and `moto` are installed, Hadoop's REST interface
everywhere.
"""

import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from fsspec.registry import _registry

from tests import storage as servers
from tests.conftest import SLOW
from tests.storage import Storage
from tests.unit.data.test_shards import image, samples, write_tar
from toolkit import InputError, Settings, SingleScale
from toolkit.data.loading.balance import make_balance
from toolkit.data.loading.cache import choose_cache
from toolkit.data.loading.pipeline import DataPipeline, open_pipeline
from toolkit.data.loading.sampler import Epoch, RankShare
from toolkit.data.sources import remote, shards
from toolkit.data.sources.index import Index, Splits
from toolkit.data.sources.read import read_bytes
from toolkit.data.sources.remote import BlockCache, FileVersion
from toolkit.data.sources.splits import open_splits
from toolkit.system.errors import BadSampleError
from toolkit.training.step_plan import make_step_plan

SHARDS, PER_SHARD, BATCH = 12, 8, 4  # a window of two shards holds all batches in flight
STRATEGY = SingleScale(16)


@pytest.fixture(params=["s3", pytest.param("hdfs", marks=SLOW)])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    with getattr(servers, request.param)() as opened:
        yield opened


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """12 shards of 8 images, 30 kB each, and one of validation."""
    for shard in range(SHARDS):
        write_tar(tmp_path / f"data/train/{shard:02d}.tar", samples(shard * PER_SHARD, PER_SHARD))
    write_tar(tmp_path / "data/val/0.tar", samples(1000, 4))
    return tmp_path / "data"


def size_of_shard(data: Path) -> int:
    return (data / "train/00.tar").stat().st_size


def settings_of(root: str, data: Path, shards_in_cache: float, **values) -> Settings:
    """The cache takes so many shards."""
    return Settings(
        data_root=root,
        cache_gb=shards_in_cache * size_of_shard(data) / 1e9,
        cache_dir=data.parent / "cache",
        cache="off",
        batch_size=BATCH,
        epochs=2,
        **values,
    )


def opened(settings: Settings) -> tuple[Splits, DataPipeline]:
    splits = open_splits(settings, 16)
    plan = make_step_plan(settings, STRATEGY, len(splits.train), 1)
    cache = choose_cache(settings, splits, plan.phases, free_gb=1)
    return splits, open_pipeline(settings, STRATEGY, splits, cache, 2)


def bytes_on_disk(data: Path) -> int:
    with FileLock(data.parent / "cache/locks/room.lock"):  # no block comes or goes meanwhile
        return sum(file.stat().st_size for file in (data.parent / "cache/blocks").iterdir())


def forget(data: Path) -> None:
    """What the cache holds, be it from an epoch before or from making the index."""
    for file in (data.parent / "cache/blocks").iterdir():
        file.unlink()


def in_order(pipeline: DataPipeline, epoch: Epoch) -> list[int]:
    return [i for spec in pipeline.sampler.batch_specs(epoch) for i in spec.ids.tolist()]


def test_remote_images_are_those_of_the_same_local_shards_when_they_are_read(storage: Storage, data: Path):
    storage.put(data)
    (splits, _), (local, _) = opened(settings_of(storage.url, data, 4)), opened(settings_of(str(data), data, 4))
    assert [read_bytes(splits.train, i) for i in range(96)] == [image(i) for i in range(96)]
    assert [read_bytes(splits.val, i) for i in range(4)] == [image(i) for i in range(1000, 1004)]
    assert splits.digests() == local.digests()
    assert list(splits.train.names) == list(local.train.names)


def test_each_shard_is_fetched_once_an_epoch_when_the_cache_holds_a_third(storage: Storage, data: Path):
    storage.put(data)
    settings = settings_of(storage.url, data, 4)
    splits, pipeline = opened(settings)
    bound = 4 * size_of_shard(data)
    seen: list[list[int]] = []
    for epoch in make_step_plan(settings, STRATEGY, len(splits.train), 1).epochs():
        forget(data)
        storage.fetches.clear()
        seen.append([])
        for batch in pipeline.batches(epoch, 0, RankShare(0, 1, 1)):
            seen[-1] += batch.ids.tolist()
            assert bytes_on_disk(data) <= bound
        fetched = Counter(storage.of_shards())
        assert set(fetched.values()) == {1}
        assert len({fetch.name for fetch in fetched}) == SHARDS
        assert [read_bytes(splits.val, i) for i in range(4)] == [image(i) for i in range(1000, 1004)]
    assert [sorted(ids) for ids in seen] == [list(range(96))] * 2
    assert seen[0] != seen[1]


@pytest.mark.parametrize(("nodes", "times"), [(2, 1), (3, 2)])
def test_every_block_is_fetched_by_one_node_when_their_number_divides_the_lanes(data: Path, nodes: int, times: int):
    """Each node has a disk of its own. The control: three do not divide the two lanes."""
    with servers.s3() as storage:
        storage.put(data)
        settings = settings_of(storage.url, data, 8).model_copy(update={"batch_size": 12})
        delivered: list[list[list[int]]] = []
        epoch = next(iter(make_step_plan(settings, STRATEGY, 96, 1).epochs()))
        pipelines = [
            opened(settings.model_copy(update={"cache_dir": data.parent / f"disk-{node}"}))[1] for node in range(nodes)
        ]
        for node in range(nodes):
            for file in (data.parent / f"disk-{node}/blocks").iterdir():
                file.unlink()
        storage.fetches.clear()
        for node, pipeline in enumerate(pipelines):
            delivered.append([batch.ids.tolist() for batch in pipeline.batches(epoch, 0, RankShare(node, nodes, 1))])
        of_shards = Counter(storage.of_shards())
        assert pipelines[0].sampler.lanes(epoch) == 2
    assert len({fetch.name for fetch in of_shards}) == SHARDS
    assert max(of_shards.values()) == times
    whole = [[i for part in parts for i in part] for parts in zip(*delivered, strict=True)]
    assert [i for batch in whole for i in batch] == in_order(pipelines[0], epoch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_shard_that_two_lanes_share_is_held_until_both_have_passed(tmp_path: Path, seed: int):
    """Shards of several lengths are cut between lanes; what the epoch before left in the cache makes room first."""
    for shard in range(24):
        write_tar(tmp_path / f"data/train/{shard:02d}.tar", samples(20 * shard, 6 + 5 * shard % 9))
    write_tar(tmp_path / "data/val/0.tar", samples(1000, 4))
    data = tmp_path / "data"
    with servers.s3() as storage:
        storage.put(data)
        largest = max(file.stat().st_size for file in (data / "train").iterdir())
        settings = settings_of(storage.url, data, 17 * largest / size_of_shard(data), seed=seed)
        splits, pipeline = opened(settings)
        for epoch in make_step_plan(settings, STRATEGY, len(splits.train), 1).epochs():
            assert pipeline.sampler.lanes(epoch) == 4
            storage.fetches.clear()
            assert [i for batch in pipeline.batches(epoch, 0, RankShare(0, 1, 1)) for i in batch.ids.tolist()]
            assert set(Counter(storage.of_shards()).values()) == {1}


def test_no_shard_is_fetched_twice_an_epoch_when_classes_are_balanced(storage: Storage, data: Path):
    """Images of a rare class come again within the window in which their shard is held."""
    storage.put(data)
    settings = settings_of(storage.url, data, 4)
    splits, pipeline = opened(settings)
    labels = (np.arange(96) % 12 == 0).astype(np.int64)  # 8 of 96 images
    balanced = replace(pipeline, sampler=replace(pipeline.sampler, balance=make_balance(labels, 1.0, 0)))
    for epoch in make_step_plan(settings, STRATEGY, len(splits.train), 1).epochs():
        forget(data)
        storage.fetches.clear()
        seen = [i for batch in balanced.batches(epoch, 0, RankShare(0, 1, 1)) for i in batch.ids.tolist()]
        assert seen == in_order(balanced, epoch)
        assert len({*seen}) < 60
        assert abs(int(labels[seen].sum()) - 48) <= 1
        assert set(Counter(storage.of_shards()).values()) == {1}


def wait_until_quiet(storage: Storage) -> None:
    """Until nothing was fetched for a second."""
    before, quiet_since = -1, time.monotonic()
    while time.monotonic() < quiet_since + 1:
        if len(storage.fetches) != before:
            before, quiet_since = len(storage.fetches), time.monotonic()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("shards_in_cache", "windows_held"), [(4, 2), (1.9, 1)])
def test_the_next_window_is_fetched_while_one_is_drawn_from_when_both_fit(
    data: Path, shards_in_cache: float, windows_held: int
):
    """The store is emptied after two batches: what was fetched until then goes on to be delivered.

    The control is a cache that one shard fills: nothing of the next may be fetched while it is drawn from.
    """
    with servers.hdfs() as storage:
        storage.put(data)
        settings = settings_of(storage.url, data, shards_in_cache).model_copy(update={"batch_size": 2})
        _, pipeline = opened(settings)
        forget(data)
        storage.fetches.clear()
        storage.delay_s = 0.02
        epoch = next(iter(make_step_plan(settings, STRATEGY, 96, 1).epochs()))
        windows = [window for lane in pipeline.sampler.windows(epoch) for window in lane[:windows_held]]
        shards_held = {f"{shard:02d}.tar" for window in windows for shard in window.shards}
        batches = pipeline.batches(epoch, 0, RankShare(0, 1, 1))
        seen = [i for _ in range(2) for i in next(batches).ids.tolist()]
        wait_until_quiet(storage)
        assert {fetch.name for fetch in storage.fetches} == shards_held
        assert set(Counter(storage.fetches).values()) == {1}
        assert bytes_on_disk(data) <= shards_in_cache * size_of_shard(data)

        (data / "empty").mkdir()
        storage.put(data / "empty")
        with pytest.raises(BadSampleError, match="is not there any more"):
            seen.extend(i for batch in batches for i in batch.ids.tolist())
    # the batch with the first image that was not held is the one that failed
    assert seen == in_order(pipeline, epoch)[: PER_SHARD * len(shards_held)]


@pytest.mark.slow
def test_shards_are_fetched_again_and_again_when_all_images_are_mixed(storage: Storage, data: Path):
    """The control: the order of local images, through the same cache."""
    storage.put(data)
    settings = settings_of(storage.url, data, 4)
    splits, pipeline = opened(settings)
    plain = DataPipeline(**{**vars(pipeline), "sampler": type(pipeline.sampler)(len(splits.train), 0, STRATEGY)})
    storage.fetches.clear()
    epoch = next(iter(make_step_plan(settings, STRATEGY, len(splits.train), 1).epochs()))
    list(plain.batches(epoch, 0, RankShare(0, 1, 1)))
    assert Counter(storage.of_shards()).most_common(1)[0][1] > 1
    assert bytes_on_disk(data) <= 4 * size_of_shard(data)


def test_nothing_is_fetched_again_when_all_of_it_fits(storage: Storage, data: Path):
    storage.put(data)
    settings = settings_of(storage.url, data, 20)
    splits, pipeline = opened(settings)
    storage.fetches.clear()  # the index took it all
    for epoch in make_step_plan(settings, STRATEGY, len(splits.train), 1).epochs():
        list(pipeline.batches(epoch, 0, RankShare(0, 1, 1)))
    assert storage.of_shards() == []


@pytest.mark.slow
def test_worker_processes_share_the_cache_when_they_are_forked(storage: Storage, data: Path):
    storage.put(data)
    settings = settings_of(storage.url, data, 4, rand_augment=5.0, num_workers=2)
    splits, pipeline = opened(settings)
    storage.fetches.clear()
    epoch = next(iter(make_step_plan(settings, STRATEGY, len(splits.train), 1).epochs()))
    ids = [i for batch in pipeline.batches(epoch, 0, RankShare(0, 1, 1)) for i in batch.ids.tolist()]
    assert sorted(ids) == list(range(96))
    assert set(Counter(storage.of_shards()).values()) == {1}


def read_all(index: Index) -> None:
    assert [read_bytes(index, i) for i in range(96)] == [image(i) for i in range(96)]


@pytest.mark.slow
def test_a_block_is_fetched_once_when_many_threads_and_processes_want_it(storage: Storage, data: Path):
    storage.put(data)
    splits, _ = opened(settings_of(storage.url, data, 20))
    forget(data)
    storage.fetches.clear()

    # Not forked: the server's own threads run in this process.
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=read_all, args=(splits.train,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    workers += [threading.Thread(target=read_all, args=(splits.train,)) for _ in range(3)]
    for worker in workers[2:]:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers[:2]] == [0, 0]
    assert set(Counter(storage.of_shards()).values()) == {1}


def test_blocks_are_listed_only_when_room_is_needed_and_those_that_were_passed_go_together(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    left: list[int] = []
    original = BlockCache._make_room

    def noted(cache: BlockCache, blocks: Path, size: int) -> int:
        left.append(original(cache, blocks, size))
        return left[-1]

    with servers.s3() as storage:
        storage.put(data)
        splits, _ = opened(settings_of(storage.url, data, 40))
        assert splits.train.blocks is not None
        half = replace(splits.train.blocks, folder=tmp_path / "half", bound=SHARDS // 2 * size_of_shard(data))
        monkeypatch.setattr(BlockCache, "_make_room", noted)
        monkeypatch.setattr(remote, "BLOCK", 512)
        for url in half.files:
            half.read(url, 0, half.files[url].size)
            half.release(url)
            assert sum(file.stat().st_size for file in (tmp_path / "half/blocks").iterdir()) <= half.bound
    assert len(left) < sum(map(half.count, half.files)) / 10


def test_a_block_is_fetched_again_when_it_was_cut_short_on_disk(storage: Storage, data: Path):
    storage.put(data)
    splits, _ = opened(settings_of(storage.url, data, 40))
    for file in (data.parent / "cache/blocks").iterdir():
        os.truncate(file, file.stat().st_size // 3)
    storage.fetches.clear()
    assert [read_bytes(splits.train, i) for i in range(8)] == [image(i) for i in range(8)]
    assert storage.of_shards()
    assert storage.of_shards() == list(dict.fromkeys(storage.of_shards()))


def test_only_a_changed_shard_is_fetched_again_when_a_data_set_is_opened_twice(storage: Storage, data: Path):
    storage.put(data)
    settings = settings_of(storage.url, data, 4)
    opened(settings)
    storage.fetches.clear()
    opened(settings)
    assert storage.of_shards() == []
    write_tar(data / "train/05.tar", samples(500, PER_SHARD))
    os.utime(data / "train/05.tar", (1, 1))
    storage.put(data)
    splits, _ = opened(settings)
    assert {fetch.name for fetch in storage.of_shards()} == {"05.tar"}
    assert read_bytes(splits.train, 5 * PER_SHARD) == image(500)


def test_a_shard_that_is_replaced_during_a_run_ends_it_when_it_is_fetched(storage: Storage, data: Path):
    """Same length, same names, other pixels; the control is the same content put there once more."""
    storage.put(data)
    splits, _ = opened(settings_of(storage.url, data, 20))
    forget(data)
    storage.put(data)
    assert read_bytes(splits.train, 40) == image(40)

    shard, before = data / "train/05.tar", size_of_shard(data)
    write_tar(shard, samples(500, PER_SHARD))
    assert shard.stat().st_size == before
    os.utime(shard, (1, 1))
    storage.put(data)
    forget(data)
    with pytest.raises(InputError, match=rf"^{storage.url}/train/05\.tar: was replaced since it was listed") as caught:
        read_bytes(splits.train, 40)
    assert not isinstance(caught.value, BadSampleError)  # which --on-bad-sample quarantine would pass over
    assert "\n" not in str(caught.value)
    assert read_bytes(splits.train, 8) == image(8)


def test_a_shard_that_is_replaced_between_list_and_index_is_refused_when_it_is_read(data: Path, monkeypatch):
    with servers.s3() as storage:
        storage.put(data)
        listed = shards.find_shards

        def meanwhile(root: str):
            found = listed(root)
            write_tar(data / "train/05.tar", samples(500, PER_SHARD))
            storage.put(data)
            return found

        monkeypatch.setattr(shards, "find_shards", meanwhile)
        with pytest.raises(InputError, match=r"train/05\.tar: was replaced since it was listed"):
            opened(settings_of(storage.url, data, 20))


@pytest.mark.slow
def test_a_shard_that_became_shorter_is_named_when_its_end_is_fetched(storage: Storage, data: Path):
    storage.put(data)
    splits, _ = opened(settings_of(storage.url, data, 1))
    (data / "train/05.tar").write_bytes((data / "train/05.tar").read_bytes()[:2000])
    os.utime(data / "train/05.tar", (1, 1))
    storage.put(data)
    with pytest.raises(InputError, match=r"/train/05\.tar: was replaced since it was listed"):
        read_bytes(splits.train, 47)


@pytest.mark.parametrize(
    ("listed", "now", "same"),
    [
        ({"etag": "a"}, {"etag": '"a"'}, True),
        ({"ETag": "a"}, {"ETag": "b"}, False),
        ({"ETag": "a", "generation": "1"}, {"ETag": "b", "generation": "1"}, True),  # other metadata, same content
        ({"ETag": "a"}, {"mtime": 3.0}, True),  # not told
        ({}, {"mtime": 3.0}, True),
        ({}, {"size": 6}, False),
    ],
)
def test_a_file_counts_as_replaced_when_the_storage_tells_so(listed: dict, now: dict, same: bool):
    assert FileVersion.of({"size": 5, **listed}).fit({"size": 5, **now}) is same


def test_a_shard_that_vanished_is_named_when_an_image_of_it_is_read(storage: Storage, data: Path):
    storage.put(data)
    splits, _ = opened(settings_of(storage.url, data, 1))
    (data / "train/05.tar").unlink()
    storage.put(data)
    with pytest.raises(BadSampleError, match=r"train/05\.tar/0040\.png: .*is not there any more"):
        read_bytes(splits.train, 40)


def test_a_url_is_refused_when_nothing_is_there(storage: Storage, data: Path):
    storage.put(data)
    with pytest.raises(InputError, match=r"nowhere: no such folder or bucket, or neither train\*\.tar"):
        opened(settings_of(f"{storage.url}/nowhere", data, 4))


def test_a_url_is_refused_in_one_line_when_no_server_answers(data: Path):
    with pytest.raises(InputError, match=r"webhdfs://127\.0\.0\.1:9/data: cannot be read") as caught:
        opened(settings_of("webhdfs://127.0.0.1:9/data", data, 4))
    assert "\n" not in str(caught.value)


def test_a_bucket_is_refused_in_one_line_when_it_or_the_credentials_are_wrong(data: Path, monkeypatch):
    with servers.s3() as storage:
        storage.put(data)
        with pytest.raises(InputError, match="s3://other/data: no such folder or bucket"):
            opened(settings_of("s3://other/data", data, 4))
    with servers.s3() as storage:
        monkeypatch.setenv("HOME", str(data))  # no credentials file
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in servers.KEYS:
            monkeypatch.delenv(name)
        with pytest.raises(InputError, match="s3://bucket/data: cannot be read: Unable to locate credentials"):
            opened(settings_of(storage.url, data, 4))


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("az", "adlfs")])
def test_a_url_is_refused_with_the_command_when_its_package_is_missing(
    data: Path, scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)  # what Python does with a package that is not there
    monkeypatch.delitem(_registry, scheme, raising=False)
    with pytest.raises(InputError, match=f"{scheme}://bucket/data: .*pip install {package}"):
        opened(settings_of(f"{scheme}://bucket/data", data, 4))


def test_a_protocol_is_refused_when_nobody_knows_it(data: Path):
    with pytest.raises(InputError, match=r"nonsense://bucket/data: .*nonsense"):
        opened(settings_of("nonsense://bucket/data", data, 4))


@pytest.mark.parametrize("url", ["s3://key:hidden@bucket/data", "https://host/data?token=hidden"])
def test_a_url_is_refused_without_repeating_it_when_it_holds_a_secret(url: str):
    with pytest.raises(ValueError, match="must hold no password") as caught:
        Settings(data_root=url)
    assert "hidden" not in str(caught.value)


def test_a_cache_smaller_than_a_shard_is_refused_when_shards_are_remote(storage: Storage, data: Path):
    storage.put(data)
    with pytest.raises(InputError, match=r"--cache-gb .*/train/\d\d\.tar has .* GB"):
        opened(settings_of(storage.url, data, 0.5))


def test_the_bound_holds_when_blocks_of_a_killed_process_are_left(data: Path):
    with servers.hdfs() as storage:
        storage.put(data)
        version = FileVersion((data / "train/00.tar").stat().st_size, "1")
        cache = BlockCache(data.parent / "cache", 2 * version.size, {f"{storage.url}/train/00.tar": version})
        left = data.parent / "cache/blocks/.tmp-half"
        left.parent.mkdir(parents=True)
        left.write_bytes(bytes(version.size + 1))
        os.utime(left, (1, 1))
        whole = cache.read(f"{storage.url}/train/00.tar", 0, version.size)
    assert whole == (data / "train/00.tar").read_bytes()
    assert not left.exists()
    assert bytes_on_disk(data) <= cache.bound
