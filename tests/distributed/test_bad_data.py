"""Bad files and lost processes in runs of several processes: the same quarantine, and an end in one line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests import forkserver
from tests.conftest import PATIENCE_S, ROOT, TORCHRUN, recipe, write_folders
from tests.forkserver import run_ranks
from toolkit import SingleScale
from toolkit.config.settings import Settings
from toolkit.data.loading.sampler import Sampler
from toolkit.data.sources.splits import open_splits

RECIPE = str(ROOT / "recipes" / "single_scale.py")
IMAGES, BATCH = 24, 8
TRAIN = ("--arch", "test_vit", "--img-size", "32", "--batch-size", str(BATCH), "--no-amp", "--log-with", "none")
EXACT = ("--optimizer", "sgd", "--learning-rate", "0.01", "--epochs", "3", "--record-samples")
COLORFUL = (
    "--rand-augment",
    "5",
    "--color-jitter",
    "0.3",
    "--random-erasing",
    "0.3",
    "--mixup",
    "0.4",
    "--cutmix",
    "1",
)
SPLITS = {"train": IMAGES // 2, "val": 4, "test": 3}


def cut(path: Path) -> None:
    """Leave a header that can be read, and half of the pixels."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def summary(output: Path) -> dict[str, Any]:
    return json.loads((output / "summary.json").read_text())


@pytest.mark.slow
def test_two_processes_quarantine_and_augment_as_one_does(tmp_path: Path):
    data = write_folders(tmp_path / "data", SPLITS)
    bad = {"train/cat/3.png", "train/dog/5.png", "val/dog/1.png", "test/cat/0.png"}
    for name in bad:
        cut(data / name)
    words = ("--data-root", str(data), *TRAIN, *EXACT, *COLORFUL, "--on-bad-sample", "quarantine", "--output-dir")
    assert recipe("single_scale")([*words, str(tmp_path / "one")]) == 0
    launch = [*TORCHRUN, RECIPE, *words, str(tmp_path / "two")]
    done = subprocess.run(launch, env={**os.environ}, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    steps: dict[str, dict[int, set[tuple[int, int, int]]]] = {}
    for name in ("one", "two"):
        steps[name] = defaultdict(set)
        for line in lines(tmp_path / name / "samples.jsonl"):
            steps[name][line["step"]] |= set(zip(line["ids"], line["digests"], line["mixing"], strict=True))
        assert sorted(line["name"] for line in lines(tmp_path / name / "quarantine.jsonl")) == sorted(bad)
    assert steps["one"] == steps["two"]
    assert len(steps["one"]) == 9
    one, two = (summary(tmp_path / name) for name in ("one", "two"))
    assert two["processes"] == 2
    for split in ("val", "test"):
        score, other = one[split]["32px"], two[split]["32px"]
        assert score["unreadable"] == other["unreadable"] == 1
        assert score["images"] == other["images"] == 2 * SPLITS[split] - 1
        for figure in ("top1", "top5", "loss", "balanced_accuracy", "macro_f1", "worst_class_accuracy"):
            assert score[figure] == pytest.approx(other[figure], abs=1e-6)


@pytest.mark.slow
def test_two_processes_refuse_to_start_when_their_data_differ(tmp_path: Path):
    """As two machines would, each with a copy of its own."""
    for rank, count in ((0, 12), (1, 13)):
        write_folders(tmp_path / f"data-{rank}", {"train": count, "val": 2})
    program = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); from tests.conftest import recipe; "
        f"sys.exit(recipe('single_scale')(['--data-root', 'data-' + os.environ['RANK'], *{TRAIN!r}, '--epochs', '2']))"
    )
    (tmp_path / "start.py").write_text(program)
    done = run_ranks([str(tmp_path / "start.py")], cwd=tmp_path, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert "--data-root: process 0 found 24 training images, process 1 found 26" in done.stderr
    assert not list(tmp_path.glob("runs/*/*"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_line_of_each_process_and_no_traceback_when_one_of_two_meets_a_bad_file(tmp_path: Path, rank: int):
    """Started by hand: a launcher may kill the other process before it can say anything."""
    data = write_folders(tmp_path / "data", SPLITS)
    index = open_splits(Settings(data_root=str(data)), 32).train
    in_second_step = Sampler(IMAGES, 0, SingleScale(32)).permutation(0)[BATCH + rank * BATCH // 2]
    name = index.names[int(in_second_step)]
    cut(data / name)
    words = ("--data-root", str(data), *TRAIN, *EXACT, "--output-dir", str(tmp_path / "run"))
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        forkserver.Popen(
            [sys.executable, RECIPE, *words],
            env={**os.environ, **place, "RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    told = [process.communicate(timeout=PATIENCE_S)[1] for process in processes]
    head = ["error: ", "error on rank 1: "]
    cause = f"{name}: cannot be read as an image: image file is truncated"
    assert [len(text.splitlines()) for text in told] == [1, 1], told
    assert told[rank].startswith(f"{head[rank]}{cause}")
    by = f"rank {rank} on host {socket.gethostname()} stopped first"
    assert told[1 - rank].startswith(f"{head[1 - rank]}{by}: {cause}")
    assert [process.returncode for process in processes] == [[2, 1], [1, 2]][rank]
    assert summary(tmp_path / "run")["exit_reason"].startswith(cause)
    assert [line["step"] for line in lines(tmp_path / "run" / "samples.jsonl") if line["rank"] == rank] == [0]


@contextmanager
def started(data: Path, output: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A long run in a session of its own, that has taken its first steps; nothing of it is left at the end."""
    command = [sys.executable, RECIPE, "--data-root", str(data), *TRAIN, "--output-dir", str(output)]
    process = forkserver.Popen(
        [*command, "--epochs", "5000", "--cache", "off", "--record-samples", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (output / "samples.jsonl").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        process.kill()
        process.wait()


def check_ended(process: subprocess.Popen[str], output: Path, message: str, patience_s: float) -> None:
    """Exit code 1, one line, and the summary says the same."""
    begin = time.monotonic()
    error = process.communicate(timeout=PATIENCE_S)[1]
    assert time.monotonic() - begin < patience_s
    assert process.returncode == 1
    assert len(error.splitlines()) == 1, error
    assert error.startswith(f"error: {message}")
    assert error == f"error: {summary(output)['exit_reason']}\n"


@pytest.mark.slow
@pytest.mark.parametrize(("words", "who"), [((), "thread"), (("--rand-augment", "5"), "process")])
def test_a_run_ends_within_its_timeout_with_one_line_when_a_read_never_returns(tmp_path: Path, words, who: str):
    data, output = write_folders(tmp_path / "data", SPLITS), tmp_path / "run"
    with started(data, output, "--loader-timeout-s", "10", *words) as process:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "pipe").replace(data / "train" / "cat" / "3.png")  # the storage hangs: nobody writes to a pipe
        check_ended(process, output, f"a loader {who} gave nothing for 10 s: is the storage of --data-root alive?", 60)


def children(pid: int) -> list[int]:
    """Process ids; none where it has ended."""
    try:
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_ends_with_one_line_when_a_loader_process_is_killed(tmp_path: Path):
    data, output = write_folders(tmp_path / "data", SPLITS), tmp_path / "run"
    with started(data, output, "--rand-augment", "5", "--num-workers", "2") as process:
        deadline = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < deadline:  # each epoch starts new ones
            for worker in children(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            time.sleep(0.01)
        check_ended(process, output, "a loader process died, killed or out of memory: ", 30)
