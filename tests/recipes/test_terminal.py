"""What a person sees: bars and colors on a terminal only, plain lines in a file. A real pseudo-terminal."""

import os
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, recipe
from toolkit.system import console
from toolkit.training import loop

COLOR = re.compile(r"\x1b\[[0-9;]*m")
HELP = (sys.executable, str(ROOT / "recipes" / "scan.py"), "--help")


class Screen:
    """The other end of a terminal."""

    def __init__(self) -> None:
        self._ours, self.theirs = os.openpty()
        termios.tcsetwinsize(self.theirs, (40, 120))
        self._shown = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._ours, 65536):
                self._shown += piece
        except OSError:  # what Linux says at the end of a terminal
            pass

    def text(self) -> str:
        """All that was shown; nobody may hold the terminal any more."""
        os.close(self.theirs)
        self._reader.join(10)
        os.close(self._ours)
        return self._shown.decode()


@contextmanager
def on_screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    """Let this process write to a terminal."""
    screen = Screen()
    with monkeypatch.context() as patched, os.fdopen(os.dup(screen.theirs), "w") as stream:
        patched.setattr(sys, "stdout", stream)
        patched.setattr(sys, "stderr", stream)
        yield screen


@pytest.mark.parametrize(("environment", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)])
def test_help_has_colors_on_a_terminal_when_no_color_is_not_set(environment: dict[str, str], colored: bool):
    screen = Screen()
    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), screen.theirs)
    subprocess.run(HELP, env={**plain, "TERM": "xterm", **environment}, check=True, **streams)
    text = screen.text()
    assert "--output-dir" in text
    assert bool(COLOR.search(text)) == colored


def commands(run: Path, data: Path) -> dict[str, list[str]]:
    """Recipe -> words that make it say something soon; how a training speaks is tested below."""
    plan = [*TINY, "--dry-run"]
    few = ["--arch", "test_resnet", "--scales", "16", "--batch-sizes", "8", "--precisions", "float32", "--steps", "1"]
    return {
        "single_scale": plan,
        "finetune": [*plan, "--weights", str(run)],
        "multiscale": [*plan, "--scales", "16,32"],
        "benchmark": few,
        "evaluate": [str(run), "--scales", "16", "--output-dir", "evaluation"],
        "export": [str(run), "--formats", "safetensors", "--output-dir", "model"],
        "predict": [str(run), str(data / "test")],
        "report": [str(run)],
        "scan": [str(data), "--no-contact-sheets", "--output-dir", "scan"],
        "verify_resume": ["--kills", "1"],  # an error: no command is given
        "wandb_dashboard": ["me/toolkit", "--outptu", "layout.json"],  # another
    }


RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


