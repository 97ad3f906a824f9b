"""Asked to stop, under every launcher: a checkpoint of the very step, exit code 75, the reason, nobody left behind."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from victim import newest, slow_disk

from tests import forkserver
from tests.conftest import ACCELERATE, ALL, PATIENCE_S, ROOT, SLOW, TORCHRUN
from toolkit import Settings, SingleScale, train
from toolkit.system import preemption
from toolkit.system.errors import PreemptedError
from toolkit.system.preemption import SIGNALS, Preemption
from toolkit.training import epoch_end, loop

RECIPE = str(ROOT / "recipes" / "multiscale.py")
FLAGS = [
    *("--synthetic-count", "600", "--synthetic-size", "32", "--scales", "16,24", "--batch-size", "24"),
    *("--epochs", "200", "--log-with", "none", "--record-samples"),
]
DISTINCT_S = 2.5  # between signals that count as two events, on a machine that may stand still for a second


def delivered(output: Path) -> list[dict[str, Any]]:
    path = output / "samples.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@contextlib.contextmanager
def running(output: Path, *words: str, steps: int = 5, **env: str) -> Iterator[subprocess.Popen[str]]:
    """The recipe in a session of its own, once it has taken so many steps; whatever is left at the end is killed.

    `words`: the launcher's, then flags.
    """
    before = len(delivered(output))
    first = next((i for i, word in enumerate(words) if word in ("--cloud", "--rand-augment")), len(words))
    command = [*words[:first], RECIPE, *FLAGS, *words[first:], "--output-dir", str(output)]
    start = (
        forkserver.Popen if steps else subprocess.Popen
    )  # what happens at once, happens while libraries are imported
    process = start(
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE_S
        while steps and len(delivered(output)) < before + steps:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        for pid in pids_of(output):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def pids_of(output: Path, word: str = "") -> list[int]:
    """Processes that have the run directory, and `word`, in their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            command = (folder / "cmdline").read_text()
            if str(output) in command and word in command and "Z (" not in (folder / "status").read_text():
                found.append(int(folder.name))
    return sorted(found)


def gone(output: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while pids_of(output) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not pids_of(output)


def spoken(number: signal.Signals) -> str:
    return "Ctrl-C" if number == signal.SIGINT else number.name


def check_stopped(output: Path, reason: str) -> int:
    """That every delivered step is in the checkpoint; returns its step."""
    assert json.loads((output / "summary.json").read_text())["exit_reason"] == f"preempted by {reason}"
    step = newest(output)
    assert step == delivered(output)[-1]["step"] + 1
    assert not list((output / "checkpoints").glob(".tmp-*"))
    return step


def test_a_run_is_saved_and_goes_on_when_it_is_signaled(tmp_path: Path):
    output, step = tmp_path / "run", 0
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        with running(output, sys.executable) as process:
            process.send_signal(number)
            text, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 75, text
        assert f"\nstopped by {spoken(number)} at step " in text
        assert "Traceback" not in text
        if step:
            assert f"continuing from {output / 'checkpoints'}/step-{step:09d}" in text
        step = check_stopped(output, number.name)
    assert [line["step"] for line in delivered(output)] == list(range(step))


@pytest.mark.slow
def test_a_run_is_saved_when_all_its_processes_are_signaled(tmp_path: Path):
    """As schedulers do it that know a job as a group of processes: its loader processes must outlive the save."""
    output = tmp_path / "run"
    with running(output, sys.executable, "--rand-augment", "5", "--num-workers", "2") as process:
        assert len(pids_of(output)) == 3
        os.killpg(process.pid, signal.SIGTERM)
        text, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 75, text
        assert gone(output)
    check_stopped(output, "SIGTERM")


@pytest.mark.slow
def test_a_run_is_saved_when_nobody_reads_its_output_any_more(tmp_path: Path):
    """As with `... 2>&1 | tee log`, where the same signal ends `tee` first."""
    output = tmp_path / "run"
    with running(output, sys.executable) as process:
        process.stdout.close()
        process.terminate()
        assert process.wait(PATIENCE_S) == 75
    check_stopped(output, "SIGTERM")


@pytest.mark.slow
def test_a_run_leaves_at_once_when_it_is_signaled_twice(tmp_path: Path):
    """Its save is held up: the disk takes forever for a file of a checkpoint."""
    output = tmp_path / "run"
    (tmp_path / "sitecustomize.py").write_text(slow_disk("/checkpoints/", 2 * PATIENCE_S))
    with running(output, sys.executable, steps=5, PYTHONPATH=f"{tmp_path}:{ROOT}") as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(DISTINCT_S)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert newest(output) is None


@pytest.mark.slow
def test_a_run_ends_when_it_is_signaled_before_training_begins(tmp_path: Path):
    output = tmp_path / "run"
    with running(output, sys.executable, steps=0) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not handles(process.pid, signal.SIGUSR1) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGUSR1)
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, text
    assert "stopped by SIGUSR1 before training began; run the same command again" in text


