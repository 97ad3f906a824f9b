"""What a run is not continued with: other data, other classes, or while another process is at it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import PATIENCE_S, ROOT, contents, recipe, write_image, write_manifest
from toolkit.runs.report import write_report
from toolkit.system import host
from toolkit.training import session, summary

WORDS = ("--data-root", "data", "--img-size", "16", "--batch-size", "6", "--epochs", "2", "--arch", "test_resnet")
WORDS = (
    *WORDS,
    "--log-with",
    "none",
    "--num-workers",
    "0",
    "--output-dir",
    "run",
    "--save-every-steps",
    "2",
    "--keep",
    "9",
)
TRAIN = [(f"train/{i:02}.png", i % 2) for i in range(18)]
VAL = [(f"val/{i}.png", i % 2) for i in range(4)]

# The single-scale recipe, which waits in its first step until it may go on.
WAITING = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT / "recipes")!r})
import single_scale
from toolkit.system import host
from toolkit.training import loop
train_step = loop.train_step
def waiting(*words):
    while not Path("go").exists():
        time.sleep(0.02)
    return train_step(*words)
loop.train_step = waiting
sys.exit(single_scale.main())
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `here` with data, and a run on it that was killed in its second epoch; beside it a copy, `kept`."""
    folder = tmp_path_factory.mktemp("stopped")
    here = folder / "here"
    write_manifest(here / "data", "train", TRAIN)
    write_manifest(here / "data", "val", VAL)
    (here / "data" / "class_names.txt").write_text("cat\ndog\n")
    before = Path.cwd()
    os.chdir(here)
    try:
        assert recipe("single_scale")(WORDS) == 0
    finally:
        os.chdir(before)
    shutil.rmtree(here / "run" / "checkpoints" / "step-000000006")
    (here / "run" / "summary.json").unlink()
    shutil.copytree(here, folder / "kept")
    return folder


