"""Storage that fails or lacks what local disks have: one line says what and what to do, before training if possible.

A library in front of the C library's makes calls fail below one folder; small file systems are really mounted.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import PATIENCE_S, ROOT, write_folders

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
TRAIN = ("--img-size", "16", "--batch-size", "20", "--epochs", "1", "--log-with", "none", "--num-workers", "1")
BUILT_IN = ("--synthetic-count", "40", "--synthetic-size", "32")
LACKING = {"rename_file": errno.EXDEV, "rename_dir": errno.EOPNOTSUPP, "fsync_file": errno.EIO, "flock": errno.EIO}
TRY_EACH = """
import os
from pathlib import Path
from toolkit.system.errors import expected
from toolkit.system.run_lock import RunLock
folder = Path(os.environ["SHIM_BELOW"]) / "each"
for call, number in {calls}.items():
    os.environ["SHIM_FAILS"] = f"{{call}}={{number}}"
    try:
        RunLock(folder).acquire()
    except Exception as error:
        print(call, expected(error))
    print([path.name for path in folder.iterdir() if path.name != ".lock"])
"""


class Told(NamedTuple):
    """How a situation ended; `error`: its line without "error: "."""

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def error(self) -> str:
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("error: ")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(HERE / "shim.c"), "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which calls fail."""
    return tmp_path_factory.mktemp("place")


PRIVATE = ("unshare", "--mount", "--propagation", "private")


def tell(shim: Path, situations: dict[str, Any]) -> dict[str, Told]:
    """All situations, in one process; without those that need a mount where that is not allowed."""
    allowed = subprocess.run([*PRIVATE, "mount", "-t", "tmpfs", "x", "/dev/shm"], capture_output=True, check=False)
    before = PRIVATE if allowed.returncode == 0 else ()
    todo = {name: situation for name, situation in situations.items() if before or "mounts" not in situation}
    done = subprocess.run(
        [*before, sys.executable, "-m", "tests.trials.situations"],
        input=json.dumps(todo),
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": f"{ROOT}:{HERE}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: Told(**told) for name, told in json.loads(done.stdout).items()}


def small(place: Path, options: str) -> list[list[str]]:
    return [["-t", "tmpfs", "-o", options, "tmpfs", str(place)]]


@pytest.fixture(scope="module")
def told(shim: Path, place: Path) -> dict[str, Told]:
    photos = write_folders(place / "photos", {"train": 12, "val": 2})
    (place / "inodes").mkdir()
    # Held, as far as its files say, by a process of another machine, where the storage has no locks.
    note = {"host": "node7", "pid": 4711, "since": "Mon 1 Jan", "boot": "another"}
    (place / "soft").mkdir()
    (place / "soft" / ".owner.json").write_text(json.dumps(note))
    (place / "soft" / ".lock.held").write_text("4711\nnode7\n")

    def situation(fails: str, output: str, *words: str, data: tuple[str, ...] = BUILT_IN, **more: Any) -> Any:
        words = (*data, *TRAIN, *words, "--output-dir", str(place / output))
        environment = {"SHIM_BELOW": str(place), "SHIM_FAILS": fails}
        return {"recipe": "single_scale", "words": words, "environment": environment, **more}

    def reading(number: int) -> Any:
        return situation(f"pread={number}", f"read-{number}", "--cache", "off", data=("--data-root", str(photos)))

    def hung(name: int, at: int | None = None) -> Any:
        found = situation("", f"hung-{name}", "--transform", "own_trouble:hang")
        return {**found, "environment": {"HANG_AT": str(at or name)}}

    shm, soft = Path("/dev/shm"), "fsync_dir=22,flock=37"
    return tell(
        shim,
        {
            "rename": situation("rename_dir=38", "no-rename"),
            "each": {
                "lines": TRY_EACH.format(calls=LACKING),
                "environment": {"SHIM_BELOW": str(place), "SHIM_FAILS": ""},
            },
            "held": situation(soft, "soft"),
            "taken": situation(soft, "soft", "--take-over"),
            "eio": reading(errno.EIO),
            "estale": reading(errno.ESTALE),
            "emfile": situation("", "emfile", files=2),
            "inodes": situation("", "inodes/run", mounts=small(place / "inodes", "nr_inodes=12")),
            "hung-at-first": hung(10),
            "hung-later": hung(30),
            "unhung": hung(10, 100),
            "shm-none": situation("", "a", "--rand-augment", "5", "--dry-run", mounts=small(shm, "size=4k")),
            "shm-few": situation(
                "", "b", "--rand-augment", "5", "--dry-run", "--num-workers", "4", mounts=small(shm, "size=100k")
            ),
            "shm-filled": situation("", "c", "--transform", "own_trouble:fill", mounts=small(shm, "size=1m")),
        },
    )


def of(told: dict[str, Told], name: str) -> Told:
    if name not in told:
        pytest.skip("needs the right to mount")
    return told[name]


def test_storage_that_cannot_rename_folders_is_refused_before_training(told: dict[str, Told], place: Path):
    found = of(told, "rename")
    assert found.code == 2
    assert found.error == (
        f"--output-dir {place}/no-rename: the storage cannot rename a folder: Function not implemented; take an "
        "--output-dir on a local disk"
    )
    assert "epoch" not in found.out
    assert [path.name for path in (place / "no-rename").iterdir()] == [".lock"]


