"""recipes/verify_resume.py as a user calls it: real training commands, really killed, and one that forgets."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, SLOW, TORCHRUN, Runner, recipe
from toolkit.config.tool_settings import Verify
from toolkit.tools import verify_resume
from toolkit.tools.verify_resume import Trial

SCRIPT = "recipes/verify_resume.py"
TRAINING = ("--synthetic-count", "120", "--synthetic-size", "32", "--batch-size", "12", "--epochs", "2")
SINGLE = (str(ROOT / "recipes" / "single_scale.py"), *TRAINING, "--img-size", "16", "--dropout-rate", "0.3")
MULTI = (str(ROOT / "recipes" / "multiscale.py"), *TRAINING, "--scales", "16,24")
FILES = ["means.safetensors", "model.safetensors", "optimizer.json", "optimizer.safetensors"]

# A recipe whose random numbers are others in every process.
FORGETFUL = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "recipes")!r})
import single_scale
from toolkit.training import run
run.seed_generators = lambda *key: None
sys.exit(single_scale.main())
"""
# One that throws away what it has; as it is deterministic, it ends alike all the same.
ANEW = f"""
import shutil, sys
sys.path.insert(0, {str(ROOT / "recipes")!r})
import single_scale
shutil.rmtree(sys.argv[sys.argv.index("--output-dir") + 1], ignore_errors=True)
sys.exit(single_scale.main())
"""
BROKEN = """
import sys
print("a long story")
sys.exit("the GPU is on fire")
"""
BROKEN_LATER = """
import runpy, sys
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--output-dir") + 1])
if (folder / "checkpoints").exists():
    sys.exit("the GPU is on fire")
runpy.run_path(RECIPE, run_name="__main__")
"""


def verdict(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\S+?):? +(equal|DIFFERENT)$", text, re.MULTILINE))


