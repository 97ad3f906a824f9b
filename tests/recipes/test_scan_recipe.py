"""recipes/scan.py as a user calls it: exit codes, files, and data that trains after it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forkserver
from tests.conftest import ROOT, Runner, recipe, write_image


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A clean data set, no two images alike."""
    seed = 0
    for split, count in {"train": 8, "val": 2}.items():
        for name in ("cat", "dog"):
            for i in range(count):
                write_image(tmp_path / "data" / split / name / f"{i}.png", seed=(seed := seed + 1))
    return tmp_path / "data"


@pytest.fixture
def bad_data(data: Path) -> Path:
    (data / "train/cat/0.png").write_bytes(b"")
    (data / "train/dog/1.png").write_bytes((data / "val/dog/1.png").read_bytes())
    return data


def test_a_scan_ends_with_0_and_leaves_its_files_when_the_data_is_clean(capsys, data: Path, tmp_path: Path):
    assert recipe("scan")(["data"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    folder = next(path for path in tmp_path.iterdir() if path != data)
    assert re.fullmatch(r"scan-data-\d{8}-\d{6}", folder.name)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        "contact-sheets",
        "contact-sheets/0000-cat.png",
        "contact-sheets/0001-dog.png",
        "scan.json",
        "scan.txt",
    ]
    assert out == (folder / "scan.txt").read_text() + f"wrote     {folder.name}\n"
    assert out.splitlines()[-2] == "data: usable as it is; nothing was found"
    report = json.loads((folder / "scan.json").read_text())
    assert (report["schema"], report["usable"], report["findings"]) == (1, True, [])


def test_a_written_manifest_names_the_same_files_when_a_name_holds_line_ends(data: Path):
    for name in ("a\rb", "a\nb", 'a"b, c'):
        (data / "train/cat/0.png").rename(data / f"train/cat/{name}.png")
        write_image(data / "train/cat/0.png", seed=sum(map(ord, name)))
    assert recipe("scan")(["data", "--write-manifest", "--output-dir", "out"]) == 0
    assert recipe("scan")(["out/manifest", "--output-dir", "again"]) == 0
    assert json.loads(Path("again/scan.json").read_text())["splits"]["train"]["images"] == 19


def test_a_scan_ends_with_2_and_one_line_when_the_data_is_not_usable(capsys, bad_data: Path, tmp_path: Path):
    words = ["data", "--output-dir", "out", "--no-contact-sheets", "--num-workers", "1"]
    assert recipe("scan")(words) == 2
    out, err = capsys.readouterr()
    assert err == "error: data: not usable as it is: 1 empty, 1 leak\n"
    assert "train: train/cat/0.png: the file is empty" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scan.json", "scan.txt"}


def test_data_trains_when_it_was_mended_by_a_manifest(capsys, bad_data: Path, tmp_path: Path):
    train = ["--arch", "test_resnet", "--img-size", "32", "--batch-size", "7", "--epochs", "2", "--log-with", "none"]
    train += ["--num-workers", "0"]
    assert recipe("single_scale")(["--data-root", "data", "--output-dir", "before", *train]) == 2  # control
    assert recipe("scan")(["data", "--output-dir", "out", "--write-manifest"]) == 2
    assert recipe("single_scale")(["--data-root", "out/manifest", "--output-dir", "after", *train]) == 0
    assert json.loads((tmp_path / "after/class_map.json").read_text()) == {"0": "cat", "1": "dog"}
    assert "train 14, val 4 images, 2 classes" in capsys.readouterr().out


def test_a_manifest_is_never_written_over_another_when_there_is_one(capsys, bad_data: Path, tmp_path: Path):
    words = ["data", "--output-dir", "out", "--write-manifest", "--no-contact-sheets"]
    assert recipe("scan")(words) == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    capsys.readouterr()
    assert recipe("scan")(words) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: --write-manifest: out/manifest is there already: give another --output-dir\n")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "DATA"),
        (("nowhere",), "nowhere: no such folder"),
        (("data", "--ouput-dir", "x"), "there is no flag --ouput-dir; did you mean --output-dir?"),
        (("data", "other"), "other belongs to no flag"),
        (("data", "--num-workers", "0"), "--num-workers 0"),
        (("data", "--num-workers", "few"), "--num-workers few"),
        (("data", "--output-dir"), "--output-dir"),
    ],
)
def test_a_command_is_refused_in_one_line_when_its_words_are_wrong(
    capsys, data: Path, tmp_path: Path, words, told: str
):
    assert recipe("scan")(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert told in err
    assert list(tmp_path.iterdir()) == [data]


def test_nothing_is_scanned_when_nothing_can_be_written(capsys, data: Path, tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    reasons = {"file": "Not a directory", "file/below": "Not a directory", "/proc/none": "No such file"}
    for folder, reason in reasons.items():
        assert recipe("scan")(["data", "--output-dir", folder]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"error: --output-dir {folder}: nothing can be written there: {reason}")
        assert len(err.splitlines()) == 1


def test_the_exit_code_is_that_of_the_process_when_it_is_run_as_a_user_would(run: Runner, bad_data: Path):
    done = run("recipes/scan.py", "data", "--output-dir", "out")
    assert done.returncode == 2
    assert done.stderr == "error: data: not usable as it is: 1 empty, 1 leak\n"  # no bar where there is no terminal


def test_the_exit_code_stays_when_nobody_reads_the_output_any_more(data: Path, tmp_path: Path):
    """As with `... | head -1`."""
    command = [sys.executable, str(ROOT / "recipes/scan.py"), str(data), "--output-dir", "out"]
    reader, writer = os.pipe()
    os.close(reader)
    options = {"stderr": subprocess.PIPE, "text": True}
    with os.fdopen(writer, "w") as nobody, forkserver.Popen(command, stdout=nobody, **options) as process:
        _, told = process.communicate()
    assert (process.returncode, told) == (0, "")
    assert (tmp_path / "out/scan.json").exists()


def test_one_process_scans_when_a_launcher_starts_several(capsys, bad_data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert recipe("scan")(["data"]) == 0
    assert list(tmp_path.iterdir()) == [bad_data]
