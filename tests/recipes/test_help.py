"""What `--help` of each recipe shows, and that seeing it imports none of the heavy libraries."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from toolkit import Settings
from toolkit.__main__ import ENTRIES
from toolkit.config.cli import OTHER
from toolkit.config.scales import Scales
from toolkit.config.settings import SECTIONS
from toolkit.config.tool_settings import (
    Benchmark,
    Compare,
    Completion,
    Evaluate,
    Export,
    Predict,
    Report,
    Scan,
    Verify,
    WorkspaceLayout,
)

MULTISCALE = {*Scales.model_fields} - {"img_size"}
SHOWN = {  # command: its flags and words
    "train single": {
        *Settings.model_fields,
        *OTHER,
        "img_size",
        "head_epochs",
        "finish_size",
        "finish_epochs",
        "eval_scales",
    },
    "train multi": {*Settings.model_fields, *OTHER, *MULTISCALE},
    "train finetune": {*Settings.model_fields, *OTHER, *MULTISCALE, "img_size"},
    "benchmark": {*Benchmark.model_fields, "import"},
    "compare": {*Compare.model_fields, "import"},
    "evaluate": {*Evaluate.model_fields, "import"},
    "export": {*Export.model_fields, "import"},
    "predict": {*Predict.model_fields, "import"},
    "report": {*Report.model_fields, "import"},
    "scan": {*Scan.model_fields, "import"},
    "verify-resume": {*Verify.model_fields},
    "dashboard": {*WorkspaceLayout.model_fields},
    "plan": {*Settings.model_fields, *OTHER, *MULTISCALE, "img_size"},
    "completion": {*Completion.model_fields},
}
HEAVY = {"torch", "timm", "accelerate", "wandb", "torchvision", "numpy", "PIL", "matplotlib", "simplejpeg"}
RANGE = r"\d to \d|\d or more|above 0"
TOLD = {  # what a number is: how its flag tells what it means
    "X": rf"{RANGE}|\b(GB|s|minutes|hour|epochs|points of top-1)\b",
    "N": rf"{RANGE}|\b(px|images|epochs|passes|steps|threads|checkpoints|times)\b",
}
NUMBER = re.compile(r"--[\w-]+ ([NX])(?:,N,\.\.\.)? +(.*)")


def helped(command_words: str, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-m", "toolkit", *command_words.split(), "--help"]
    environment = {**os.environ, "TERM": "xterm"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **more)


def boxes(text: str) -> dict[str, dict[str, str]]:
    """Heading -> flag or word -> what is told of it."""
    found: dict[str, dict[str, str]] = {}
    for heading, box in re.findall(r"^╭─ (.*?) ─+╮\n(.*?)^╰", text, re.MULTILINE | re.DOTALL):
        entries = re.split(r"^│ (?=\S)", box, flags=re.MULTILINE)[1:]
        told = [" ".join(line.strip("│ ") for line in entry.splitlines()) for entry in entries]
        found[heading] = {text.split()[0].strip(","): text for text in told}
    return found


def test_nothing_is_said_when_the_reader_of_help_has_seen_enough():
    command = f"{sys.executable} {ROOT / 'recipes' / 'multiscale.py'} --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_every_command_is_tested():
    assert {*SHOWN, "launch"} == {entry.words for entry in ENTRIES}


def test_the_help_of_launch_comes_without_the_launcher():
    done = helped("launch", "-X", "importtime")
    assert "Example: toolkit launch --config_file accelerate_configs/multi_gpu.yaml train multi" in done.stdout
    assert not {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line} & HEAVY


@pytest.mark.parametrize("script", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_a_script_shows_the_help_of_its_command(script: Path):
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    words = {
        "single_scale": "train single",
        "multiscale": "train multi",
        "finetune": "train finetune",
        "wandb_dashboard": "dashboard",
    }
    command = words.get(script.stem, script.stem.replace("_", "-"))
    usage = f"usage: {script.name}" if command.startswith("train") else f"usage: toolkit {command}"
    assert done.stdout.startswith(usage)
    assert done.stdout.partition("\n")[2] == helped(command).stdout.partition("\n")[2]


@pytest.mark.parametrize("columns", ["0", "1", "x"])
def test_help_comes_in_a_terminal_of_any_width(columns: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", columns)
    done = helped("export")
    assert (done.returncode, "--output-dir" in done.stdout) == (0, True)


@pytest.mark.parametrize("command", SHOWN)
def test_help_is_complete_grouped_and_without_heavy_imports(command: str, tmp_path: Path):
    done = helped(command, "-X", "importtime", cwd=tmp_path)
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "pydantic" in imported  # control
    assert not imported & HEAVY
    assert list(tmp_path.iterdir()) == []

    assert "Example: " in done.stdout
    assert "\x1b" not in done.stdout  # it goes into a file
    groups = boxes(done.stdout)
    assert [*groups.pop("options")] == ["-h"]  # the rest has headings that tell something
    told = {name: text for group in groups.values() for name, text in group.items()}
    assert {name.strip("-[]").lower().replace("-", "_") for name in told} == SHOWN[command]
    assert [text for text in told.values() if not re.search("default|unset|required", text)] == []
    assert [name for name in told if name.startswith("[")] == []  # words are required
    numbers = {text: NUMBER.match(text) for text in told.values()}
    assert [text for text, number in numbers.items() if number and not re.search(TOLD[number[1]], number[2])] == []


@pytest.mark.parametrize("command", ["train single", "train multi", "train finetune"])
def test_help_shows_sections_switches_and_choices_when_a_command_trains(command: str):
    text = helped(command).stdout
    headings = [*boxes(text)]
    assert headings == [
        "options",
        *(f"{section.__name__.lower()} options" for section in (*SECTIONS, Scales)),
        "other options",
    ]
    switches = {"--no-hflip", "--no-pretrained", "--no-amp", "--no-compile", "--no-sync-bn", "--no-deterministic"}
    assert switches <= {*re.findall(r"--[a-z][a-z-]*", text)}
    for choices in (
        "{cosine,constant,wsd,plateau}",
        "{auto,none,aws,gcp,azure}",
        "{wandb,tensorboard,trackio,none}",
        "--checkpoint-dir",
    ):
        assert choices in text