@pytest.fixture
def here(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as it was, as working directory."""
    shutil.rmtree(stopped / "here")
    shutil.copytree(stopped / "kept", stopped / "here")
    monkeypatch.chdir(stopped / "here")
    return stopped / "here"


def one_more(data: Path) -> None:
    write_image(data / "train" / "99.png")
    with (data / "train.csv").open("a") as file:
        file.write("train/99.png,0\n")


def another_label(data: Path) -> None:
    path = data / "train.csv"
    path.write_text(path.read_text().replace("train/03.png,1", "train/03.png,0"))


def another_order(data: Path) -> None:
    head, *rows = (data / "train.csv").read_text().splitlines()
    (data / "train.csv").write_text("\n".join([head, *reversed(rows)]) + "\n")


def another_size(data: Path) -> None:
    """The same pixels, in more bytes."""
    path = data / "val" / "1.png"
    path.write_bytes(path.read_bytes() + bytes(7))


def another_class(data: Path) -> None:
    (data / "class_names.txt").write_text("cat\nwolf\n")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (one_more, "18 train images, now 19"),
        (another_label, "as many train images, but other names, labels, sizes or order"),
        (another_order, "as many train images, but other names, labels, sizes or order"),
        (another_size, "as many val images, but other names, labels, sizes or order"),
        (another_class, "the classes cat, dog, now cat, wolf"),
    ],
)
def test_a_run_is_refused_with_the_difference_when_its_data_changed(
    here: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], told: str
):
    before = contents(here / "run")
    change(here / "data")
    assert recipe("single_scale")(WORDS) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1, err
    assert f"run was trained with {told}. A run keeps" in err
    assert contents(here / "run") == before

    shutil.rmtree(here / "data")
    shutil.copytree(here.parent / "kept" / "data", here / "data")
    assert recipe("single_scale")(WORDS) == 0  # the control
    assert "continuing from run/checkpoints/step-000000004" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            ("--resume", "run", "--output-dir", "other"),
            "--resume run continues the run in run: drop --output-dir",
        ),
        (("--resume", "data"), "--resume data: neither auto, never, nor a run or checkpoint that was committed"),
        (("--resume", "never"), "--output-dir run holds a run and --resume never forbids to continue it"),
        (("--output-dir", "data"), "--output-dir data: the folder holds other files"),
        (("--output-dir", "new", "--pretrained"), "--pretrained: the weights of test_resnet could not be loaded"),
        (("--output-dir", "new", "--weights", "gone"), "--weights gone"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(
    here: Path, more: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
):
    before = contents(here)
    for words in ([*WORDS, *more, "--dry-run"], [*WORDS, *more]):
        assert recipe("single_scale")(words) == 2
        assert told in capsys.readouterr().err
    assert contents(here) == before


def test_a_run_goes_on_when_its_data_lies_elsewhere(here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "data").rename(here / "disk")
    words = ["disk" if word == "data" else word for word in WORDS]
    assert recipe("single_scale")(words) == 0
    assert "continuing from run/checkpoints/step-000000004" in capsys.readouterr().out
    assert f"data_root: {here}/disk" in (here / "run" / "config.yaml").read_text()

    one_more(here / "disk")  # the run is finished by now, and yet it is not one of this data
    assert recipe("single_scale")(words) == 2
    assert "was trained with 18 train images, now 19." in capsys.readouterr().err


def test_nothing_is_set_aside_when_a_run_is_to_go_back_with_other_data(here: Path, capsys: pytest.CaptureFixture[str]):
    before = contents(here / "run")
    one_more(here / "data")
    words = [*WORDS[: WORDS.index("--output-dir")], "--resume", "run/checkpoints/step-000000002"]
    assert recipe("single_scale")(words) == 2
    assert "was trained with 18 train images, now 19." in capsys.readouterr().err
    assert contents(here / "run") == before


def test_a_run_does_not_start_over_when_its_checkpoints_are_gone(here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "run" / "checkpoints").rename(here / "elsewhere")
    before = contents(here / "run")
    assert recipe("single_scale")(WORDS) == 2
    assert "error: run/checkpoints: its checkpoints are gone, though the run had saved" in capsys.readouterr().err
    assert contents(here / "run") == before
    (here / "elsewhere").rename(here / "run" / "checkpoints")
    assert recipe("single_scale")(WORDS) == 0


def test_a_run_that_goes_on_says_so_when_sums_may_differ_in_their_last_bits(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    threads = host.cpu_quota()
    other = 1 if threads > 1 else 2
    with monkeypatch.context() as context:
        context.setattr(host, "cpu_quota", lambda: other)
        assert recipe("single_scale")(WORDS) == 0
    torch.set_num_threads(threads)
    kind = torch.backends.cpu.get_cpu_capability()
    change = f"hardware cpu ({threads} threads, {kind}) -> cpu ({other} threads, {kind})"
    assert f"not bit-exact: {change}\n" in capsys.readouterr().out
    assert json.loads((here / "run" / "summary.json").read_text())["inexact_resumes"] == [f"step 4: {change}"]


def test_a_run_goes_on_when_bad_images_are_to_be_left_out_from_now_on(here: Path, capsys: pytest.CaptureFixture[str]):
    assert recipe("single_scale")([*WORDS, "--on-bad-sample", "quarantine"]) == 0
    assert "continuing from run/checkpoints/step-000000004" in capsys.readouterr().out


def test_an_earlier_end_is_told_until_training_begins_when_a_start_is_stopped_before(
    here: Path, monkeypatch: pytest.MonkeyPatch
):
    (here / "run" / "summary.json").write_text('{"exit_reason": "preempted by SIGTERM"}')
    set_up = session.set_up

    def stopped(*words: Any) -> Any:
        set_up(*words)
        signal.raise_signal(signal.SIGUSR1)

    with monkeypatch.context() as context:
        context.setattr(session, "set_up", stopped)
        assert recipe("single_scale")(WORDS) == 75
    assert json.loads((here / "run" / "summary.json").read_text())["exit_reason"] == "preempted by SIGTERM"
    assert recipe("single_scale")(WORDS) == 0


def test_a_run_ends_when_it_is_signaled_after_all_is_trained(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    summarize = summary.summarize

    def signaled(*words: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return summarize(*words)

    with monkeypatch.context() as context:
        context.setattr(summary, "summarize", signaled)
        assert recipe("single_scale")(WORDS) == 0
    assert "SIGTERM: all is trained, the run ends (send it again to quit at once)\n" in capfd.readouterr().err
    assert json.loads((here / "run" / "summary.json").read_text())["exit_reason"] == "done"

    monkeypatch.setattr("toolkit.runs.report.write_report", write_report)  # as outside of tests
    assert not (here / "run" / "report.html").exists()  # as when it is killed then, before it has written its page
    assert recipe("single_scale")(WORDS) == 0
    assert "<title>" in (here / "run" / "report.html").read_text()


def test_the_newest_step_goes_on_when_the_clock_was_set_back(here: Path, capsys: pytest.CaptureFixture[str]):
    found = sorted((here / "run" / "checkpoints").iterdir())
    assert [path.name for path in found] == ["step-000000002", "step-000000003", "step-000000004"]
    now = time.time()
    for age, path in enumerate(found):  # the newest step is the oldest file; the oldest lies in the future
        for inside in (*path.rglob("*"), path):
            os.utime(inside, (now + 86400 - 100000 * age,) * 2)
    assert max(found, key=lambda path: path.stat().st_mtime) == found[0]
    assert recipe("single_scale")(WORDS) == 0
    assert "continuing from run/checkpoints/step-000000004" in capsys.readouterr().out


def torch_was_imported(importtime: str) -> bool:
    return any(line.rsplit("|", 1)[-1].strip() == "torch" for line in importtime.splitlines())


@pytest.mark.slow
def test_a_second_run_is_refused_at_once_and_the_first_ends_unharmed_when_both_want_a_directory(here: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WAITING, *WORDS, "--record-samples"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not (here / "run" / "samples.jsonl").exists():
                assert first.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            before = contents(here / "run")
            elsewhere = ("--resume", "run"), ("--resume", "run/checkpoints/step-000000004")
            without = WORDS[: WORDS.index("--output-dir")]
            for words in (WORDS, *((*without, *resume) for resume in elsewhere)):
                second = subprocess.run(
                    [sys.executable, "-X", "importtime", str(ROOT / "recipes" / "single_scale.py"), *words],
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE_S,
                    check=False,
                )
                assert second.returncode == 2
                error = next(line for line in second.stderr.splitlines() if line.startswith("error: "))
                assert "run: another run is using it" in error
                assert f"process {first.pid} on {socket.gethostname()}" in error
                assert "pydantic" in second.stderr
                assert not torch_was_imported(second.stderr)  # seconds, of which there are to be two at most
            assert contents(here / "run") == before
            (here / "go").touch()
            out, err = first.communicate(timeout=PATIENCE_S)
        finally:
            first.kill()
    assert (first.returncode, err) == (0, ""), out
    assert json.loads((here / "run" / "summary.json").read_text())["exit_reason"] == "done"
    assert not (here / "run" / ".owner.json").exists()


def test_a_run_whose_process_was_killed_is_no_obstacle(here: Path, capsys: pytest.CaptureFixture[str]):
    """The control: the kernel frees the lock, whatever the note says."""
    (here / "run" / ".owner.json").write_text(json.dumps({"host": "gone", "pid": 1, "since": "yesterday"}))
    (here / "run" / ".lock").touch()
    assert recipe("single_scale")(WORDS) == 0
    assert "another run" not in capsys.readouterr().err
