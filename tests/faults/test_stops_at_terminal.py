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
from test_signals import FLAGS, RECIPE, delivered, gone, handles, pids_of
from victim import newest, slow_disk

from tests.conftest import PATIENCE_S, ROOT, SLOW, TORCHRUN

CONFIG = str(ROOT / "accelerate_configs/multi_cpu.yaml")
TOOLKIT = (sys.executable, "-m", "toolkit")
PYTHON = (sys.executable, RECIPE)
# Port 0: one that is free, because other tests run at the same time.
PAIR = (*TOOLKIT, "launch", "--config_file", CONFIG, "--main_process_port", "0")
ONE, TWO = (*TOOLKIT, "launch", "train", "multi"), (*PAIR, RECIPE)
OURS = {"python": PYTHON, "one process": ONE, "two processes": TWO}
slow = pytest.mark.slow


class Terminal:
    """A terminal with one program in its foreground, and what is on its screen."""

    def __init__(self, command: list[str], ignored: signal.Signals | None = None, **env: str) -> None:
        self._screen, keyboard = pty.openpty()

        def take() -> None:
            fcntl.ioctl(keyboard, termios.TIOCSCTTY, 0)
            if ignored is not None:
                signal.signal(ignored, signal.SIG_IGN)

        self.process = subprocess.Popen(
            command, stdin=keyboard, stdout=keyboard, stderr=keyboard, start_new_session=True, preexec_fn=take,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
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
def training(
    output: Path, command: tuple[str, ...], ignored: signal.Signals | None = None, **env: str
) -> Iterator[Terminal]:
    """A run at a terminal after its first steps; whatever is left at the end is killed."""
    terminal = Terminal([*command, *FLAGS, "--output-dir", str(output)], ignored, **env)
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


@pytest.mark.parametrize("launcher", ["two processes", *(pytest.param(name, marks=SLOW) for name in [*OURS][:2])])
def test_ctrl_c_ends_in_one_line_after_the_save(launcher: str, tmp_path: Path):
    output = tmp_path / "run"
    with training(output, OURS[launcher]) as terminal:
        terminal.press_ctrl_c()
        check_end(terminal, output, "Ctrl-C")


@slow
@pytest.mark.parametrize("launcher", [*[*OURS][:2], pytest.param("two processes", marks=SLOW)])
def test_sigterm_to_the_program_ends_in_one_line_after_the_save(launcher: str, tmp_path: Path):
    output = tmp_path / "run"
    with training(output, OURS[launcher]) as terminal:
        terminal.process.terminate()
        check_end(terminal, output, "SIGTERM")


@pytest.mark.parametrize("launcher", ["python", *(pytest.param(name, marks=SLOW) for name in [*OURS][1:])])
def test_a_run_is_saved_when_its_terminal_is_closed(launcher: str, tmp_path: Path):
    output = tmp_path / "run"
    with training(output, OURS[launcher]) as terminal:
        terminal.close()
        assert terminal.process.wait(PATIENCE_S) == 75
        assert gone(output)
    assert newest(output) == delivered(output)[-1]["step"] + 1


@SLOW
def test_a_run_goes_on_when_its_terminal_is_closed_and_nohup_started_it(tmp_path: Path):
    output = tmp_path / "run"
    with training(output, PYTHON, ignored=signal.SIGHUP) as terminal:
        terminal.close()
        steps, deadline = len(delivered(output)), time.monotonic() + PATIENCE_S
        while len(delivered(output)) < steps + 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(delivered(output)) >= steps + 5


@SLOW
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
@pytest.mark.parametrize("launch", [(*TOOLKIT, "launch"), PAIR], ids=["one process", "two processes"])
def test_the_exit_code_is_that_of_the_command(launch: tuple[str, ...], tmp_path: Path):
    def start(*more: str) -> subprocess.CompletedProcess[str]:
        command = [*launch, "train", "single", "--log-with", "none", *more]
        return subprocess.run(command, text=True, capture_output=True, check=False, cwd=tmp_path, timeout=PATIENCE_S)

    done = start("--img-size", "many")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --img-size many")
    assert done.stderr.count("\n") == 1  # however many processes
    few = ("--synthetic-count", "60", "--synthetic-size", "32", "--batch-size", "12", "--epochs", "1")
    assert start(*few, "--img-size", "16", "--output-dir", "run").returncode == 0
    assert (tmp_path / "run" / "summary.json").exists()


@slow
@pytest.mark.parametrize(("launcher", "rank"), [pytest.param("one process", "", marks=SLOW), ("two processes", "1")])
def test_a_process_that_is_killed_is_named(launcher: str, rank: str, tmp_path: Path):
    output = tmp_path / "run"
    with training(output, OURS[launcher]) as terminal:
        os.kill(pid_of(output, rank, terminal), signal.SIGKILL)
        assert terminal.wait() == 128 + signal.SIGKILL
        name = f"the process of rank {rank}" if rank else "the process"
        assert f"error: {name} was ended by SIGKILL" in terminal.text()


def pid_of(output: Path, rank: str, terminal: Terminal) -> int:
    """The process of a rank; "": of the only one."""

    def rank_of(pid: int) -> str:
        words = Path(f"/proc/{pid}/environ").read_text().split("\0")
        return next((word.removeprefix("RANK=") for word in words if word.startswith("RANK=")), "")

    (found,) = [pid for pid in pids_of(output) if pid != terminal.process.pid and rank_of(pid) == rank]
    return found


@slow
def test_the_last_line_names_the_signal_that_only_another_rank_got(tmp_path: Path):
    output = tmp_path / "run"
    with training(output, TWO) as terminal:
        os.kill(pid_of(output, "1", terminal), signal.SIGTERM)
        check_end(terminal, output, "SIGTERM to another process of this run")


@slow
@pytest.mark.parametrize("launcher", [pytest.param("python", marks=SLOW), "two processes"])
def test_a_terminal_that_is_closed_after_ctrl_c_does_not_cut_the_save_off(launcher: str, tmp_path: Path):
    output = tmp_path / "run"
    (tmp_path / "sitecustomize.py").write_text(slow_disk("/checkpoints/", 3))
    with training(output, OURS[launcher], PYTHONPATH=f"{tmp_path}:{ROOT}") as terminal:
        terminal.press_ctrl_c()
        time.sleep(1.5)  # later than what counts as the same event
        terminal.close()
        assert terminal.process.wait(PATIENCE_S) == 75
        assert gone(output)
    assert newest(output) == delivered(output)[-1]["step"] + 1


@slow
@pytest.mark.parametrize("launcher", [pytest.param("one process", marks=SLOW), "two processes"])
def test_a_second_ctrl_c_ends_a_save_that_takes_forever(launcher: str, tmp_path: Path):
    output = tmp_path / "run"
    (tmp_path / "sitecustomize.py").write_text(slow_disk("/checkpoints/", 2 * PATIENCE_S))
    with training(output, OURS[launcher], PYTHONPATH=f"{tmp_path}:{ROOT}") as terminal:
        terminal.press_ctrl_c()
        time.sleep(2.5)
        terminal.press_ctrl_c()
        assert terminal.wait() == 128 + signal.SIGINT
        assert gone(output)


STUCK = """
import os, signal, time
if os.environ["RANK"] == "0":
    signal.signal(signal.SIGTERM, lambda *_: None)
open(f"ready-{os.environ['RANK']}", "w").close()
while True:
    time.sleep(0.1)
"""


@slow
def test_processes_that_do_not_react_are_ended_when_one_has_failed(tmp_path: Path):
    """Rank 1 dies of the signal; rank 0 ignores it, as one that waits for the other in a driver does."""
    (tmp_path / "stuck.py").write_text(STUCK)
    words = [*PAIR, "stuck.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + PATIENCE_S
        while len([*tmp_path.glob("ready-*")]) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.terminate()
        time.sleep(1.5)
        process.terminate()  # twice: nothing is to be saved
        assert process.wait(20) in (128 + signal.SIGTERM, 128 + signal.SIGKILL)


@slow
def test_a_module_of_ones_own_is_launched_whatever_it_is_called(tmp_path: Path):
    (tmp_path / "train.py").write_text("import sys; print('mine', *sys.argv[1:])")
    (tmp_path / "evaluate").write_text("print('my script')")
    for words, told in (("-m train --lr 3", "mine --lr 3"), ("evaluate", "my script")):
        command = [*TOOLKIT, "launch", *words.split()]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (0, f"{told}\n"), done.stderr


@slow
def test_a_stop_before_anything_runs_is_one_line(tmp_path: Path):
    """While the launcher itself is imported."""
    command = [*TOOLKIT, "launch", "train", "multi", "--output-dir", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE_S
    while not handles(process.pid, signal.SIGTERM) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.terminate()
    _, error = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, error) == (75, "stopped by SIGTERM before training began; run the same command again\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--config_file nowhere.yaml train multi", "nowhere.yaml"),
        ("--multi_gpu --tpu train multi", "You can only use one of"),
        ("--tpu train multi", "--tpu calls the command in a thread"),
        ("--config_file xla.yaml train multi", "xla.yaml: distributed_type XLA calls the command in a thread"),
        ("--nonsense train multi", "--nonsense; flags of the launcher come before the command"),
        ("--epochs 3 train multi", "--epochs; flags of the launcher come before the command"),
        ("--num_processes two train multi", "invalid int value: 'two'"),
        ("trian multi", "trian: neither a script nor a command of toolkit; did you mean train?"),
        ("launch train multi", "launch: neither a script nor a command of toolkit"),
        ("--config_file empty.yaml train multi", "accelerate launch: "),
        ("--config_file broken.yaml train multi", "accelerate launch: "),
    ],
)
def test_launchers_own_refusals_are_one_line(words: str, told: str, capsys, monkeypatch, tmp_path: Path):
    from toolkit.commands import launch

    monkeypatch.chdir(tmp_path)
    Path("empty.yaml").touch()
    Path("broken.yaml").write_text("a: [")
    Path("xla.yaml").write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: XLA\n")
    monkeypatch.setattr(launch, "SIGNALS", [])  # of this process
    monkeypatch.setattr(os, "environ", {**os.environ})
    assert launch.main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert error.count("\n") == 1
