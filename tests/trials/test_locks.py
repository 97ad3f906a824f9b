"""Locks of runs and of the cache: who holds one, what becomes of those of the dead, and how long one waits."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, recipe
from toolkit.system import locks
from toolkit.system.errors import InputError
from toolkit.system.locks import Holder, Lock, locked, taking_over
from toolkit.system.run_lock import LOCK, NOTE, RunLock

GONE = {"host": "node7", "pid": 4711, "since": "Mon 1 Jan", "boot": "another"}
HOLD = """
import sys, time
from pathlib import Path
from toolkit.system.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(1000)
"""


@contextmanager
def flocked(path: Path) -> Iterator[None]:
    """A real lock of the kernel, which names nobody."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def held_by_a_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def train(folder: Path, *words: str) -> int:
    return recipe("single_scale")([*TINY, "--img-size", "16", "--epochs", "1", "--output-dir", str(folder), *words])


def test_the_lock_of_a_living_process_is_never_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with held_by_a_process(tmp_path) as process:
        told = f"process {process.pid} on {socket.gethostname()}, since "
        for words in ((), ("--take-over",)):
            assert train(tmp_path, *words) == 2
            error = capsys.readouterr().err.strip()
            assert error.startswith(f"error: --output-dir {tmp_path}: another run is using it ({told}")
            assert ("--take-over does not end it" in error) == bool(words)
            assert error.endswith("wait for it, or choose another")
        assert process.poll() is None
        # Nor in another container of this machine, under whatever name.
        note = json.loads((tmp_path / NOTE).read_text())
        (tmp_path / NOTE).write_text(json.dumps({**note, "host": "c0ffee", "pid": 1, "pids": "4026532000"}))
        with taking_over(True), pytest.raises(InputError, match=r"process 1 on c0ffee.*--take-over does not end it"):
            RunLock(tmp_path).acquire()


def test_a_killed_holder_leaves_nothing_in_the_way_where_the_kernel_has_locks(tmp_path: Path):
    with held_by_a_process(tmp_path) as process:
        process.kill()
        process.wait()
        assert (tmp_path / NOTE).exists()
        lock = RunLock(tmp_path)
        lock.acquire()
        assert json.loads((tmp_path / NOTE).read_text())["pid"] == os.getpid()
        lock.release()
        assert not (tmp_path / NOTE).exists()


def test_a_lock_that_a_dead_machine_left_on_a_server_is_taken_over_on_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / NOTE).write_text(json.dumps(GONE))
    with flocked(tmp_path / LOCK):  # as NFS has it until that machine is back
        assert train(tmp_path) == 2
        assert "(process 4711 on node7, since Mon 1 Jan); wait for it, choose another, or give --take-over if" in (
            capsys.readouterr().err
        )
        assert train(tmp_path, "--take-over") == 0
        assert f"{tmp_path}/.lock: taken over from process 4711 on node7" in capsys.readouterr().err
    assert train(tmp_path, "--take-over") == 0  # harmless where nothing is locked
    assert f"--take-over: {tmp_path} was not locked" in capsys.readouterr().out


def soft(path: Path) -> Lock:
    """A lock as it is where the storage has none."""
    lock = Lock(path)
    lock.use_file()
    return lock


def test_a_file_stands_for_a_lock_and_tells_the_dead_from_the_living(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path, note = tmp_path / "x.lock", tmp_path / "x.lock.owner"
    first = soft(path)
    assert first.acquire()
    mine = json.loads(note.read_text())
    assert not soft(path).acquire()
    assert not soft(path).take_over()  # it lives
    assert not soft(path).can_take_over()
    note.write_text(json.dumps({**mine, "pid": 1, "pids": "4026532000"}))  # in another container of this machine
    Path(f"{path}.held").write_text(f"1\n{socket.gethostname()}?pidns-{4026532000:x}\n")
    assert soft(path).can_take_over()  # who can tell whether it lives
    first.release()
    assert [*tmp_path.iterdir()] == []
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid, began in ((ended.pid, ""), (os.getpid(), "1")):  # no such process; another one has its number now
        marker = f"{pid}\n{socket.gethostname()}\n"
        Path(f"{path}.held").write_text(marker if pid == ended.pid else f"{marker}1\n")
        note.write_text(json.dumps({**mine, "pid": pid, "began": began}))
        lock = soft(path)
        assert lock.acquire(), pid
        assert f"{path}: taken over from process {pid} on {socket.gethostname()}" in caplog.text
        lock.release()
    Path(f"{path}.held").write_text("4711\nnode7\n")  # its note is lost
    lock = soft(path)
    assert not lock.acquire()
    assert str(lock.holder()).startswith("process 4711 on node7, since ")
    assert lock.take_over()
    lock.release()


def test_a_holder_of_an_earlier_version_is_known(tmp_path: Path):
    (tmp_path / "note").write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": "today"}))
    holder = locks.read_holder(tmp_path / "note")
    assert holder == Holder(socket.gethostname(), os.getpid(), "today")
    assert holder.is_alive
    for text in ("", "{}", '{"pid": "x"}', "[]"):
        (tmp_path / "note").write_text(text)
        assert locks.read_holder(tmp_path / "note") is None


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SILENT_S", 0.1)
    monkeypatch.setattr(locks, "REMIND_S", 0.1)
    monkeypatch.setattr(locks, "LONGEST_WAIT_S", 0.3)


@pytest.mark.usefixtures("_impatient")
def test_who_locks_the_cache_is_named_and_waited_for_within_a_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ("--cache-dir", str(tmp_path / "cache"), "--dry-run")
    assert train(tmp_path / "run", *words) == 0
    for path in [*(tmp_path / "cache" / "index").glob("*.lock")][:1]:
        Path(f"{path}.owner").write_text(json.dumps(GONE))
        with flocked(path):
            capsys.readouterr()
            assert train(tmp_path / "run", *words) == 2
            told = capsys.readouterr()
            assert f"{path} is locked by process 4711 on node7, since Mon 1 Jan, which may be building it" in told.out
            assert told.err.startswith(f"error: {path}: locked by process 4711 on node7, since Mon 1 Jan, for more")
            assert "delete that file (in training also --take-over; --cache-dir names another place)" in told.err
            with taking_over(True), locked(path):
                assert json.loads(Path(f"{path}.owner").read_text())["pid"] == os.getpid()


@pytest.mark.usefixtures("_impatient")
def test_a_living_holder_of_this_machine_is_waited_for_as_long_as_it_takes(tmp_path: Path):
    path = tmp_path / "x.lock"
    note = {**GONE, "host": socket.gethostname(), "pid": os.getpid(), "boot": locks.myself().boot, "at": locks.BEGAN}
    Path(f"{path}.owner").write_text(json.dumps(note))
    hold = f"import fcntl, time; f = open({str(path)!r}, 'a'); fcntl.flock(f, 2); print(flush=True); time.sleep(1.5)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with taking_over(True), locked(path):  # five times the bound, and not taken over
            assert process.wait() == 0