def test_what_else_a_run_needs_of_its_directory_is_tried_and_named(told: dict[str, Told], place: Path):
    found, folder = of(told, "each"), place / "each"
    assert found.code == 0, found.err
    assert found.out.splitlines() == [
        f"rename_file --output-dir {folder}: the storage cannot rename a file: Invalid cross-device link; take an "
        "--output-dir on a local disk",
        "[]",
        f"rename_dir --output-dir {folder}: the storage cannot rename a folder: Operation not supported; take an "
        "--output-dir on a local disk",
        "[]",
        f"fsync_file --output-dir {folder}: the storage cannot write a file to the disk (fsync): Input/output error: "
        "the disk, or the way to it, failed: see `dmesg`",
        "[]",
        f"flock {folder}/.lock: Input/output error: the disk, or the way to it, failed: see `dmesg`",
        "[]",
    ]


def test_a_run_trains_with_one_warning_each_where_there_is_no_fsync_of_folders_and_no_lock(
    told: dict[str, Told], place: Path
):
    found = of(told, "taken")
    assert found.code == 0, found.err
    # The lock's warning came at the start before it, in the same process.
    warnings = [*of(told, "held").err.splitlines(), *found.err.splitlines()]
    assert sum("cannot fsync folders (Invalid argument)" in line for line in warnings) == 1
    assert sum("has no file locks (No locks available)" in line for line in warnings) == 1
    assert (place / "soft" / "checkpoints" / "step-000000002" / "COMMITTED").is_file()
    assert not (place / "soft" / ".lock.held").exists()


def test_a_lock_that_another_machine_left_is_taken_over_on_demand_only(told: dict[str, Told], place: Path):
    assert of(told, "held").code == 2
    assert of(told, "held").error == (
        f"--output-dir {place}/soft: another run is using it (process 4711 on node7, since Mon 1 Jan); wait for it, "
        "choose another, or give --take-over if it is gone"
    )
    taken = "soft/.lock: taken over from process 4711 on node7, since Mon 1 Jan (--take-over)"
    assert taken in of(told, "taken").err
    assert "take_over" not in (place / "soft" / "config.yaml").read_text()


@pytest.mark.parametrize(("name", "reason"), [("eio", "Input/output error"), ("estale", "Stale file handle")])
def test_an_image_that_the_storage_does_not_give_is_named(told: dict[str, Told], place: Path, name: str, reason: str):
    found = of(told, name)
    assert found.code == 1
    assert found.error.startswith(f"{place}/photos/train/")
    assert f".png: {reason}: " in found.error
    assert found.error.endswith("(the storage failed, not the image)")


def test_too_many_open_files_end_a_run_with_the_limit_to_raise(told: dict[str, Told]):
    found = of(told, "emfile")
    assert found.code == 1
    assert "Too many open files: this process may not open more files: raise `ulimit -n`" in found.error
    assert "--cache-dir" not in found.error


def test_a_disk_without_inodes_is_not_called_full(told: dict[str, Told], place: Path):
    found = of(told, "inodes")
    assert found.code == 1
    assert f"{place}/inodes/run/checkpoints/.tmp-step-000000002/" in found.error
    assert "No space left on device (0 inodes, " in found.error
    assert "no file entries (inodes) are left there: delete files, however small" in found.error
    assert "make room" not in found.error


def test_a_small_dev_shm_is_seen_before_training(told: dict[str, Told]):
    none, few = of(told, "shm-none"), of(told, "shm-few")
    assert none.code == 2
    assert none.error.startswith(
        "/dev/shm has 0.0041 MB free, and 1 loader process(es) with 2 batches of 0.0154 MB each, and one in use, need "
        "0.0461 MB: raise it (docker run --shm-size=1g or --ipc=host)"
    )
    assert few.code == 0, few.err
    assert "need 0.138 MB: only 2 are started; raise /dev/shm" in few.err
    assert "2 decoding worker(s) per process" in few.out


def test_a_dev_shm_that_fills_up_ends_the_run_at_once(told: dict[str, Told]):
    found = of(told, "shm-filled")
    assert found.code == 1
    assert "No space left on device (28): raise /dev/shm (docker run --shm-size=1g or --ipc=host)" in found.error
    assert found.seconds < 60  # a loader is waited for 300 s


def test_a_stop_is_answered_while_a_batch_is_waited_for(told: dict[str, Told], place: Path):
    for name, at, step in (("hung-at-first", 10, 0), ("hung-later", 30, 1)):
        found = of(told, name)
        assert found.code == 75, found.err
        assert f"stopped by SIGTERM at step {step} of 2, saved" in found.err
        assert (place / f"hung-{at}" / "checkpoints" / f"step-{step:09d}" / "COMMITTED").is_file()
        assert found.seconds < 60  # a loader is waited for 300 s
    assert of(told, "unhung").code == 0, of(told, "unhung").err
    assert f"continuing from {place}/hung-10/checkpoints/step-000000000" in of(told, "unhung").out