def left_behind(folder: Path) -> list[str]:
    """Processes that were started for a folder and still live."""
    commands = (" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
    return [command for command in commands if str(folder) in command and "pytest" not in command]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert left_behind(tmp_path) == []


@pytest.mark.slow
def test_a_command_is_found_equal_when_it_is_killed_and_goes_on(run: Runner, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("resume: never\n")  # which the trial has no use for
    words = (sys.executable, *SINGLE, "--save-every-steps", "4", "--wandb-project", "mine", "--config", "mine.yaml")
    done = run(SCRIPT, "--steps", "13", "--kills", "1", "--", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert verdict(done.stdout) == dict.fromkeys([*FILES, "trainer.json", "samples.jsonl", "verdict"], "equal")
    assert "undisturbed   step 16 after" in done.stdout  # the next multiple of the command's own 4
    kills = [tuple(map(int, kill)) for kill in re.findall(r"after step (\d+); continues from step (\d+)", done.stdout)]
    assert len(kills) == 1
    for at, resumes in kills:
        assert 0 <= at - resumes <= 8
        assert resumes % 4 == 0 or resumes == 10  # an epoch's end
    assert f"{sum(at - resumes for at, resumes in kills)} steps repeated" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@SLOW
def test_two_processes_are_found_equal_when_they_are_killed_with_their_loaders(run: Runner, tmp_path: Path):
    words = (*TORCHRUN, *MULTI, "--rand-augment", "5", "--num-workers", "1")
    done = run(SCRIPT, "--steps", "50", "--kills", "1", "--save-every-steps", "5", "--output-dir", "kept", "--", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    found = verdict(done.stdout)
    assert set(found.values()) == {"equal"}
    assert "undisturbed   step 20, its last (--steps 50) after" in done.stdout
    samples = [json.loads(line) for line in (tmp_path / "kept" / "killed" / "samples.jsonl").read_text().splitlines()]
    assert {line["rank"] for line in samples} == {0, 1}
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "killed",
        "killed.log",
        "undisturbed",
        "undisturbed.log",
    ]
    assert "continuing from" in (tmp_path / "kept" / "killed.log").read_text()


@SLOW
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_command_is_found_equal_and_can_be_evaluated(run: Runner):
    words = (sys.executable, *MULTI, "--compile", "--dropout-rate", "0.3")
    done = run(SCRIPT, "--steps", "13", "--kills", "1", "--output-dir", "kept", "--", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(verdict(done.stdout).values()) == {"equal"}
    assert recipe("evaluate")(["kept/undisturbed", "--split", "val", "--output-dir", "evaluated"]) == 0


@SLOW
def test_a_command_is_found_different_when_its_random_numbers_are_others_each_time(run: Runner, tmp_path: Path):
    """The control: the comparison can fail, and says where."""
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    words = (sys.executable, "forgetful.py", *SINGLE[1:])
    done = run(SCRIPT, "--steps", "15", "--kills", "1", "--save-every-steps", "5", "--", *words)
    assert done.returncode == 1, done.stdout + done.stderr
    found = verdict(done.stdout)
    assert found["samples.jsonl"] == found["optimizer.json"] == "equal"
    assert found["model.safetensors"] == found["verdict"] == "DIFFERENT"
    assert done.stderr.startswith("error: model.safetensors, ")
    assert "same images, other arithmetic" in done.stderr
    kept = next(path for path in tmp_path.iterdir() if path.is_dir())
    assert f"both runs are in {kept.name}" in done.stderr
    assert (kept / "killed" / "checkpoints" / "step-000000015").is_dir()


@pytest.mark.slow
def test_a_command_is_no_good_when_it_starts_over_instead_of_going_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "anew.py").write_text(ANEW)
    words = ["--steps", "15", "--kills", "1", "--save-every-steps", "5", "--output-dir", "kept", "--"]
    assert recipe("verify_resume")([*words, sys.executable, "anew.py", *SINGLE[1:]]) == 1
    said = capsys.readouterr()
    assert re.search(r"error: the command did not continue from step (5|10), but started over; see kept/kill", said.err)
    assert "verdict" not in said.out


def test_the_last_lines_are_shown_when_the_command_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "broken.py").write_text(BROKEN)
    assert recipe("verify_resume")(["--", sys.executable, "broken.py"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: the command ended with exit code 1; its last lines:",
        "a long story",
        "the GPU is on fire",
    ]


@SLOW
def test_the_verdict_is_a_failure_when_the_command_does_not_start_again(run: Runner, tmp_path: Path):
    (tmp_path / "later.py").write_text(BROKEN_LATER.replace("RECIPE", repr(SINGLE[0])))
    words = (sys.executable, "later.py", *SINGLE[1:])
    done = run(SCRIPT, "--steps", "8", "--kills", "1", "--save-every-steps", "2", "--", *words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == "the GPU is on fire"
    assert "verdict" not in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "the training command is missing"),
        (("--",), "no recipe in the command"),
        (("python", SINGLE[0]), "the training command is missing"),
        (("--", "python", "-c", "print()"), "no recipe in the command"),
        (("--", "python", "nowhere.py"), "no recipe in the command"),
        (("--", "python", *SINGLE, "--output-dir", "out"), "--output-dir in the command"),
        (("--", "python", *SINGLE, "--checkpoint_dir=out"), "--checkpoint-dir in the command"),
        (("--", "python", *SINGLE, "--resume", "never"), "--resume in the command"),
        (("--", "python", *SINGLE, "--save-every-steps"), "--save-every-steps  in the command"),
        (("--save-every-steps", "5", "--", "python", *SINGLE, "--save-every-steps=7"), "drop one"),
        (("--kills", "-1", "--", "python", *SINGLE), "--kills -1"),
        (("--kils", "1", "--", "python", *SINGLE), "no flag --kils; did you mean --kills?"),
        (("--", "no-such-launcher", *SINGLE), "'no-such-launcher' cannot be run: No such file or directory"),
        (("--output-dir", "full", "--", "python", *SINGLE), "--output-dir full: the folder holds other files"),
        (("--", sys.executable, *SINGLE, "--epochs", "none"), "--epochs none"),
        (("--", sys.executable, *SINGLE, "--help"), "ended without a checkpoint"),
    ],
)
def test_one_line_tells_what_is_wrong_when_it_cannot_be_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("all my work")
    assert recipe("verify_resume")(words) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert out == ""
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_kills_come_after_the_first_checkpoint_when_the_run_is_longer():
    for seed in range(50):
        steps = verify_resume.draw(3, 10, 60, seed)
        assert len({*steps}) == 3
        assert steps == sorted(steps)
        assert steps[0] > 10
        assert steps[-1] < 60
    assert verify_resume.draw(3, 10, 60, 0) == verify_resume.draw(3, 10, 60, 0) != verify_resume.draw(3, 10, 60, 1)
    assert verify_resume.draw(9, 10, 4, 0) == [3]  # the run ended before its first checkpoint by steps


def test_flags_of_the_command_win_in_their_last_place_when_they_are_read():
    assert verify_resume.value_of("--keep", ["--keep", "1", "--keep=2"]) == "2"
    assert verify_resume.value_of("--save-every-steps", ["--save_every_steps", "7"]) == "7"
    assert verify_resume.value_of("--keep", ["--keeper", "7"]) is None


def left(trial: Trial, step: int, digest: str, ids: list[int], inexact: list[str]) -> Trial:
    folder = trial.checkpoint(step)
    folder.mkdir(parents=True)
    files = {"model.safetensors": {"sha256": digest}, "trainer.json": {"sha256": "of its times"}}
    (folder / "MANIFEST.json").write_text(json.dumps({"files": files}))
    progress = {"step": step, "wall_seconds": os.getpid(), "inexact": inexact}
    (folder / "trainer.json").write_text(json.dumps({"progress": progress}))
    lines = [json.dumps({"step": at, "rank": rank, "ids": ids}) for at in range(step + 1) for rank in (0, 1)]
    (trial.folder / "samples.jsonl").write_text("\n".join(lines) + '\n{"step": 0, "ra')
    return trial


@pytest.mark.parametrize(
    ("digest", "ids", "inexact", "different", "reason"),
    [
        ("a", [1], [], set(), ""),
        ("b", [1], [], {"model.safetensors"}, "--deterministic"),
        ("b", [2], [], {"model.safetensors", "samples.jsonl"}, "did the data change"),
        ("b", [1], ["step 2: 2 -> 1 processes"], {"model.safetensors", "trainer.json"}, "step 2: 2 -> 1 processes"),
    ],
)
def test_what_differs_is_named_with_a_reason_when_runs_are_compared(
    tmp_path: Path, digest: str, ids: list[int], inexact: list[str], different: set[str], reason: str
):
    whole = left(Trial((), tmp_path / "whole"), 4, "a", [1], [])
    tried = left(Trial((), tmp_path / "tried"), 4, digest, ids, inexact)
    equal = verify_resume.compare(whole, tried, 4)
    assert {name for name, same in equal.items() if not same} == different
    assert reason in verify_resume.reasons(equal, tried, 4)
    assert tried.delivered() == 5


def test_the_command_is_kept_whole_when_it_holds_spaces():
    flags = Verify(command="python 'my recipes/train.py' --data-root 'my photos'")
    assert flags.command == ("python", "my recipes/train.py", "--data-root", "my photos")
