"""`toolkit COMMAND` as a user types it, in a checkout and where pip put it."""

import json
import os
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT, write_folders
from toolkit import __main__
from toolkit.__main__ import ENTRIES
from toolkit.commands import completion

TOOLKIT = str(Path(sys.executable).with_name("toolkit"))
THREADS = {**os.environ, "OMP_NUM_THREADS": "1"}
FEW = ("--synthetic-count", "60", "--batch-size", "12", "--epochs", "1", "--log-with", "none")


def shell(*words: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, **more)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("train", "--help")])
def test_the_list_of_commands_has_each_in_a_line(words: tuple[str, ...]):
    done = shell(TOOLKIT, *words)
    assert (done.returncode, done.stderr) == (0, "")
    for entry in ENTRIES:
        assert f"\n  toolkit {entry.words} " in done.stdout
        assert entry.summary in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("evalute RUN", "there is no command evalute; did you mean evaluate?"),
        ("verify_resume", "there is no command verify_resume; did you mean verify-resume?"),
        ("xyz", "there is no command xyz"),
        ("trian multi", "there is no command trian; did you mean train?"),
        ("train multi --no-amp=off", "--no-amp takes no value: write --no-amp, or --amp=off"),
        ("evaluate RUN --no-flip=off", "--no-flip takes no value: write --no-flip, or --flip=off"),
        ("evaluate RUN --lr 3", "there is no flag --lr; here it is --learning-rate, which only toolkit train has"),
        ("train multi --epochs --amp", "--epochs needs a value"),
        ("evaluate --scales 32", "RUN is missing: the run directory, or its URL"),
        ("train", "toolkit train: say which: toolkit train multi, single or finetune"),
        ("train --epochs 3", "toolkit train --epochs: say which: toolkit train multi, single or finetune"),
    ],
)
def test_another_command_is_refused_in_one_line(words: str, told: str, capsys: pytest.CaptureFixture[str]):
    assert __main__.main(words.split()) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    assert __main__.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("toolkit 0.")


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    lines = [
        f"source {shlex.quote(str(script))}",
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}",
        "$(complete -p toolkit | sed 's/.*-F \\([^ ]*\\).*/\\1/')",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    return {*shell("bash", "-c", "\n".join(lines)).stdout.split()}


def test_bash_completes_commands_and_flags(tmp_path: Path):
    script = tmp_path / "toolkit.bash"
    script.write_text(shell(TOOLKIT, "completion", "bash").stdout)
    first = {entry.words.split()[0] for entry in ENTRIES}
    assert completed(script, "toolkit", "") >= first
    assert completed(script, "toolkit", "train", "") >= {"single", "multi"}
    assert completed(script, "toolkit", "train", "multi", "--warmup") == {"--warmup-epochs"}
    assert completed(script, "toolkit", "evaluate", "--recal") == {"--recalibrate"}


def test_completion_is_silent_when_its_reader_has_seen_enough():
    done = shell("bash", "-c", f"{shlex.quote(TOOLKIT)} completion bash | head -1")
    assert (done.stderr, done.stdout.count("\n")) == ("", 1)


def test_all_commands_are_completed():
    words = {f"train {name}" for name in completion.grammars()["train"]} | {*completion.grammars()} - {"train"}
    assert words == {entry.words for entry in ENTRIES}


def test_zsh_is_completed_too():
    done = shell(TOOLKIT, "completion", "zsh")
    assert done.returncode == 0
    assert "verify-resume" in done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of an environment with the wheel of this checkout, which sees the packages of the present one."""
    folder = tmp_path_factory.mktemp("installed")
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder))
    done = shell(*build, str(ROOT), cwd=folder)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("toolkit-*.whl")
    venv.create(folder / "env", symlinks=True, with_pip=False)
    programs = folder / "env" / "bin"
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    done = shell(sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--no-deps", str(wheel))
    assert done.returncode == 0, done.stderr
    present = [path for path in sys.path if path.endswith("site-packages")]
    # Only packages: the finder of an editable install there would find this checkout.
    (packages / "present.pth").write_text("".join(f"import sys; sys.path.append({path!r})\n" for path in present))
    return programs


@pytest.mark.slow
def test_it_trains_where_pip_installed_it_without_the_checkout(installed: Path, tmp_path: Path):
    where = shell(str(installed / "python"), "-c", "import toolkit; print(toolkit.__file__)", cwd=tmp_path)
    assert where.stdout.startswith(str(installed.parent)), where.stderr
    words = ("-m", "toolkit", "train", "multi", "--scales", "16,32", *FEW)
    for folder, processes, launcher in (
        ("one", 1, ("accelerate.commands.launch", "--quiet")),
        ("two", 2, ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")),
    ):
        launch = (str(installed / "python"), "-m", *launcher)
        done = shell(*launch, *words, "--output-dir", folder, cwd=tmp_path, env=THREADS)
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / folder / "summary.json").read_text())["processes"] == processes
    done = shell(str(installed / "toolkit"), "evaluate", "two", "--split", "val", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "32px" in done.stdout


@pytest.mark.slow
def test_the_former_scripts_still_work_for_this_release(tmp_path: Path):
    write_folders(tmp_path / "photos", {"train": 4, "val": 2, "test": 2})
    done = shell(sys.executable, str(ROOT / "recipes/scan.py"), "photos", "--output-dir", "scan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scan" / "scan.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("program", [(TOOLKIT,), (sys.executable, "-m", "toolkit")], ids=["toolkit", "module"])
def test_a_finished_run_is_continued_from_its_weights_by_the_command_that_it_prints(
    program: tuple[str, ...], tmp_path: Path
):
    words = ("train", "single", "--img-size", "16", *FEW)
    assert shell(*program, *words, "--output-dir", "run", cwd=tmp_path, env=THREADS).returncode == 0
    done = shell(*program, *words, "--epochs", "2", "--output-dir", "run", cwd=tmp_path, env=THREADS)
    assert done.returncode == 2
    printed = done.stderr.partition("start a new run from its weights: ")[2].strip()
    assert printed.startswith("toolkit train single --img-size 16 ")
    first, *rest = shlex.split(printed)
    assert first == "toolkit"
    done = shell(*program, *rest, cwd=tmp_path, env=THREADS)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run-2" / "summary.json").read_text())["exit_reason"] == "done"


@pytest.mark.slow
def test_the_resume_of_a_training_command_is_verified(tmp_path: Path):
    trial = (TOOLKIT, "verify-resume", "--steps", "4", "--save-every-steps", "2", "--kills", "1")
    done = shell(*trial, "--", TOOLKIT, "train", "single", "--img-size", "16", *FEW, cwd=tmp_path, env=THREADS)
    assert done.returncode == 0, done.stderr
    assert "verdict: equal" in done.stdout


@pytest.mark.slow
def test_plan_measures_one_size_or_several_and_trains_nothing(tmp_path: Path):
    for words, told in (
        (("--img-size", "16"), "single scale at 16 px"),
        (("--scales", "16,32"), "simultaneous 16/32 px"),
    ):
        done = shell(TOOLKIT, "plan", *words, *FEW, cwd=tmp_path, env=THREADS)
        assert done.returncode == 0, done.stderr
        assert f"planned   {told}" in done.stdout
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "single.yaml").write_text("strategy: single\nimg_size: 16\n")
    done = shell(TOOLKIT, "plan", "--config", "single.yaml", *FEW, cwd=tmp_path, env=THREADS)
    assert "planned   single scale at 16 px" in done.stdout
