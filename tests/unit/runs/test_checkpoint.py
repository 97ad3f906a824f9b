"""Checkpoints are whole, verified, and never lost to the one that follows."""

import errno
import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from toolkit import InputError
from toolkit.runs import best_model, checkpoint
from toolkit.runs.checkpoint import Store
from toolkit.system.errors import SaveError

FILES = ["model.safetensors", "optimizer.json", "more/part.safetensors", "MANIFEST.json", "COMMITTED"]


def saved(root: Path, step: int = 3, value: float = 1.0, keep: int = 3, best: int | None = None) -> Path:
    """A small committed checkpoint."""
    store = Store(root, keep)
    store.stage(step, "more/part.safetensors", {"torch": torch.zeros(4)})
    contents = {"model.safetensors": {"x": torch.full((3,), value)}, "optimizer.json": {"lr": 0.1}}
    return store.commit(step, contents, {"best_step": best})


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_holds_what_was_saved_when_read_back(tmp_path: Path):
    path = saved(tmp_path, 3, 2.5)
    held = checkpoint.load(path)
    assert sorted(held) == sorted(FILES[:3])
    assert held["model.safetensors"]["x"].tolist() == [2.5] * 3
    assert held["optimizer.json"] == {"lr": 0.1}
    assert list(checkpoint.load(path, ["optimizer.json", "more/other.safetensors"])) == ["optimizer.json"]
    manifest = checkpoint.read_manifest(path)
    assert (manifest["step"], manifest["best_step"]) == (3, None)
    assert manifest["files"]["optimizer.json"]["bytes"] == (path / "optimizer.json").stat().st_size


@pytest.fixture
def _propagating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pytest see the toolkit's warnings, also after a test that opened the console."""
    monkeypatch.setattr(logging.getLogger("toolkit"), "propagate", True)


def flip(file: Path, where: float) -> None:
    content = bytearray(file.read_bytes())
    content[round(where * (len(content) - 1))] ^= 1
    file.write_bytes(content)


SPOILERS = {
    "first byte flipped": lambda file: flip(file, 0),
    "middle byte flipped": lambda file: flip(file, 0.5),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda file: file.write_bytes(b""),
    "deleted": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pickle": lambda file: file.write_bytes(pickle.dumps(Canary())),
}
CANARY = []


def leave_a_trace() -> None:
    CANARY.append("executed")


class Canary:
    """Unpickling it leaves a trace."""

    def __reduce__(self) -> tuple:
        return leave_a_trace, ()


@pytest.mark.usefixtures("_propagating")
@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS.keys())
@pytest.mark.parametrize("name", FILES)
def test_the_one_before_is_used_and_the_damaged_one_kept_when_a_file_changed(
    tmp_path: Path, name: str, spoil, caplog: pytest.LogCaptureFixture
):
    older, newer = saved(tmp_path, 3), saved(tmp_path, 6)
    assert Store(tmp_path).recover() == newer  # control
    spoil(newer / name)
    assert Store(tmp_path).recover() == older
    assert names(tmp_path) == [".corrupt-step-000000006", "step-000000003"]
    assert len(caplog.messages) == 1
    assert str(newer) in caplog.messages[0]
    assert Path(name).name in caplog.messages[0]
    assert Store(tmp_path).recover() == older
    assert CANARY == []


def test_a_pickle_is_not_executed_when_its_hash_was_forged(tmp_path: Path):
    path = saved(tmp_path)
    assert pickle.loads(pickle.dumps(Canary())) is None  # control: it would leave a trace
    assert CANARY == ["executed"]
    CANARY.clear()
    for name in FILES[:3]:
        (path / name).write_bytes(pickle.dumps(Canary()))
    (path / "MANIFEST.json").unlink()
    (path / "COMMITTED").unlink()
    checkpoint._vouch(path, {"schema": checkpoint.SCHEMA, "step": 3})
    assert Store(tmp_path).recover() == path
    for name in FILES[:3]:
        with pytest.raises(InputError, match=rf"{name}: cannot be read"):
            checkpoint.load(path, [name])
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(InputError, match=r"model\.safetensors: the best model cannot be read"):
        best_model.load(tmp_path)
    assert CANARY == []


def test_a_run_is_refused_when_all_its_checkpoints_are_damaged(tmp_path: Path):
    for step in (3, 6):
        (saved(tmp_path, step) / "optimizer.json").unlink()
    for _ in range(2):  # and still so at the next start
        with pytest.raises(InputError, match=r"every checkpoint is damaged \(2 set aside"):
            Store(tmp_path).recover()


