"""Every command in README and docs is one that works: trainings print their plan, the rest is really run."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, recipe, write_folders

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
OWN_TESTS = {"tutorial.md"}  # tests/recipes/test_tutorial.py runs it from first to last
LAUNCHERS = re.compile(r"^(?:accelerate launch|torchrun)(?: --(?:quiet|standalone)| --[\w-]+ \S+)* (?=recipes/)")
NEEDS_ACCOUNT = ("python recipes/wandb_dashboard.py ",)  # tests/recipes/test_dashboards.py runs it without one
ELSEWHERE = (
    *NEEDS_ACCOUNT,
    "pip ",
    "wandb ",
    "curl ",
    "trackio ",
    "tensorboard ",
    ".venv/bin/",
    "python3 -m venv",
)  # not ours to run


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line in a block of code that a user would type."""
    found = []
    for page in PAGES:
        for language, block in re.findall(r"```(\w*)\n(.*?)```", page.read_text(), re.S):
            if language in ("", "bash", "console") and page.name not in OWN_TESTS:
                text = block.replace("\\\n", " ")
                found += [(page.name, line.removeprefix("$ ").split("  #")[0].strip()) for line in text.splitlines()]
    starts = ("accelerate launch", "torchrun", "python ", "make ", *ELSEWHERE)
    return [(page, line) for page, line in dict.fromkeys(found) if line.startswith(starts)]


COMMANDS = [(page, line) for page, line in commands() if not line.startswith(ELSEWHERE)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with photos and a run on them."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("recipes", "accelerate_configs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    write_folders(folder / "photos", {"train": 70, "val": 4, "test": 4}, size=(72, 64))
    flags = f"--data-root {folder}/photos --arch test_resnet --scales 64,112,224 --epochs 1 --log-with none"
    assert recipe("multiscale")([*shlex.split(flags), "--output-dir", str(folder / "runs" / "photos")]) == 0
    return folder


# What is made smaller so that a command takes a second or two.
SMALLER = {"benchmark.py": ["--arch", "test_resnet", "--steps", "1", "--precisions", "float32", "--scales", "32"]}
DRY = ("single_scale.py", "multiscale.py")
OWN_TEST = ("verify_resume.py",)  # tests/recipes/test_verify_resume.py: minutes


def test_there_are_commands_to_be_run():
    assert len({page for page, _ in COMMANDS}) > 2
    assert len(COMMANDS) > 15


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_documented_command_works(page: str, line: str, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(home)
    if line.startswith("make "):
        done = subprocess.run(["make", "-n", *line.split()[1:]], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    script, *words = shlex.split(LAUNCHERS.sub("", line).removeprefix("python "))
    name = Path(script).name
    assert (home / script).exists()
    config = re.search(r"--config_file (\S+)", line)
    assert config is None or (home / config[1]).exists()
    if name in OWN_TEST:
        command = shlex.split(LAUNCHERS.sub("", line.split(" -- ")[1]))
        name, words = Path(command[0]).name, command[1:]
    if script.startswith("benchmarks/"):
        pytest.skip("takes minutes; `make bench` runs it")
    assert recipe(Path(name).stem)([*words, *SMALLER.get(name, []), *(["--dry-run"] if name in DRY else [])]) == 0
