"""Every command and all Python of README and docs works: it is run, or tests/documents.py tells why not."""

import json
import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import ALL, ROOT, SLOW, recipe, write_folders
from tests.documents import EXCEPTIONS, FENCED, PROGRAMS, blocks, commands, exception, pages
from tests.recipes.test_help import SHOWN
from toolkit.__main__ import main as toolkit_main
from toolkit.config.tables import TABLES

OWN_TESTS = {"tutorial.md", "python.md"}  # tests/recipes/test_tutorial.py and test_python_page.py run them
MAIN = "python recipes/multiscale.py --data-root photos"
VERIFY = "toolkit verify-resume -- "
# Added to a training, so that it takes seconds: flags that are given twice count as given last.
TRAININGS = ("single_scale", "multiscale", "finetune")
SMALL = ("--arch", "test_resnet", "--no-pretrained", "--epochs", "1", "--batch-size", "32", "--log-with", "none")
STAGED = ("--epochs", "3", "--scale-epochs", "1")
HEAD_FIRST = ("--epochs", "3", "--warmup-epochs", "0.5")
ADDED = {
    "benchmark": ("--arch", "test_resnet", "--steps", "1", "--precisions", "float32", "--scales", "32"),
    "scan": ("--output-dir", "scan"),
}
# An alias, those of other programs, and those of benchmarks/scaling_model.py.
OTHERS = {
    "--checkpoint-dir",
    "--set",
    "--inputs",
    "--check",
    "--help",
    "--quiet",
    "--config_file",
    "--nproc-per-node",
    "--id",
    "--include-online",
    "--logdir",
    "--shm-size",
    "--ipc",
    "--nnodes",
    "--ntasks-per-node",
    "--num_processes",
    "--shutdown_timeout",
    "--max_restarts",
    "--max-restarts",
    "--rdzv-backend",
    "--master-port",
    "--main_process_port",
}
NO_GPUS = "--config_file accelerate_configs/multi_gpu.yaml "  # tests/recipes/test_accelerate_configs.py reads the file
LAUNCHER = re.compile(r"^(?:accelerate launch|torchrun)(?: --(?:quiet|standalone)| --[\w-]+ \S+)* (?=recipes/)")
LAUNCHED = re.compile(r"^toolkit launch (?:--[\w-]+ \S+ )*(?=train )")

COMMANDS = [(page, line) for page, line in commands() if page not in OWN_TESTS]
PYTHON = [(page, code) for page, code in blocks("python") if page not in OWN_TESTS]


def test_what_is_excepted_or_made_smaller_still_stands_in_the_docs():
    assert {exception(line) for _, line in commands()} == {None, *EXCEPTIONS}
    assert {*ADDED} <= {line.split()[1] for _, line in COMMANDS if line.startswith("toolkit ")}


def test_commands_stand_in_blocks_for_a_shell_or_in_sentences():
    """Else nobody would find them."""
    assert len(COMMANDS) > 40
    programs = tuple(f"{program} " for program in ("$", *PROGRAMS))
    assert [line for _, code in blocks("", "text") for line in code.splitlines() if line.startswith(programs)] == []
    assert blocks("sh", "shell", "console") == []


