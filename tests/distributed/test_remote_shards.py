"""Training from remote shards that the cache cannot hold: one process, two, and the same shards as local files."""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import storage as servers
from tests.conftest import ROOT, TORCHRUN, recipe
from tests.storage import Storage
from tests.unit.test_shards import samples, write_tar

SHARDS, PER_SHARD, BATCH, EPOCHS = 12, 16, 8, 2  # a window of two shards holds all batches in flight


@pytest.fixture(params=["hdfs", "s3"])
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


def test_one_and_two_processes_see_the_same_and_fetch_each_shard_once_an_epoch(storage: Storage, tmp_path: Path):
    for shard in range(SHARDS):
        write_tar(tmp_path / f"data/train/{shard:02d}.tar", samples(shard * PER_SHARD, PER_SHARD))
    write_tar(tmp_path / "data/val/0.tar", samples(1000, 4))
    storage.put(tmp_path / "data")
    bound = 4 * (tmp_path / "data/train/00.tar").stat().st_size

    def words(name: str, root: str) -> list[str]:
        flags = {
            "--data-root": root,
            "--arch": "test_vit",
            "--img-size": "32",
            "--batch-size": str(BATCH),
            "--epochs": str(EPOCHS),
            "--cache": "off",
            "--cache-gb": str(bound / 1e9),
            "--cache-dir": str(tmp_path / f"cache-{name}"),
            "--output-dir": str(tmp_path / name),
            "--log-with": "none",
            "--num-workers": "2",
        }
        return [*(word for pair in flags.items() for word in pair), "--record-samples"]

    main = recipe("single_scale")
    assert main(words("local", str(tmp_path / "data"))) == 0
    assert storage.of_shards() == []
    assert main(words("one", storage.url)) == 0
    assert most_fetched(storage) <= 1 + EPOCHS  # once more for the index
    storage.fetches.clear()
    launch = [*TORCHRUN, str(ROOT / "recipes/single_scale.py"), *words("two", storage.url)]
    done = subprocess.run(launch, env={**os.environ}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert most_fetched(storage) <= 1 + EPOCHS
    held = sum(file.stat().st_size for file in (tmp_path / "cache-two/blocks").iterdir())
    assert 0 < held <= bound

    local, one, two = (delivered(tmp_path / name) for name in ("local", "one", "two"))
    assert one == two  # at each step
    assert by_epoch(one) == by_epoch(local)  # the same pixels of each image, in another order
    assert [set(step) for step in one] != [set(step) for step in local]
