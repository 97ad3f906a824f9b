"""Stopped at a terminal, under every launcher: saved first, the last line on the screen is ours, the exit code 75."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_signals import FLAGS, RECIPE, delivered, gone, pids_of
from victim import newest

from tests.conftest import PATIENCE_S, ROOT, TORCHRUN

CONFIG = str(ROOT / "accelerate_configs/multi_cpu.yaml")
TOOLKIT = (sys.executable, "-m", "toolkit")
PYTHON = (sys.executable, RECIPE)
ONE, TWO = (*TOOLKIT, "launch", "train", "multi"), (*TOOLKIT, "launch", "--config_file", CONFIG, RECIPE)
OURS = {"python": PYTHON, "one process": ONE, "two processes": TWO}
slow = pytest.mark.slow


class Terminal:
    """A terminal with one program in its foreground, and what is on its screen."""

    def __init__(self, command: list[str], ignored: signal.Signals | None = None) -> None:
        self._screen, keyboard = pty.openpty()

        def take() -> None:
            fcntl.ioctl(keyboard, termios.TIOCSCTTY, 0)
            if ignored is not None:
                signal.signal(ignored, signal.SIG_IGN)

        self.process = subprocess.Popen(
            command, stdin=keyboard, stdout=keyboard, stderr=keyboard, start_new_session=True, preexec_fn=take,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        os.close(keyboard)
        os.set_blocking(self._screen, False)
        self._text = b""

    def text(self) -> str:
        with contextlib.suppress(OSError):  # nothing new, or nobody is left who could write
            while new := os.read(self._screen, 65536):
                self._text += new
        return self._text.decode(errors="replace").replace("\r", "\n")

    def press_ctrl_c(self) -> None:
        os.write(self._screen, b"\x03")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._screen)

    def wait(self) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            self.text()  # a full screen would hold the program up
            time.sleep(0.02)
        return self.process.wait(1)


@contextlib.contextmanager
def training(output: Path, command: tuple[str, ...], ignored: signal.Signals | None = None) -> Iterator[Terminal]:
    """A run at a terminal after its first steps; whatever is left at the end is killed."""
    terminal = Terminal([*command, *FLAGS, "--output-dir", str(output)], ignored)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while len(delivered(output)) < 4:
            assert terminal.process.poll() is None, terminal.text()
            assert time.monotonic() < deadline, terminal.text()
            time.sleep(0.02)
        yield terminal
    finally:
        for pid in pids_of(output):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        terminal.process.wait()
        terminal.close()


def check_end(terminal: Terminal, output: Path, name: str) -> None:
    """That the last line says what is saved, and that the program ends with the code of a stop."""
    assert terminal.wait() == 75, terminal.text()
    line = terminal.text().rstrip().splitlines()[-1]
    said = re.fullmatch(rf"stopped by {name} at step (\d+) of \d+, saved; the same command continues", line)
    assert said, terminal.text()
    assert newest(output) == int(said[1])
    assert terminal.text().count("saved; the same command continues") == 1
    assert "Traceback" not in terminal.text()
    assert gone(output)


@pytest.mark.parametrize("launcher", [*(pytest.param(name, marks=slow) for name in [*OURS][:2]), "two processes"])
def test_ctrl_c_ends_in_one_line_after_the_save(launcher: str, tmp_path: Path):
    output = tmp_path / "run"
    with training(output, OURS[launcher]) as terminal:
        terminal.press_ctrl_c()
        check_end(terminal, output, "Ctrl-C")


@slow
@pytest.mark.parametrize("launcher", OURS)
def test_sigterm_to_the_program_ends_in_one_line_after_the_save(launcher: str, tmp_path: Path):
    output = tmp_path / "run"
    with training(output, OURS[launcher]) as terminal:
        terminal.process.terminate()
        check_end(terminal, output, "SIGTERM")


@pytest.mark.parametrize("launcher", ["python", *(pytest.param(name, marks=slow) for name in [*OURS][1:])])
def test_a_run_is_saved_when_its_terminal_is_closed(launcher: str, tmp_path: Path):
    output = tmp_path / "run"
    with training(output, OURS[launcher]) as terminal:
        terminal.close()
        assert terminal.process.wait(PATIENCE_S) == 75
        assert gone(output)
    assert newest(output) == delivered(output)[-1]["step"] + 1


@slow
def test_a_run_goes_on_when_its_terminal_is_closed_and_nohup_started_it(tmp_path: Path):
    output = tmp_path / "run"
    with training(output, PYTHON, ignored=signal.SIGHUP) as terminal:
        terminal.close()
        steps, deadline = len(delivered(output)), time.monotonic() + PATIENCE_S
        while len(delivered(output)) < steps + 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(delivered(output)) >= steps + 5


@slow
def test_torchrun_adds_its_own_words_but_only_after_the_save(tmp_path: Path):
    output = tmp_path / "run"
    with training(output, (*TORCHRUN, RECIPE)) as terminal:
        terminal.press_ctrl_c()
        terminal.wait()
        before, line, after = terminal.text().partition("saved; the same command continues")
    assert line, before
    assert "Traceback" not in before
    assert "SignalException" in after  # the day it is gone, docs/reliability.md may say so
    assert newest(output) == delivered(output)[-1]["step"] + 1


@slow
@pytest.mark.parametrize("words", [(), ("--config_file", CONFIG)], ids=["one process", "two processes"])
def test_the_exit_code_is_that_of_the_command(words: tuple[str, ...], tmp_path: Path):
    def start(*more: str) -> subprocess.CompletedProcess[str]:
        command = [*TOOLKIT, "launch", *words, "train", "single", "--log-with", "none", *more]
        return subprocess.run(command, text=True, capture_output=True, check=False, cwd=tmp_path, timeout=PATIENCE_S)

    done = start("--img-size", "many")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: --img-size many" in done.stderr
    few = ("--synthetic-count", "60", "--synthetic-size", "32", "--batch-size", "12", "--epochs", "1")
    assert start(*few, "--img-size", "16", "--output-dir", "run").returncode == 0
    assert (tmp_path / "run" / "summary.json").exists()


@slow
def test_a_process_that_is_killed_is_named(tmp_path: Path):
    output = tmp_path / "run"
    with training(output, TWO) as terminal:
        (victim,) = [pid for pid in pids_of(output, RECIPE) if rank_of(pid) == "1"]
        os.kill(victim, signal.SIGKILL)
        assert terminal.wait() == 128 + signal.SIGKILL
        assert "error: the process of rank 1 was ended by SIGKILL" in terminal.text()


def rank_of(pid: int) -> str:
    words = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next((word.removeprefix("RANK=") for word in words if word.startswith("RANK=")), "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--config_file nowhere.yaml train multi", "nowhere.yaml"),
        ("--multi_gpu --tpu train multi", "You can only use one of"),
    ],
)
def test_launchers_own_refusals_are_one_line(words: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    from toolkit.commands import launch

    monkeypatch.setattr(launch, "SIGNALS", [])  # of this process
    monkeypatch.setattr(os, "environ", {**os.environ})
    assert launch.main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert error.count("\n") == 1
