"""A recipe on a disk that is full, or that may not be written: the last checkpoint stands, one line says what is wrong.

Real limits and real file systems; those need the right to mount them.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from victim import newest

from tests import forkserver
from tests.conftest import PATIENCE_S, ROOT, SLOW

pytestmark = pytest.mark.slow
WORDS = [
    *("--synthetic-count", "600", "--synthetic-size", "32", "--img-size", "16", "--batch-size", "4", "--epochs", "1"),
    *("--save-every-steps", "20", "--keep", "2", "--log-with", "none"),
]
LAST = 150


def command(output: Path, *before: str) -> list[str]:
    return [*before, sys.executable, str(ROOT / "recipes" / "single_scale.py"), *WORDS, "--output-dir", str(output)]


def train(output: Path, *before: str) -> subprocess.CompletedProcess[str]:
    """The recipe to its end; `before`: words before it in the command line."""
    return forkserver.run(command(output, *before), timeout=PATIENCE_S)


def stopped_by(output: Path, event: Callable[[subprocess.Popen[str]], None]) -> subprocess.CompletedProcess[str]:
    """The recipe, to which something happens once its first checkpoint is there."""
    with forkserver.Popen(command(output), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not newest(output):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            event(process)
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has a checkpoint, and more to do."""
    output = tmp_path_factory.mktemp("stopped") / "run"
    assert stopped_by(output, lambda process: process.send_signal(signal.SIGKILL)).returncode == -signal.SIGKILL
    return output


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder to mount something on."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    while os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def check_failed(done: subprocess.CompletedProcess[str], output: Path, before: int, reason: str) -> str:
    """Exit code 1, one line, no word of success, and the last checkpoint whole; returns the line."""
    assert done.returncode == 1, done.stderr
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert str(output) in error
    assert reason in error
    assert "Traceback" not in done.stderr
    assert "saved" not in done.stdout + done.stderr
    assert newest(output) == before
    assert f"step-{before:09d} is intact" in error
    return error


def check_refused(done: subprocess.CompletedProcess[str], output: Path, codes: tuple[int, ...], reason: str) -> None:
    """A line that names the file, and nothing else but that the page could not be written either."""
    assert done.returncode in codes, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith(f"{output}/report.html could not be ")]
    assert len(lines) == 1, done.stderr
    assert f" {output}/" in lines[0] or f" {output}: " in lines[0]
    assert reason in lines[0]


def sizes_in(error: str) -> tuple[int, int]:
    """Bytes that were to be written, and that are free."""
    found = re.search(r"/model.safetensors, (\d+) bytes: .*\((\d+) bytes free\)", error)
    assert found, error
    return int(found[1]), int(found[2])


def check_goes_on(output: Path, before: int) -> None:
    done = train(output)
    assert done.returncode == 0, done.stderr
    assert f"continuing from {output}/checkpoints/step-{before:09d}" in done.stdout
    assert json.loads((output / "summary.json").read_text())["exit_reason"] == "done"
    assert newest(output) == LAST


@SLOW
def test_a_run_ends_with_one_line_and_goes_on_later_when_a_file_may_not_be_so_large(stopped: Path, tmp_path: Path):
    output = Path(shutil.copytree(stopped, tmp_path / "run"))
    before = newest(output)
    done = train(output, "bash", "-c", 'ulimit -f 1000; exec "$@"', "bash")
    error = check_failed(done, output, before, "File too large")
    needed, free = sizes_in(error)
    model = output / "checkpoints" / f"step-{before:09d}" / "model.safetensors"
    assert 1000 * 1024 < needed <= model.stat().st_size < needed + 50_000  # names and shapes stand in front
    assert free == pytest.approx(shutil.disk_usage(output).free, abs=2**30)
    assert json.loads((output / "summary.json").read_text())["exit_reason"] == error.removeprefix("error: ")
    check_goes_on(output, before)


def used(folder: Path) -> int:
    """As a file system of pages of 4 KiB has it, bytes."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


@SLOW
@pytest.mark.parametrize("room", [1_000_000, 8192, 0])
def test_a_run_ends_with_one_line_and_goes_on_later_when_the_disk_is_full(stopped: Path, place: Path, room: int):
    """Room for less than a model; for the files of a start only; for nothing."""
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place))
    output = Path(shutil.copytree(stopped, place / "run"))
    (output / "summary.json").unlink(missing_ok=True)
    before = newest(output)
    mount("-o", f"remount,size={used(place) + room}", str(place))
    done = train(output)
    if room > 100_000:
        needed, free = sizes_in(check_failed(done, output, before, "No space left on device"))
        assert free < room < needed
    else:
        check_refused(done, output, (1, 2), "No space left on device")
        if not room:
            check_refused(train(place / "new"), place / "new", (1, 2), "No space left on device")
        assert newest(output) == before
    mount("-o", "remount,size=64m", str(place))
    check_goes_on(output, before)


@SLOW
def test_a_run_ends_with_one_line_and_goes_on_later_when_its_directory_becomes_read_only(place: Path):
    output = place / "run"
    output.mkdir()

    def forbid(_: object) -> None:
        mount("--bind", str(place), str(place))
        mount("-o", "remount,bind,ro", str(place))

    done = stopped_by(output, forbid)
    before = newest(output)
    error = check_failed(done, output, before, "Read-only file system")
    assert re.search(r"/checkpoints/.tmp-step-\d+, \d+ bytes: .* \(\d+ bytes free\)", error), error
    assert "summary.json could not be written" in done.stderr
    subprocess.run(["umount", str(place)], check=True)
    check_goes_on(output, before)


@SLOW
def test_a_run_ends_with_one_line_when_its_directory_is_read_only_from_the_start(stopped: Path, place: Path):
    output = Path(shutil.copytree(stopped, place / "run"))
    before = newest(output)
    mount("--bind", str(place), str(place))
    mount("-o", "remount,bind,ro", str(place))
    for folder in (output, place / "new"):
        done = train(folder)
        check_refused(done, folder, (2,), "Read-only file system")
    assert newest(output) == before
    subprocess.run(["umount", str(place)], check=True)
    check_goes_on(output, before)
