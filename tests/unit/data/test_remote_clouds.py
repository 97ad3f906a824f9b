"""Shards from Google Cloud Storage and Azure, by real emulators: the same promises as test_remote.py's, in one test."""

import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import storage as servers
from tests.storage import Storage
from tests.unit.data.test_remote import PER_SHARD, STRATEGY, forget, opened, settings_of, size_of_shard
from tests.unit.data.test_shards import image, samples, write_tar
from toolkit import InputError
from toolkit.data.loading.sampler import RankShare
from toolkit.data.sources.read import read_bytes
from toolkit.training.step_plan import make_step_plan

SHARDS = 6


def missing(*packages: str) -> bool:
    return any(importlib.util.find_spec(package) is None for package in packages)


NEEDS_GCS = pytest.mark.skipif(missing("gcsfs", "gcp_storage_emulator"), reason="needs gcsfs and gcp-storage-emulator")
NEEDS_AZURE = pytest.mark.skipif(
    missing("adlfs") or servers.AZURITE is None, reason="needs adlfs, and azurite (npm) on PATH or as $AZURITE"
)


@pytest.fixture(params=[pytest.param("gs", marks=NEEDS_GCS), pytest.param("az", marks=NEEDS_AZURE)])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    with getattr(servers, request.param)() as opened:
        yield opened


@pytest.mark.slow
def test_shards_of_a_cloud_are_read_once_an_epoch_and_missed_when_they_are_replaced(storage: Storage, tmp_path: Path):
    data = tmp_path / "data"
    for shard in range(SHARDS):
        write_tar(data / f"train/{shard:02d}.tar", samples(shard * PER_SHARD, PER_SHARD))
    write_tar(data / "val/0.tar", samples(1000, 4))
    storage.put(data)
    settings = settings_of(storage.url, data, 4)
    (splits, pipeline), (local, _) = opened(settings), opened(settings_of(str(data), data, 4))
    assert splits.digests() == local.digests()
    assert list(splits.train.names) == list(local.train.names)

    forget(data)
    storage.fetches.clear()
    epoch = next(iter(make_step_plan(settings, STRATEGY, len(splits.train), 1).epochs()))
    seen = [i for batch in pipeline.batches(epoch, 0, RankShare(0, 1, 1)) for i in batch.ids.tolist()]
    assert sorted(seen) == list(range(SHARDS * PER_SHARD))
    assert set(Counter(storage.of_shards()).values()) == {1}
    assert {fetch.name for fetch in storage.of_shards()} == {f"{shard:02d}.tar" for shard in range(SHARDS)}
    assert [read_bytes(splits.train, i) for i in range(48)] == [image(i) for i in range(48)]

    before = size_of_shard(data)
    write_tar(data / "train/00.tar", samples(500, PER_SHARD))
    assert size_of_shard(data) == before
    storage.put(data)
    forget(data)
    with pytest.raises(InputError, match=rf"^{storage.url}/train/00\.tar: was replaced since it was listed"):
        read_bytes(splits.train, 0)
    assert read_bytes(opened(settings)[0].train, 0) == image(500)
