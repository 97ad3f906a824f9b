"""Runs that live in an object store, and machines that are gone with all they had: the same end, bit for bit.

The servers are real: S3 (moto), Google's emulator, and Azurite where it is on PATH.
"""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from tests import storage as servers
from tests.conftest import ALL, SLOW
from tests.machines import (
    MARK,
    Machine,
    fetched,
    killing_at,
    objects,
    reopen,
    result,
    steps_in,
)
from tests.storage import Request, Storage
from tests.unit.data.test_remote_clouds import NEEDS_AZURE, NEEDS_GCS
from tests.unit.data.test_shards import samples, write_tar
from toolkit.system import locks

pytestmark = pytest.mark.slow

KILLS = 20 if ALL else 3
CLOUDS = ("s3", pytest.param("gs", marks=[NEEDS_GCS, SLOW]), pytest.param("az", marks=[NEEDS_AZURE, SLOW]))


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> Iterator[Storage]:
    with getattr(servers, request.param)() as opened:
        yield opened


@pytest.fixture
def storage() -> Iterator[Storage]:
    with servers.s3() as opened:
        yield opened


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run on built-in data ends with that nothing disturbs, in a local directory."""
    place = tmp_path_factory.mktemp("whole")
    assert Machine(place / "disk").train(str(place / "run")).code == 0
    return result(place / "run")


def place_of(storage: Storage, name: str) -> str:
    return storage.url.replace("/data", f"/runs/{name}")


def is_mark(request: Request) -> bool:
    return request.method in ("PUT", "POST") and request.key.endswith(MARK)


def test_a_run_on_shards_of_a_store_ends_alike_when_its_machine_is_lost(cloud: Storage, tmp_path: Path):
    data = tmp_path / "data"
    for shard in range(4):
        write_tar(data / f"train/{shard}.tar", samples(shard * 15, 15))
    write_tar(data / "val/0.tar", samples(1000, 12))
    cloud.put(data)
    on_shards = ("--data-root", cloud.url, "--cache", "off")
    whole, lost, fresh = (Machine(tmp_path / name) for name in ("whole", "lost", "fresh"))
    url, marks = place_of(cloud, "a"), list[str]()
    assert whole.train(str(tmp_path / "run"), *on_shards).code == 0

    def second_mark(request: Request) -> bool:
        marks.extend([request.key] * is_mark(request))
        return len(marks) == 2

    with lost.in_step(url, cloud, *on_shards) as training:
        killing_at(cloud, training, second_mark, before=False)
        assert training.ended().code == -signal.SIGKILL
    reopen(cloud)
    lost.lose()
    saved = steps_in(url)
    assert len(saved) == 2
    done = fresh.train(url, *on_shards)
    assert done.code == 0, done.err
    assert f"continuing from {url}/checkpoints/step-{saved[-1]:09d}" in done.out
    assert result(fetched(url, tmp_path / "copy")) == result(tmp_path / "run")


def test_a_run_ends_alike_when_each_of_its_machines_is_lost_at_a_drawn_request(
    storage: Storage, whole: dict[str, Any], tmp_path: Path
):
    rng, url, before = np.random.default_rng(0), place_of(storage, "b+ c%20d=é,[x]*"), list[int]()
    for number in range(KILLS):
        machine, left = Machine(tmp_path / f"machine-{number}"), [int(rng.integers(4, 40))]

        def due(request: Request, left: list[int] = left) -> bool:
            left[0] -= request.writes
            return left[0] <= 0

        with machine.in_step(url, storage) as training:
            killing_at(storage, training, due, before=bool(rng.integers(2)))
            told = training.ended()
        reopen(storage)
        machine.lose()
        after = steps_in(url)
        assert max(before, default=0) <= max(after, default=0), (before, after, told)
        if before and told.code == 0:
            break
        assert told.code in (-signal.SIGKILL, 0), told
        if before:
            assert f"continuing from {url}/checkpoints/step-{before[-1]:09d}" in told.out or not told.out
        before = after
    last = Machine(tmp_path / "last").train(url)
    assert last.code == 0, last.err
    assert result(fetched(url, tmp_path / "copy")) == whole


@SLOW
def test_training_goes_on_when_the_store_does_not_answer_and_the_same_command_uploads_later(
    storage: Storage, whole: dict[str, Any], tmp_path: Path
):
    machine, url = Machine(tmp_path / "machine"), place_of(storage, "c")

    def first_mark(request: Request) -> None:
        if is_mark(request):
            storage.gate = lambda _: False

    storage.after = first_mark
    told = machine.train(url, "--upload-wait-s", "30")
    assert told.code == 1
    assert told.err.count("not uploaded") == 1, told.err  # the warning, once
    line = told.err.splitlines()[-1]
    assert line.startswith("error: the run is complete, but "), line
    assert f"not in {url}" in line
    assert str(machine.mirror()) in line
    assert line.endswith("the same command uploads them from here")
    assert result(machine.mirror()) == whole
    reopen(storage)
    assert len(steps_in(url)) == 1
    again = machine.train(url)
    assert again.code == 0, again.err
    assert "this run is finished" in again.out
    assert result(fetched(url, tmp_path / "copy")) == whole


@SLOW
def test_uploads_work_again_when_the_store_answers_again(storage: Storage, whole: dict[str, Any], tmp_path: Path):
    machine, url, refused = Machine(tmp_path / "machine"), place_of(storage, "d"), list[Request]()

    def gate(request: Request) -> bool:
        if is_mark(request) and len(refused) < 60:
            refused.append(request)
            return False
        return True

    storage.gate = gate
    told = machine.train(url)
    assert told.code == 0, told.err
    assert told.err.count("not uploaded") == 1, told.err
    assert told.out.count(f"uploads to {url} work again") == 1
    assert result(fetched(url, tmp_path / "copy")) == whole


def test_what_a_stopped_run_saved_is_in_the_store_before_it_ends(
    storage: Storage, whole: dict[str, Any], tmp_path: Path
):
    lost, fresh, url = Machine(tmp_path / "lost"), Machine(tmp_path / "fresh"), place_of(storage, "e")
    with lost.in_step(url, storage) as training:
        training.wait_until(lambda: steps_in(url))
        training.process.terminate()
        told = training.ended()
    assert told.code == 75
    summary = json.loads(objects(url)["summary.json"])
    assert summary["exit_reason"] == "preempted by SIGTERM"
    assert steps_in(url)[-1] == summary["steps"]
    lost.lose()
    done = fresh.train(url)
    assert done.code == 0, done.err
    assert result(fetched(url, tmp_path / "copy")) == whole


def of_another_machine(url: str, **changes: Any) -> None:
    """The note of who writes becomes that of a machine elsewhere."""
    there, root = fsspec.core.url_to_fs(url)
    note = json.loads(there.cat_file(f"{root}/.writer.json"))
    elsewhere = {"host": "b", "boot": "other", "pids": "", "released": False, **changes}
    there.pipe_file(f"{root}/.writer.json", json.dumps({**note, **elsewhere}).encode())


@SLOW
def test_a_machine_that_is_gone_is_waited_for_a_minute_and_one_that_lives_is_not_displaced(
    storage: Storage, whole: dict[str, Any], tmp_path: Path
):
    lost, fresh, url = Machine(tmp_path / "lost"), Machine(tmp_path / "fresh"), place_of(storage, "f")
    with lost.in_step(url, storage) as training:
        training.wait_until(lambda: steps_in(url))
    of_another_machine(url)
    with fresh.training(url) as training:
        time.sleep(2)
        training.wait_until(lambda: fresh.disk.exists())
        for beat in range(1000, 1005):  # signs of life
            of_another_machine(url, beat=beat)
            time.sleep(1)
        while training.process.poll() is None:
            beat += 1
            of_another_machine(url, beat=beat)
            time.sleep(0.5)
        told = training.ended()
    assert told.code == 2
    assert f"error: --output-dir {url}: another run is using it (process " in told.err
    assert "on b, since" in told.err
    assert told.err.rstrip().endswith("give --take-over if it is gone")
    began = time.monotonic()
    done = fresh.train(url)
    assert done.code == 0, done.err
    assert time.monotonic() - began > 30
    assert f"{url}: taken over from process" in done.err
    assert result(fetched(url, tmp_path / "copy")) == whole


def vouches(name: str) -> bool:
    """Whether an object is a marker, or no part of a checkpoint."""
    return name.endswith(MARK) or not name.startswith("checkpoints/")


def test_a_machine_stops_when_another_one_takes_over(storage: Storage, tmp_path: Path):
    first, url = Machine(tmp_path / "first"), place_of(storage, "g")
    endless = ("--epochs", "2000", "--save-every-steps", "50")
    with first.training(url, *endless) as training:
        training.wait_until(lambda: steps_in(url))
        of_another_machine(url, token="another")
        written = objects(url)
        told = training.ended()
        assert told.code == 75, told.err
        assert "on b, since" in told.err
        assert f"which took over {url}" in told.err
    after = objects(url)
    assert {name: after[name] for name in after if vouches(name)} == {
        name: written[name] for name in written if vouches(name)
    }
    assert json.loads(after[".writer.json"])["token"] == "another"


@SLOW
def test_a_second_run_of_the_same_machine_is_refused(storage: Storage, tmp_path: Path):
    machine, url = Machine(tmp_path / "machine"), place_of(storage, "h")
    other = Machine(tmp_path / "other")  # another cache: only the store tells
    with machine.training(url, "--epochs", "2000") as training:
        training.wait_until(lambda: steps_in(url))
        for again in (machine, other):
            told = again.train(url, "--epochs", "2000")
            assert told.code == 2
            assert "another run is using it (process " in told.err, told.err
        assert training.process.poll() is None
        assert locks.myself().host in told.err


@SLOW
def test_a_copy_that_another_machine_has_gone_past_is_kept_aside(
    storage: Storage, whole: dict[str, Any], tmp_path: Path
):
    first, second, url = Machine(tmp_path / "first"), Machine(tmp_path / "second"), place_of(storage, "i")

    def cut_off(request: Request) -> None:
        if is_mark(request):
            storage.gate = lambda _: False

    storage.after = cut_off
    assert first.train(url, "--upload-wait-s", "1").code == 1
    reopen(storage)
    assert second.train(url).code == 0
    told = first.train(url)
    assert told.code == 0, told.err
    assert "what this one had not sent is kept in" in told.err
    (kept,) = first.disk.glob("runs/*/*.left")
    assert result(kept) == result(fetched(url, tmp_path / "copy")) == whole