def handles(pid: int, number: int) -> bool:
    """Whether a process has set a handler for a signal."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


LISTENER = f"""
import ctypes, os, signal, time
from toolkit.system.errors import PreemptedError
from toolkit.system.preemption import Preemption

def signaled(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    time.sleep({DISTINCT_S})

before = signal.getsignal(signal.SIGINT)  # which a shell without a terminal has ignored for what it puts behind it
with Preemption() as preemption:
    preemption.training_begins()
"""


def listen(*lines: str) -> subprocess.CompletedProcess[str]:
    """A process, without torch, that does something while it listens."""
    script = LISTENER + "".join(f"    {line}\n" for line in lines)
    return subprocess.run(
        [sys.executable, "-c", script], text=True, capture_output=True, timeout=PATIENCE_S, check=False
    )


@pytest.mark.parametrize(
    "before", ["preemption.ask('a notice')", pytest.param("signaled(signal.SIGUSR2)", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("signals", "code"), [pytest.param(1, 0, marks=pytest.mark.slow), (2, 128 + signal.SIGTERM)])
def test_only_signals_to_this_process_count_when_it_was_to_stop_already(before: str, signals: int, code: int):
    assert listen(before, f"time.sleep({DISTINCT_S})", *["signaled()"] * signals).returncode == code


def test_signals_of_one_event_count_once_when_a_launcher_passes_them_on():
    assert listen("os.kill(os.getpid(), signal.SIGINT)", "signaled()").returncode == 0


@pytest.mark.slow
def test_signals_to_a_forked_process_do_not_count_when_it_ends_by_them():
    fork = "pid = os.fork() or (time.sleep(0.2), signaled(), signaled(), os._exit(3))"
    ended = listen(fork, "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3", "signaled()")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_a_process_leaves_at_once_when_its_second_signal_finds_it_waiting_for_others():
    """No handler runs there. It waits for a lock of the C library, which it holds itself, as it would for a peer."""
    stuck = "mutex = bytes(64); lock = ctypes.CDLL(None).pthread_mutex_lock; lock(mutex); lock(mutex)"
    kills = f"for i in 1 2; do sleep {DISTINCT_S}; kill {{os.getpid()}}; done"
    send = f"import subprocess; subprocess.Popen(['sh', '-c', f'{kills}'])"
    assert listen(send, stuck).returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_training_ends_the_run_when_the_code_there_catches_errors(number: signal.Signals):
    handled = [signal.getsignal(number) for number in SIGNALS]
    stopped = pytest.raises(PreemptedError, match=f"stopped by {spoken(number)} before training")
    with stopped, Preemption(), contextlib.suppress(Exception):
        signal.raise_signal(number)
    assert [signal.getsignal(number) for number in SIGNALS] == handled


def test_a_signal_ends_the_run_when_it_comes_while_the_run_begins_to_listen(monkeypatch: pytest.MonkeyPatch):
    handled = [signal.getsignal(number) for number in SIGNALS]
    monkeypatch.setattr(preemption, "_tell_of_parents_death", lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(PreemptedError, match="stopped by SIGTERM before training"), Preemption():
        raise AssertionError("it went on")
    assert [signal.getsignal(number) for number in SIGNALS] == handled


def test_ctrl_c_is_what_it_was_when_a_run_was_saved_and_is_over():
    """As in a notebook, which lives on."""
    after = "\nassert signal.getsignal(signal.SIGINT) is before; os.kill(os.getpid(), signal.SIGTERM)"
    ended = listen("preemption.ask('a notice')", "preemption.saved()", after)
    assert ended.returncode == 75, ended.stderr


def test_nobody_asks_the_cloud_any_more_when_the_run_is_over(metadata: str, monkeypatch):
    monkeypatch.setenv("TOOLKIT_METADATA_URL", metadata)
    with Preemption() as preemption:
        preemption.watch("gcp")
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "cloud notice")
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.slow
def test_a_run_is_saved_when_its_launcher_is_terminated(tmp_path: Path):
    output = tmp_path / "run"
    with running(output, *ACCELERATE) as process:
        process.terminate()
        assert process.wait(PATIENCE_S) == -signal.SIGTERM  # it passes nothing on
        assert gone(output)
    check_stopped(output, "the end of the launcher")


@pytest.mark.slow
def test_a_run_goes_on_when_the_shell_ends_that_started_it(tmp_path: Path):
    """Though it has inherited what `accelerate launch` exports, as in a session within a job, or by hand."""
    output = tmp_path / "run"
    exported = {"ACCELERATE_MIXED_PRECISION": "no", "TORCHELASTIC_RUN_ID": "1"}
    with running(output, "sh", "-c", '"$@" & wait', "sh", sys.executable, **exported) as shell:
        shell.kill()
        shell.wait()
        steps, deadline = len(delivered(output)), time.monotonic() + PATIENCE_S
        while len(delivered(output)) < steps + 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(delivered(output)) >= steps + 5
        assert pids_of(output)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["one rank", *(["launcher", "launcher by SIGUSR1"] if ALL else [])])
def test_two_ranks_save_the_same_step_when_one_process_is_signaled(tmp_path: Path, victim: str):
    """The summary takes longer than the launcher, which ends all once one has left."""
    output = tmp_path / "run"
    (tmp_path / "sitecustomize.py").write_text(slow_disk("summary.json", 2))
    with running(output, *TORCHRUN, steps=10, PYTHONPATH=f"{tmp_path}:{ROOT}") as process:
        ranks = [pid for pid in pids_of(output, RECIPE) if pid != process.pid]
        assert len(ranks) == 2
        pid, number = {
            "one rank": (ranks[1], signal.SIGTERM),
            "launcher": (process.pid, signal.SIGTERM),
            "launcher by SIGUSR1": (process.pid, signal.SIGUSR1),
        }[victim]
        os.kill(pid, number)
        text, _ = process.communicate(timeout=PATIENCE_S)
        assert gone(output)
    assert "Traceback" not in text.split("stopped by")[0]
    assert not list(output.glob(".tmp-*"))
    reason = json.loads((output / "summary.json").read_text())["exit_reason"].removeprefix("preempted by ")
    assert reason in {"SIGTERM", "SIGTERM to another process of this run", "the end of the launcher"}
    step = check_stopped(output, reason)
    last = [line for line in delivered(output) if line["step"] == step - 1]
    assert sorted(line["rank"] for line in last) == [0, 1]
    if victim == "one rank":
        assert "exitcode  : 75" in text.replace("exitcode : 75", "exitcode  : 75"), text


DEATH = """
import os, signal, sys
def deadly(frame, event, _):
    if event == "call" and frame.f_code.co_name == "_meet":
        os.kill(os.getpid(), signal.SIGKILL)
if os.environ.get("RANK") == "1":
    sys.setprofile(deadly)
"""


@SLOW
def test_the_summary_says_why_when_another_process_dies_while_a_stopped_run_saves(tmp_path: Path):
    output = tmp_path / "run"
    (tmp_path / "sitecustomize.py").write_text(DEATH)
    with running(output, *TORCHRUN, steps=10, PYTHONPATH=f"{tmp_path}:{ROOT}") as process:
        os.kill(next(pid for pid in pids_of(output, RECIPE) if pid != process.pid), signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
        assert gone(output)
    reason = json.loads((output / "summary.json").read_text())["exit_reason"]
    assert re.match("(rank 1 on host .* stopped without a word|another process of this run stopped first)", reason), (
        reason
    )
    assert newest(output) is None


@pytest.mark.parametrize("signaled", [False, True])
def test_the_summary_says_what_failed_when_nobody_foresaw_it(tmp_path: Path, monkeypatch, signaled: bool):
    """In a step, or in the save of a run that was asked to stop."""

    def fail(*words: object) -> None:
        raise ZeroDivisionError("one line\nand another")

    monkeypatch.setattr(*(epoch_end, "capture") if signaled else (loop, "train_step"), fail)
    begins = Preemption.training_begins
    if signaled:
        monkeypatch.setattr(
            Preemption, "training_begins", lambda own: begins(own) or signal.raise_signal(signal.SIGTERM)
        )
    usual = {"synthetic_size": 32, "synthetic_count": 48, "batch_size": 24, "epochs": 1, "log_with": "none"}
    with pytest.raises(ZeroDivisionError):
        train(Settings(**usual, output_dir=tmp_path / "run"), SingleScale(16))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["exit_reason"], summary["steps"]) == ("failed: ZeroDivisionError: one line", int(signaled))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs unshare and root")
def test_a_run_is_saved_when_it_is_the_first_process_of_a_container(tmp_path: Path):
    """There a signal without a handler is ignored; no init passes anything on."""
    output = tmp_path / "run"
    with running(output, "unshare", "--pid", "--fork", "--kill-child", sys.executable) as process:
        inside = [pid for pid in pids_of(output, RECIPE) if pid != process.pid]
        assert len(inside) == 1
        assert Path(f"/proc/{inside[0]}/status").read_text().split("NSpid:")[1].split("\n")[0].split()[-1] == "1"
        os.kill(inside[0], signal.SIGTERM)
        text, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 75, text
        assert gone(output)
    check_stopped(output, "SIGTERM")


class Metadata(BaseHTTPRequestHandler):
    """The services of three providers, which give notice once `taken` is set."""

    taken = threading.Event()

    def do_PUT(self) -> None:
        proper = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer("token" if proper else None)

    def do_GET(self) -> None:
        path, taken = self.path.split("?")[0], self.taken.is_set()
        if path == "/latest/meta-data/spot/instance-action" and self.headers["X-aws-ec2-metadata-token"] == "token":
            self._answer('{"action": "terminate", "time": "2026-01-01T00:00:00Z"}' if taken else None)
        elif path == "/computeMetadata/v1/instance/preempted" and self.headers["Metadata-Flavor"] == "Google":
            self._answer("TRUE" if taken else "FALSE")
        elif path == "/metadata/instance/compute/name" and self.headers["Metadata"] == "true":
            self._answer("vm-7")
        elif path == "/metadata/scheduledevents" and self.headers["Metadata"] == "true":
            other = {"EventType": "Preempt", "Resources": ["vm-8"]}
            self._answer(json.dumps({"Events": [other, {**other, "Resources": ["vm-7"]}][: 1 + taken]}))
        else:
            self._answer(None)

    def _answer(self, text: str | None) -> None:
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *words: object) -> None:
        """Quiet."""


@pytest.fixture
def metadata() -> Iterator[str]:
    Metadata.taken.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@SLOW
@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
def test_a_run_is_saved_when_its_cloud_gives_notice(tmp_path: Path, metadata: str, provider: str):
    output = tmp_path / "run"
    with running(output, sys.executable, "--cloud", provider, steps=40, TOOLKIT_METADATA_URL=metadata) as process:
        Metadata.taken.set()
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, text
    check_stopped(output, f"a preemption notice of {provider}")
