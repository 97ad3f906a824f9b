"""Two processes whose run lives in an object store; two nodes that read their shards there."""

import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import forkserver
from tests import storage as servers
from tests.conftest import PATIENCE_S, ROOT
from tests.distributed.test_remote_shards import BATCH, EPOCHS, SHARDS, delivered, words
from tests.forkserver import run_ranks
from tests.machines import MARK, Machine, fetched, reopen, result, steps_in
from tests.storage import Request, Storage
from tests.unit.data.test_shards import samples, write_tar

pytestmark = pytest.mark.slow

NODES = 2
MOST_READS = 1.1  # of a block in an epoch by all nodes; for their index each has read all once more


@pytest.fixture
def storage() -> Iterator[Storage]:
    with servers.s3() as opened:
        yield opened


def train_two(machine: Machine, url: str, *flags: str) -> Any:
    machine.disk.mkdir(exist_ok=True)
    return run_ranks(machine.words(url, *flags)[1:], cwd=machine.disk, timeout=PATIENCE_S)


def test_two_processes_end_alike_when_their_machine_is_lost(storage: Storage, tmp_path: Path):
    whole, lost, fresh = (Machine(tmp_path / name) for name in ("whole", "lost", "fresh"))
    url, marks = "s3://bucket/runs/two", list[Request]()
    done = train_two(whole, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]

    def cut_off(request: Request) -> None:
        marks.extend([request] * (request.method == "PUT" and request.key.endswith(MARK)))
        if len(marks) == 2:
            storage.gate = lambda _: False

    storage.after = cut_off
    done = train_two(lost, url, "--upload-wait-s", "1")
    assert done.returncode == 1
    assert "error: the run is complete, but" in done.stderr, done.stderr[-3000:]
    reopen(storage)
    lost.lose()
    (_, last) = steps_in(url)
    done = train_two(fresh, url)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"continuing from {url}/checkpoints/step-{last:09d}" in done.stdout
    found, expected = result(fetched(url, tmp_path / "copy")), result(tmp_path / "run")
    assert sorted(found.pop("samples").splitlines()) == sorted(expected.pop("samples").splitlines())
    assert found == expected


def train_nodes(commands: list[list[str]]) -> None:
    """Each command as a node of its own, with one process and its own disk."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(len(commands)), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    nodes = [
        forkserver.Popen([sys.executable, *command], env={**os.environ, **world, **place, "RANK": str(rank)})
        for rank, command in enumerate(commands)
    ]
    try:
        assert [node.wait(PATIENCE_S) for node in nodes] == [0] * len(nodes)
    finally:
        for node in nodes:
            node.kill()


def test_two_nodes_deliver_what_one_does_and_what_they_read_is_counted(storage: Storage, tmp_path: Path):
    data = tmp_path / "data"
    for shard in range(SHARDS):
        write_tar(data / f"train/{shard:02d}.tar", samples(shard * 16, 16))
    write_tar(data / "val/0.tar", samples(1000, 4))
    storage.put(data)
    recipe, output = str(ROOT / "recipes/single_scale.py"), tmp_path / "nodes"
    commands = []
    for rank in range(NODES):
        flags = words(data, storage.url, output)
        flags[flags.index("--cache-dir") + 1] = str(tmp_path / f"disk-{rank}")
        flags[flags.index("--cache-gb") + 1] = str(
            8 * (data / "train/00.tar").stat().st_size / 1e9
        )  # room for two lanes
        commands.append([recipe, *flags])
    train_nodes(commands)
    reads = Counter(fetch for fetch in storage.of_shards() if fetch.name != "0.tar")  # by block
    assert {fetch.name for fetch in reads} == {f"{shard:02d}.tar" for shard in range(SHARDS)}
    per_epoch = (sum(reads.values()) / len(reads) - NODES) / EPOCHS  # each has read all of them once for the index
    print(f"each block of the shards was read {per_epoch:.2f} times an epoch by {NODES} nodes")
    assert per_epoch <= MOST_READS
    assert sum(len(step) for step in delivered(output)) == EPOCHS * SHARDS * 16 // BATCH * BATCH
