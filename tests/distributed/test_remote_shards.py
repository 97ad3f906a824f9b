"""Training from remote shards that the cache cannot hold: one process, two, and the same shards as local files."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import storage as servers
from tests.conftest import PATIENCE_S, ROOT, SLOW, recipe
from tests.forkserver import run_ranks
from tests.storage import Storage
from tests.unit.data.test_shards import samples, write_tar

SHARDS, PER_SHARD, BATCH, EPOCHS = 12, 16, 8, 2  # a window of two shards holds all batches in flight


@pytest.fixture(scope="module", params=["s3", pytest.param("hdfs", marks=SLOW)])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    with getattr(servers, request.param)() as opened:
        yield opened


def delivered(run: Path) -> list[dict[int, int]]:
    """Per step, over all ranks: id of each delivered image -> digest of its augmented pixels."""
    steps: list[dict[int, int]] = [{} for _ in range(EPOCHS * SHARDS * PER_SHARD // BATCH)]
    for line in (run / "samples.jsonl").read_text().splitlines():
        entry = json.loads(line)
        steps[entry["step"]].update(zip(entry["ids"], entry["digests"], strict=True))
    return steps


def most_fetched(storage: Storage) -> int:
    """How often a block of the training shards was fetched at most."""
    return max(Counter(fetch for fetch in storage.of_shards() if fetch.name != "0.tar").values())


def by_epoch(steps: list[dict[int, int]]) -> list[dict[int, int]]:
    half = len(steps) // EPOCHS
    return [{k: v for step in steps[half * e : half * (e + 1)] for k, v in step.items()} for e in range(EPOCHS)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards") / "data"
    for shard in range(SHARDS):
        write_tar(root / f"train/{shard:02d}.tar", samples(shard * PER_SHARD, PER_SHARD))
    write_tar(root / "val/0.tar", samples(1000, 4))
    return root


def most_cached(data: Path) -> int:
    """Bytes that a cache may hold, a third of the training shards."""
    return 4 * (data / "train/00.tar").stat().st_size


def words(data: Path, root: str, output: Path) -> list[str]:
    """A training on `root`, where the shards of `data` are."""
    flags = {
        "--data-root": root,
        "--arch": "test_vit",
        "--img-size": "32",
        "--batch-size": str(BATCH),
        "--epochs": str(EPOCHS),
        "--cache": "off",
        "--cache-gb": str(most_cached(data) / 1e9),
        "--cache-dir": str(output.with_name(f"cache-{output.name}")),
        "--output-dir": str(output),
        "--log-with": "none",
        "--num-workers": "2",
    }
    return [*(word for pair in flags.items() for word in pair), "--record-samples"]


@pytest.fixture(scope="module")
def local(data: Path) -> list[dict[int, int]]:
    """What is delivered where the shards are files."""
    output = data.with_name("local")
    assert recipe("single_scale")(words(data, str(data), output)) == 0
    return delivered(output)


@pytest.fixture(scope="module")
def one(storage: Storage, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, int]]:
    """What one process is delivered, which fetches each shard once an epoch, and once more for the index."""
    storage.put(data)
    output = tmp_path_factory.mktemp("remote") / "one"
    assert recipe("single_scale")(words(data, storage.url, output)) == 0
    assert most_fetched(storage) <= 1 + EPOCHS
    return delivered(output)


def test_the_pixels_are_those_of_local_shards_in_another_order(one: list[dict[int, int]], local: list[dict[int, int]]):
    assert by_epoch(one) == by_epoch(local)
    assert [set(step) for step in one] != [set(step) for step in local]


@pytest.mark.slow
def test_two_processes_see_the_same_as_one_and_share_what_they_fetch(
    storage: Storage, one: list[dict[int, int]], data: Path, tmp_path: Path
):
    storage.fetches.clear()
    recipe = str(ROOT / "recipes/single_scale.py")
    done = run_ranks([recipe, *words(data, storage.url, tmp_path / "two")], timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    assert most_fetched(storage) <= 1 + EPOCHS
    held = sum(file.stat().st_size for file in (tmp_path / "cache-two/blocks").iterdir())
    assert 0 < held <= most_cached(data)
    assert delivered(tmp_path / "two") == one