def test_the_extras_that_are_installed_are_the_clone_s_own_and_exist():
    """On an index the toolkit's name is a stranger's."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = [line for _, line in commands() if "pip install" in line]
    assert [line for line in lines if "[" in line and "pip install -e '.[" not in line] == []
    named = [set(re.findall(r"\[([\w,]+)\]", line)) for line in lines]
    assert set().union(*named) <= {*known}
    assert len(set().union(*named)) > 3


def test_every_flag_in_a_sentence_is_one_of_a_recipe():
    own = {f"--{name.replace('_', '-')}" for names in SHOWN.values() for name in names}
    known = own | {f"--no-{flag[2:]}" for flag in own} | OTHERS
    for page, text in pages().items():
        if page == "migration.md":  # in its tables another tool's flags stand first
            text = "\n".join(row.rstrip("| ").rsplit("|", 1)[-1] for row in re.findall(r"^\|.*", text, re.MULTILINE))
        code = " ".join(re.findall(r"`([^`\n]+)`", FENCED.sub("", text)))
        assert {*re.findall(r"--[a-z][\w-]*", code)} <= known, page


def smaller(line: str, output: str) -> list[str]:
    """The words of a command, made a small one."""
    if line.startswith(VERIFY):
        trial = shlex.split(VERIFY.replace("-- ", "--steps 4 --save-every-steps 2 --kills 1 -- "))
        return [*trial, *smaller(line.removeprefix(VERIFY), ""), "--epochs", "4"]
    words = shlex.split(line)
    if "--dry-run" in words:
        return words
    name = command_of(words)
    if name not in TRAININGS:
        return [*words, *ADDED.get(name, ())]
    folder = ("--output-dir", output) if output and "--checkpoint-dir" not in words else ()
    longer = STAGED if "--progressive" in words else HEAD_FIRST if "--head-epochs" in words else ()
    return [*words, *SMALL, *longer, *folder]


def start(words: Sequence[str], folder: Path) -> None:
    """As a process, in an activated environment; `--nproc-per-node` alone takes port 29500, which may be taken."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = {**os.environ, "PATH": path, "PET_MASTER_PORT": f"{free.getsockname()[1]}"}
    done = subprocess.run(["env", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with photos, and the run that README's main command makes of them: a real one, but small."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("recipes", "accelerate_configs"):
        (folder / name).symlink_to(ROOT / name)
    write_folders(folder / "photos", {"train": 65, "val": 4, "test": 4}, size=(72, 64))
    assert ("README.md", MAIN) in COMMANDS
    start(smaller(MAIN, "runs/photos"), folder)
    return folder


def starts(line: str) -> bool:
    """Whether the test of a command carries it out, which takes long."""
    return not line.startswith("make ") and exception(line) is None


LINES = [pytest.param(*pair, marks=[pytest.mark.slow] * starts(pair[1])) for pair in COMMANDS]


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_documented_command_works(page: str, line: str, request, monkeypatch: pytest.MonkeyPatch):
    """In this process where it trains or reads; `make faults` starts each as the process that it says."""
    if line.startswith("make "):
        subprocess.run(["make", "-n", line.split()[1]], cwd=ROOT, capture_output=True, check=True)
        return
    if pattern := exception(line):
        pytest.skip(EXCEPTIONS[pattern])
    home = request.getfixturevalue("home")
    monkeypatch.chdir(home)
    words = smaller(line.replace(NO_GPUS, ""), f"runs/{COMMANDS.index((page, line))}")
    if ALL:
        start(words, home)
        return
    if command_of(words) in TRAININGS:  # as it stands, too; first, for it may name the folder that the small one fills
        asked = [word for word in in_process(line) if word != "--lr-find"]  # which trains, also with --dry-run
        assert called([*asked, "--no-pretrained", "--dry-run"]) == 0
    assert called(in_process(shlex.join(words))) == 0


def command_of(words: Sequence[str]) -> str:
    """The name of the script or of the command of `toolkit`."""
    if "train" in words[:-1]:
        return {"multi": "multiscale", "single": "single_scale"}.get(kind := words[words.index("train") + 1], kind)
    if words[0] == "toolkit":
        return words[1]
    return next(Path(word).stem for word in words if word.endswith(".py"))


def called(words: Sequence[str]) -> int:
    """The exit code of a script or of `toolkit`, in this process."""
    if words[0] == "toolkit":
        return toolkit_main(words[1:])
    return recipe(command_of(words))(words[1:])


def in_process(line: str) -> list[str]:
    """Script and flags; of a command about a command, the latter's."""
    line = LAUNCHED.sub("toolkit ", LAUNCHER.sub("", line.split(" -- ")[-1]))
    return shlex.split(line.removeprefix("python "))


@SLOW
def test_the_demo_is_as_good_as_results_say(tmp_path: Path):
    for name in (".venv", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = ["make", "-f", str(ROOT / "Makefile"), "-o", ".venv/.ready", "demo"]  # which is there: tests run from it
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    (summary,) = tmp_path.glob("runs/*/summary.json")
    top1 = {size: score["top1"] for size, score in json.loads(summary.read_text())["test"].items()}
    assert top1["20px"] > 60
    assert top1["64px"] > 85


@pytest.mark.slow
@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[page for page, _ in PYTHON])
def test_the_python_of_a_page_trains(page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_folders(tmp_path / "photos", {"train": 16, "val": 2, "test": 2})  # a step an epoch
    for image in (tmp_path / "photos").rglob("*.png"):
        flat = tmp_path / "flat-photos" / image.parts[-3] / f"{image.parts[-2]}-{image.name}"
        flat.parent.mkdir(parents=True, exist_ok=True)
        flat.write_bytes(image.read_bytes())
    for seam, entries in TABLES.items():  # what a page registers is gone afterwards
        monkeypatch.setitem(TABLES, seam, dict(entries))
    (tmp_path / "page.py").write_text(code)
    runpy.run_path("page.py", run_name="__main__")
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 1