@pytest.mark.parametrize("name", RECIPES)
def test_plain_lines_are_written_when_a_recipe_writes_into_a_file(
    name: str, finished: Path, data: Path, elsewhere: None, capfd: pytest.CaptureFixture[str]
):
    assert recipe(name)(commands(finished, data)[name]) == (2 if name in ("verify_resume", "wandb_dashboard") else 0)
    said = capfd.readouterr()
    assert said.out + said.err
    assert not {"\r", "\x1b"} & {*said.out, *said.err}


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_is_colored_on_a_terminal_when_no_color_is_set(
    name: str, finished: Path, data: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    with on_screen(monkeypatch) as screen:
        recipe(name)(commands(finished, data)[name])
        with pytest.raises(SystemExit):
            recipe(name)(["--help"])
    text = screen.text()
    assert "show this help message" in text
    assert not COLOR.search(text)


def words(folder: Path) -> tuple[str, ...]:
    return (*TINY, "--img-size", "32", "--epochs", "2", "--output-dir", str(folder))


@pytest.fixture
def chatty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute is over at once, and a log step is every second one."""
    monkeypatch.setattr(console, "LIFE_SIGN_S", 0.0)
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS_OF_SHORT", 2)


def test_a_bar_moves_and_lines_stay_apart_from_it_when_a_run_is_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chatty: None
):
    with on_screen(monkeypatch) as screen:
        assert recipe("single_scale")(words(tmp_path / "run")) == 0
    text = screen.text()
    assert re.search(r"\repoch 2: +\d+%", text)
    assert not COLOR.search(text)
    assert "step 2 of 5" not in text  # the bar shows it
    assert re.search(r"(^|[\r\n])epoch   2  32 px  loss ", text)


def test_plain_lines_and_signs_of_life_are_written_when_a_run_goes_into_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], chatty: None
):
    assert recipe("single_scale")(words(tmp_path / "run")) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert not {"\r", "\x1b"} & {*said.out}
    signs = re.findall(r"^epoch   (\d)  step (\d) of 5  loss \d\.\d{4}  \d+ images/s$", said.out, re.MULTILINE)
    assert signs == [("1", "2"), ("1", "4"), ("2", "1"), ("2", "3")]  # steps 2, 4, 6, 8 of the run


def test_an_epoch_s_line_tells_the_validation_loss_and_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert recipe("single_scale")(words(tmp_path / "run")) == 0
    first, last = (line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch  "))
    assert re.match(r"epoch   1  32 px  loss \d\.\d{4}  val loss \d\.\d{4}  top-1 32px ", first)
    assert re.search(r" images/s  \d+(\.\d)? s left$", first)
    assert last.endswith(" images/s")


def test_a_plan_is_broken_at_words_in_a_narrow_terminal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    with on_screen(monkeypatch) as screen:
        assert recipe("single_scale")([*words(tmp_path / "run"), "--dry-run"]) == 0
    narrow = screen.text().replace("\r\n", "\n")
    assert max(map(len, narrow.splitlines())) <= 80
    assert recipe("single_scale")([*words(tmp_path / "run"), "--dry-run"]) == 0
    wide = capsys.readouterr().out
    assert max(map(len, wide.splitlines())) > 80
    assert narrow.split() == wide.split()


def test_the_plan_tells_only_what_is_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert recipe("single_scale")([*words(tmp_path / "run"), "--dry-run"]) == 0
    plain = capsys.readouterr().out
    assert "model     test_resnet, random weights, " in plain
    assert "task      Classification, best model by top1" in plain
    assert not re.search(r"RandAugment|MixUp|CutMix|drop path|clip|early stopping|smoothing", plain)
    more = ["--rand-augment", "9", "--cutmix", "0.5", "--gradient-clip", "1", "--label-smoothing", "0.1"]
    assert recipe("single_scale")([*words(tmp_path / "run"), *more, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for told in ("RandAugment 9, CutMix 0.5", "gradient norm clipped at 1", "Classification, label_smoothing 0.1"):
        assert told in said


def test_drawing_the_built_in_data_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(console, "LIFE_SIGN_S", 0.0)
    assert recipe("single_scale")([*words(tmp_path / "run"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("data      drawing 180 images of 32 px, once\n")
    assert "data      180 of 180 images drawn\n" in said


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("nowhere", "no such folder"),
        ("loose", "neither a folder train/ nor .*; it holds 2 images .*"),
        ("a.csv", "is a .*"),
    ],
)
def test_what_is_no_data_set_is_refused_before_torch_is_imported(folder: str, told: str, tmp_path: Path):
    for name in ("loose/1.jpg", "loose/2.jpg", "a.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    code = f"import multiscale, sys; code = multiscale.main(['--data-root', {folder!r}])\n"
    code += "sys.exit('torch' if 'torch' in sys.modules else code)"
    paths = os.pathsep.join([str(ROOT / "recipes"), str(ROOT)])
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"error: --data-root {folder}: {told}\n", done.stderr)


def test_signs_of_life_are_a_minute_apart_when_an_epoch_is_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS_OF_SHORT", 2)
    assert console.LIFE_SIGN_S == 60
    assert recipe("single_scale")(words(tmp_path / "run")) == 0
    assert "step 2 of 5" not in capsys.readouterr().out
