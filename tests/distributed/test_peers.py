"""A process that is gone is named by the others within --peer-timeout-s; one that is slow is waited for."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import forkserver
from tests.conftest import PATIENCE_S, ROOT, SLOW, recipe

RECIPE = str(ROOT / "recipes" / "single_scale.py")
LONG = ("--synthetic-count", "240", "--img-size", "16", "--batch-size", "24", "--epochs", "500", "--num-workers", "1")
FLAGS = ("--log-with", "none", "--record-samples", "--save-every-steps", "3")
TIMEOUT_S = 5
HOST = socket.gethostname()
EXIT_S = 25  # for the records, and for a machine that does other work


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def ranks(words: Sequence[str], count: int = 2, started: Sequence[int] = (0, 1), **env: str) -> Iterator[list[Any]]:
    """The recipe in some of `count` processes, without a launcher, which would end the others when one fails."""
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    place = {**size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **env}
    processes = [
        forkserver.Popen(
            [sys.executable, RECIPE, *words],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in started
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stderr.close()


def delivered(output: Path) -> list[dict[str, Any]]:
    file = output / "samples.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for_steps(output: Path, processes: Sequence[Any], steps: int = 8) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(delivered(output)) < 2 * steps:
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def newest(output: Path) -> int:
    return max(int(path.name[5:]) for path in (output / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_stopped_process_is_named_by_the_other_which_keeps_its_checkpoint(tmp_path: Path, victim: int):
    """Its connections stay open: without life signs the other would wait for half an hour."""
    output = tmp_path / "run"
    with ranks([*LONG, *FLAGS, "--output-dir", str(output), "--peer-timeout-s", str(TIMEOUT_S)]) as processes:
        wait_for_steps(output, processes)
        processes[victim].send_signal(signal.SIGSTOP)
        began, other = time.monotonic(), processes[1 - victim]
        text = other.communicate(timeout=PATIENCE_S)[1]
        assert TIMEOUT_S - 1 < time.monotonic() - began < TIMEOUT_S + EXIT_S
        head = "error on rank 1: " if victim == 0 else "error: "
        told = f"no answer from rank {victim} on host {HOST} for {TIMEOUT_S} s: network or machine"
        assert text == f"{head}{told}; run the same command again\n"
        assert other.returncode == 1
        assert json.loads((output / "summary.json").read_text())["exit_reason"].startswith(told)
        assert newest(output) >= 3
        processes[victim].send_signal(signal.SIGCONT)  # as after Ctrl-Z: it finds that the other has left
        late = processes[victim].communicate(timeout=PATIENCE_S)[1]
        # Whether the closed connection or the silence is noticed first depends on the moment.
        assert re.search(
            rf"(no answer from )?rank {1 - victim} on host {HOST} (stopped without a word|for {TIMEOUT_S} s)", late
        )
        assert late.count("\n") == 1
        assert processes[victim].returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_at_once(tmp_path: Path, victim: int):
    output = tmp_path / "run"
    with ranks([*LONG, *FLAGS, "--output-dir", str(output)]) as processes:
        wait_for_steps(output, processes)
        processes[victim].kill()
        began = time.monotonic()
        text = processes[1 - victim].communicate(timeout=PATIENCE_S)[1]
        assert time.monotonic() - began < EXIT_S
    assert re.sub("^error( on rank 1)?: ", "", text) == (
        f"rank {victim} on host {HOST} stopped without a word: killed, out of memory, or its machine failed\n"
    )


@pytest.mark.slow
def test_all_are_named_by_the_first_of_three(tmp_path: Path):
    """Two of three are stopped; rank 0 finds it. Of one that is stopped, another one reads it in the store."""
    output = tmp_path / "run"
    words = [*LONG, *FLAGS, "--output-dir", str(output), "--peer-timeout-s", str(TIMEOUT_S)]
    with ranks(words, 3, (0, 1, 2)) as processes:
        wait_for_steps(output, processes)
        processes[2].send_signal(signal.SIGSTOP)
        texts = [process.communicate(timeout=PATIENCE_S)[1] for process in processes[:2]]
    told = f"no answer from rank 2 on host {HOST} for {TIMEOUT_S} s: network or machine; run the same command again\n"
    assert texts == [f"error: {told}", f"error on rank 1: {told}"]


@SLOW
def test_processes_that_were_stopped_together_go_on(tmp_path: Path):
    """Ctrl-Z, a laptop that sleeps: time in which a process itself stands still is no silence of the others."""
    output = tmp_path / "run"
    words = [*LONG, *FLAGS, "--output-dir", str(output), "--peer-timeout-s", str(TIMEOUT_S)]
    with ranks(words) as processes:
        wait_for_steps(output, processes)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in processes:
                process.send_signal(number)
            time.sleep(TIMEOUT_S + 3)
        wait_for_steps(output, processes, len(delivered(output)) // 2 + 5)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(PATIENCE_S) for process in processes] == [75, 75]


@SLOW
def test_a_process_that_is_slow_is_waited_for(tmp_path: Path):
    """One rank takes more than twice the timeout to start, then the other in work that only it does."""
    output = tmp_path / "run"
    words = [*LONG[:-4], "--epochs", "2", "--num-workers", "1", "--output-dir", str(output), "--peer-timeout-s", "5"]
    own = ["--model-from", "slow_parts:make", "--log-with", "slow_parts:Slow"]
    began = time.monotonic()
    with ranks([*words, *own], PYTHONPATH=f"{Path(__file__).parent}:{ROOT}") as processes:
        texts = [process.communicate(timeout=PATIENCE_S)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], texts
    assert time.monotonic() - began > 24
    assert json.loads((output / "summary.json").read_text())["exit_reason"] == "done"


@pytest.mark.slow
def test_who_lives_and_is_waited_for_is_told_and_not_waited_for_without_end(tmp_path: Path):
    """With limits of 3 s and 8 s in place of a minute and half an hour; rank 1 takes 12 s to build its model."""
    words = [*LONG, "--output-dir", "run", "--log-with", "none", "--model-from", "slow_parts:make"]
    (tmp_path / "start.py").write_text(
        "import sys\n"
        "from tests.conftest import recipe\n"
        "from toolkit.training import life_signs\n"
        "life_signs.LIVING_S, life_signs.LEAST_SLOWEST_S, life_signs.SLOWEST = 3.0, 8.0, 1\n"
        f"sys.exit(recipe('single_scale')({[*words, '--peer-timeout-s', '5']!r}))\n"
    )
    path = f"{Path(__file__).parent}:{ROOT}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        done = forkserver.run_ranks([str(tmp_path / "start.py")], cwd=tmp_path, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert f"waiting   for rank 1 on host {HOST}, alive, for " in done.stdout
    assert f"error: rank 1 on host {HOST} lives, but has kept the others waiting for 8.0 s: it hangs" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, 1])
def test_a_process_that_does_not_start_is_named(tmp_path: Path, missing: int):
    output = tmp_path / "run"
    words = [*LONG, *FLAGS, "--output-dir", str(output), "--peer-timeout-s", str(TIMEOUT_S)]
    with ranks(words, 3, (1 - missing, 2)) as processes:
        texts = [process.communicate(timeout=PATIENCE_S)[1] for process in processes]
        assert [process.returncode for process in processes] == [1, 1]
    who = "rank 1" if missing else "rank 0 at 127.0.0.1:"
    for text in texts:
        assert re.sub("^error( on rank .)?: ", "", text).startswith(f"no answer from {who}")
        assert f"for {TIMEOUT_S} s: network or machine, or not started (" in text
        assert text.count("\n") == 1
    assert not output.exists()


@pytest.mark.slow
def test_the_error_of_one_process_is_told_by_the_others(tmp_path: Path):
    """With its rank, host and first line, as each machine may have a log of its own."""
    output = tmp_path / "run"
    words = [*LONG, *FLAGS, "--output-dir", str(output), "--model-from", "failing:make"]
    (tmp_path / "failing.py").write_text(
        "import os, torch\n"
        "class Failing(torch.nn.Linear):\n"
        "    calls = 0\n"
        "    def forward(self, images):\n"
        "        Failing.calls += self.training and images.device.type != 'meta'\n"
        "        if Failing.calls > 9 and os.environ['RANK'] == '1':\n"
        "            raise ZeroDivisionError('of this very rank')\n"
        "        return super().forward(images.mean((2, 3)))\n"
        "def make(num_classes):\n"
        "    return Failing(3, num_classes)\n"
    )
    with ranks(words, PYTHONPATH=f"{tmp_path}:{ROOT}") as processes:
        texts = [process.communicate(timeout=PATIENCE_S)[1] for process in processes]
    assert texts[0] == f"error: rank 1 on host {HOST} stopped first: ZeroDivisionError: of this very rank\n"
    assert "Traceback" in texts[1]
    assert json.loads((output / "summary.json").read_text())["exit_reason"].endswith("of this very rank")


@pytest.mark.parametrize("value", ["0", "-1", "4.9", "nan", "soon"])
def test_a_timeout_that_life_signs_cannot_keep_is_refused(value: str, capsys: pytest.CaptureFixture[str]):
    assert recipe("single_scale")(["--peer-timeout-s", value, "--dry-run"]) == 2
    rule = {"nan": "must be a finite number", "soon": "must be a number"}.get(value, "must be 5 or more")
    assert capsys.readouterr().err == f"error: --peer-timeout-s {value}: {rule}\n"