def test_leftovers_of_a_kill_are_no_checkpoints_and_go_when_a_run_goes_on(tmp_path: Path):
    store = Store(tmp_path)
    store.stage(12, "more/part.safetensors", {"torch": torch.zeros(4)})
    assert store.committed() == []
    assert store.recover() is None
    assert names(tmp_path) == []
    assert Store(tmp_path / "nowhere").recover() is None


def test_a_folder_is_set_aside_when_it_was_never_committed(tmp_path: Path):
    whole = saved(tmp_path, 3)
    shutil.copytree(whole, tmp_path / "step-000000009")
    (tmp_path / "step-000000009" / "COMMITTED").unlink()
    (tmp_path / "step-000000015").mkdir()
    assert Store(tmp_path).committed() == [whole]
    assert Store(tmp_path).recover() == whole
    assert names(tmp_path) == [".corrupt-step-000000009", ".corrupt-step-000000015", "step-000000003"]


@pytest.mark.parametrize(("keep", "left"), [(2, [4, 5]), (3, [3, 4, 5]), (1, [4, 5])])
def test_the_newest_are_kept_when_more_are_committed(tmp_path: Path, keep: int, left: list[int]):
    for step in range(1, 6):
        saved(tmp_path, step, keep=keep)
    assert names(tmp_path) == [f"step-{step:09d}" for step in left]


def test_the_best_is_kept_as_long_as_one_of_the_kept_names_it(tmp_path: Path):
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 5)):
        saved(tmp_path, step, keep=2, best=best)
    assert names(tmp_path) == ["step-000000002", "step-000000004", "step-000000005"]
    saved(tmp_path, 6, keep=2, best=5)
    assert names(tmp_path) == ["step-000000005", "step-000000006"]


def test_steps_are_ordered_by_number_when_they_have_more_digits_or_were_written_earlier(tmp_path: Path):
    newest = saved(tmp_path, 1_000_000_000)
    older = saved(tmp_path, 999_999_999)
    os.utime(newest, (1, 1))
    assert Store(tmp_path).committed() == [older, newest]
    assert Store(tmp_path).recover() == newest


def test_a_step_is_replaced_when_it_is_committed_again(tmp_path: Path):
    saved(tmp_path, 3, 1.0)
    path = saved(tmp_path, 3, 2.0)
    assert names(tmp_path) == ["step-000000003"]
    assert checkpoint.load(path)["model.safetensors"]["x"].tolist() == [2.0] * 3


def test_later_checkpoints_are_set_aside_when_a_run_goes_back(tmp_path: Path):
    paths = [saved(tmp_path, step) for step in (3, 6, 9)]
    Store(tmp_path).go_back_to(paths[0])
    assert names(tmp_path) == [".replaced-step-000000006", ".replaced-step-000000009", "step-000000003"]


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_the_one_before_stands_when_the_disk_fails(tmp_path: Path, operation: str, monkeypatch: pytest.MonkeyPatch):
    older = saved(tmp_path, 3)

    def fail(*words: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(words[0]))

    monkeypatch.setattr(os, operation, fail)
    with pytest.raises(SaveError, match=rf"step 6 could not be written: .*Input/output error.*{older} is intact"):
        saved(tmp_path, 6)
    monkeypatch.undo()
    assert Store(tmp_path).recover() == older


def test_path_and_bytes_are_named_when_a_file_is_too_large(tmp_path: Path):
    import resource

    older = saved(tmp_path, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(SaveError, match=r"\.tmp-step-000000006/model\.safetensors, 400000 bytes: .*is intact"):
            Store(tmp_path).commit(6, {"model.safetensors": {"x": torch.zeros(100_000)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Store(tmp_path).recover() == older


def test_the_best_model_is_the_same_when_read_back_and_replaced(tmp_path: Path):
    for epoch in range(2):
        best_model.save(tmp_path / "best", {"x": torch.full((2,), float(epoch))}, {"epoch": epoch})
        found, metadata = best_model.load(tmp_path / "best")
        assert metadata == {"epoch": epoch}
        assert found["x"].tolist() == [epoch, epoch]
    assert names(tmp_path / "best") == ["model.safetensors"]


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_the_best_model_is_refused_with_its_file_when_it_cannot_be_read(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors: the best model cannot be read"):
        best_model.load(tmp_path)


def test_the_best_model_is_refused_when_one_of_its_bits_flipped(tmp_path: Path):
    best_model.save(tmp_path, {"x": torch.arange(1000.0)}, {"epoch": 0})
    assert best_model.load(tmp_path)[1] == {"epoch": 0}  # control
    flip(tmp_path / "model.safetensors", 0.8)
    with pytest.raises(InputError, match="was changed since it was written"):
        best_model.load(tmp_path)
