"""Indexes of shards as files: mapped by all processes, beside the data if asked for, renewed when it changes."""

from pathlib import Path

import numpy as np
import pytest

from tests import storage as servers
from tests.conftest import recipe
from tests.storage import Request
from tests.unit.data.test_shards import samples, write_shards, write_tar
from toolkit import Settings
from toolkit.data.sources import containers, index_tables, shards
from toolkit.data.sources.index import COLUMNS, Index, Splits
from toolkit.data.sources.splits import open_splits
from toolkit.tools.scan import scan


def opened(root: Path | str, cache: Path, **values: object) -> Splits:
    return open_splits(Settings(data_root=str(root), cache_dir=cache, **values), 32)


def same(one: Index, other: Index) -> bool:
    columns = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in COLUMNS)
    return columns and list(one.names) == list(other.names)


def in_memory(index: Index) -> Index:
    return index.take(np.arange(len(index)))


@pytest.fixture
def never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shard may be read."""

    def fail(*words: object) -> None:
        raise AssertionError("a shard was read")

    monkeypatch.setattr(shards, "_read_shard", fail)


def test_an_index_is_mapped_and_the_same_when_it_is_opened_again(tmp_path: Path, request: pytest.FixtureRequest):
    root = write_shards(tmp_path / "data")
    first = opened(root, tmp_path / "cache").train
    request.getfixturevalue("never_read")
    again = opened(root, tmp_path / "cache").train
    assert same(first, again)
    mapped = [again.names.blob, again.names.ends, *(getattr(again, name) for name in COLUMNS)]
    assert not any(array.flags.writeable or array.flags.owndata for array in mapped)
    assert again.digest() == in_memory(again).digest()
    assert in_memory(again).table is None


def test_what_is_held_out_is_mapped_too_and_the_same_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for shard in range(3):
        write_tar(tmp_path / f"data/train/{shard:03d}.tar", samples(shard * 8, 8))
    for seed in (0, 1):
        found = opened(tmp_path / "data", tmp_path / "cache", val_split=0.25, seed=seed)
        for index in (found.train, found.val):
            assert index.table is not None
        monkeypatch.setattr(index_tables, "subset", lambda index, key, ids: index.take(ids()))
        plain = opened(tmp_path / "data", tmp_path / "cache", val_split=0.25, seed=seed)
        monkeypatch.undo()
        assert plain.train.table is None
        assert same(found.train, plain.train)
        assert same(found.val, plain.val)
        assert sorted([*found.train.names, *found.val.names]) == sorted(
            f"train/{i // 8:03d}.tar/{i:04d}.png" for i in range(24)
        )


def test_a_damaged_file_is_made_again(tmp_path: Path):
    root = write_shards(tmp_path / "data")
    first = in_memory(opened(root, tmp_path / "cache").train)
    for damage in (b"", b"toolkit index 0\n" + bytes(100), None):
        for path in (tmp_path / "cache" / "index").glob("*.index"):
            path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
        assert same(opened(root, tmp_path / "cache").train, first)


@pytest.mark.parametrize("where", ["local", "s3"])
def test_another_machine_reads_no_shard_when_an_index_is_beside_the_data(
    tmp_path: Path, request: pytest.FixtureRequest, where: str
):
    data = write_shards(tmp_path / "data")
    if where == "local":
        check_beside(str(data), tmp_path, request)
        return
    with servers.s3() as storage:
        storage.put(data)
        asked: list[Request] = []
        storage.after = asked.append
        check_beside(storage.url, tmp_path, request)
        got = [request.path for request in asked if request.method == "GET" and request.path.endswith(".index")]
        assert len(got) == 2  # one request a split


def check_beside(root: str, folder: Path, request: pytest.FixtureRequest) -> None:
    scan(root, write_index=True, output_dir=folder / "scan", cache_dir=folder / "first", contact_sheets=False)
    first = opened(root, folder / "first")
    request.getfixturevalue("never_read")
    second = opened(root, folder / "second")
    assert same(first.train, second.train)
    assert same(first.val, second.val)
    request.getfixturevalue("monkeypatch").setattr(index_tables, "INDEX_NAME", "nothing-{}")
    with pytest.raises(AssertionError, match="a shard was read"):  # control
        opened(root, folder / "third")


@pytest.mark.parametrize("fault", ["changed", "damaged", "cut short", "of no kind"])
def test_the_data_is_read_when_the_index_beside_it_does_not_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
):
    root, beside = write_shards(tmp_path / "data"), tmp_path / "data/toolkit-train.index"
    scan(str(root), write_index=True, output_dir=tmp_path / "scan", cache_dir=tmp_path / "first", contact_sheets=False)
    assert beside.exists()
    content = beside.read_bytes()
    if fault == "changed":
        write_tar(root / "train/001.tar", samples(500, 4))
    elif fault == "damaged":
        beside.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        beside.write_bytes(content[:-9] if fault == "cut short" else b"something else")
    found = opened(root, tmp_path / "second")
    (told,) = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
    assert told.startswith(f"{beside}: ")
    assert told.endswith(", so the data is read instead: toolkit scan --write-index renews it")
    names = [*found.train.names]
    assert ("train/001.tar/0500.png" in names) == (fault == "changed")
    caplog.clear()
    opened(root, tmp_path / "second")
    assert caplog.records == []  # once a machine


def test_every_changed_bit_of_an_index_beside_the_data_is_noticed(tmp_path: Path):
    root, cache = write_shards(tmp_path / "data"), tmp_path / "cache"
    scan(str(root), write_index=True, output_dir=tmp_path / "scan", cache_dir=cache, contact_sheets=False)
    whole, path = (root / "toolkit-train.index").read_bytes(), tmp_path / "damaged.index"
    path.write_bytes(whole)
    found = index_tables.read(path, whole=True).columns
    unused = 0  # bytes that only align the arrays
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            table = index_tables.read(path, whole=True)
        except ValueError:
            continue
        unused += 1
        assert all(np.array_equal(column, table.columns[name]) for name, column in found.items())
    assert unused < len(found) * index_tables.ALIGN + index_tables.ALIGN


def test_an_index_of_a_version_that_reads_shards_otherwise_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    root = write_shards(tmp_path / "data")
    with monkeypatch.context() as earlier:
        earlier.setattr(containers, "VERSION", 1)
        scan(str(root), write_index=True, output_dir=tmp_path / "scan", cache_dir=tmp_path / "a", contact_sheets=False)
    opened(root, tmp_path / "b")
    assert "the data has changed since, or other image formats can be read here" in caplog.text


def test_processes_that_start_together_fetch_an_index_that_does_not_fit_once(tmp_path: Path):
    """Those that come while the first one reads the shards find its mark."""
    root, fetched = write_shards(tmp_path / "data"), tmp_path / "fetched.index"
    scan(str(root), write_index=True, output_dir=tmp_path / "scan", cache_dir=tmp_path / "a", contact_sheets=False)
    assert not index_tables.fetch_index(str(root), "train", ["other data"], fetched)
    (made_from,) = [index_tables.read(root / "toolkit-train.index").about["made_from"]]
    assert not index_tables.fetch_index(str(root), "train", made_from, fetched)
    fetched.with_suffix(index_tables.UNFIT).unlink()
    assert index_tables.fetch_index(str(root), "train", made_from, fetched)  # control
    assert [*tmp_path.glob(".tmp-*")] == []


def test_an_index_that_cannot_be_read_is_named_and_the_data_read(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with servers.s3() as storage:
        storage.put(write_shards(tmp_path / "data"))
        scan(
            storage.url, write_index=True, output_dir=tmp_path / "scan", cache_dir=tmp_path / "a", contact_sheets=False
        )
        storage.gate = lambda request: servers.FORBIDDEN if request.path.endswith(".index") else True
        first, second = opened(storage.url, tmp_path / "a"), opened(storage.url, tmp_path / "b")
    assert same(first.train, second.train)
    told = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
    assert len(told) == 2
    assert all("toolkit-" in line and line.endswith("scan --write-index renews it") for line in told)


def test_an_index_of_shards_with_several_labels_is_written_too(tmp_path: Path, request: pytest.FixtureRequest):
    root = write_shards(tmp_path / "data")
    words = ["--task", "multilabel", "--write-index", "--output-dir", str(tmp_path / "scan"), "--no-contact-sheets"]
    assert recipe("scan")([str(root), *words, "--cache-dir", str(tmp_path / "first")]) == 0
    request.getfixturevalue("never_read")
    rows = opened(root, tmp_path / "second", task="multilabel").train.labels
    assert rows.shape == (12, 2)
    assert (rows.argmax(1) == opened(root, tmp_path / "second").train.labels).all()


def test_an_index_is_refused_in_one_line_when_the_data_is_no_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "data/train/a").mkdir(parents=True)
    (tmp_path / "data/train/a/1.png").write_bytes(dict(samples(0, 1))["0000.png"])
    assert recipe("scan")([str(tmp_path / "data"), "--write-index", "--output-dir", str(tmp_path / "scan")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == f"error: --write-index needs tar shards, which {tmp_path / 'data'} does not hold"
