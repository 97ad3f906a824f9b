"""recipes/predict.py over odd files, folders and names: each is told, and nothing else changes for it."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import Runner, write_image
from tests.recipes.test_predict import predict, rows_of

pytestmark = pytest.mark.usefixtures("elsewhere")

# Root may read everything, unless it gives that up.
LOCKABLE = os.geteuid() != 0 or shutil.which("setpriv") is not None
BOUND = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
NEEDS_LOCKS = pytest.mark.skipif(not LOCKABLE, reason="root may read everything: needs setpriv")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_bad_files_have_their_reason_in_the_output_when_others_are_good(capsys, finished: Path, odd: Path, ending: str):
    assert predict(finished, "odd", "missing.jpg", "--output", f"rows.{ending}") == 0
    told = capsys.readouterr().err
    text = Path(f"rows.{ending}").read_text()
    rows = [json.loads(line) for line in text.splitlines()] if ending == "jsonl" else rows_of("rows.csv")
    assert [row["path"] for row in rows] == [
        "odd/a.png",
        "odd/below/b.jpg",
        "odd/empty.jpg",
        "odd/gone.jpg",
        "odd/text.png",
        "odd/truncated.jpg",
        "missing.jpg",
    ]
    good, bad = rows[:2], rows[2:]
    assert all(row["label"] and not row["error"] for row in good)
    assert all(not row["label"] and not row["probability"] and not row["size"] for row in bad)
    reasons = [row["error"] for row in bad]
    assert reasons[0] == "the file is empty"
    assert reasons[1] == reasons[4] == "No such file or directory"
    assert "truncated" in reasons[3]
    assert "2 predicted, 5 cannot be read (column error), 1 other files left out" in told


def test_a_folder_without_images_is_told_when_others_are_predicted(finished: Path, odd: Path):
    Path("empty").mkdir()
    assert predict(finished, "empty", "odd/a.png", "--output", "rows.csv") == 0
    assert [(row["path"], row["error"]) for row in rows_of("rows.csv")] == [
        ("empty", "there are no images in it"),
        ("odd/a.png", ""),
    ]


def test_one_odd_entry_of_a_folder_is_told_when_the_others_are_predicted(capsys, finished: Path, odd: Path):
    os.mkfifo(odd / "below" / "a.jpg")
    os.mkfifo(odd / "pipe")
    (odd / "README").symlink_to("nowhere")
    assert predict(finished, "odd", "odd/below/a.jpg", "--output", "rows.csv") == 0
    rows = rows_of("rows.csv")
    names = ["a.png", "below/a.jpg", "below/b.jpg", "empty.jpg", "gone.jpg", "text.png", "truncated.jpg", "below/a.jpg"]
    assert [row["path"] for row in rows] == [f"odd/{name}" for name in names]
    assert [row["error"] for row in rows if row["path"] == "odd/below/a.jpg"] == ["is no regular file"] * 2
    told = capsys.readouterr().err
    assert "2 predicted, 6 cannot be read (column error), 3 other files left out" in told


@pytest.mark.slow
@NEEDS_LOCKS
def test_a_folder_without_permission_has_its_reason_in_the_output_when_others_are_good(
    run: Runner, finished: Path, odd: Path
):
    for name in ("locked", "below/locked"):
        write_image(odd / name / "a.png")
        (odd / name).chmod(0)
    words = (str(finished), "odd", "odd/locked/a.png", "--output", "rows.csv")
    done = run("recipes/predict.py", *words, launcher=(*BOUND, sys.executable))
    for name in ("locked", "below/locked"):
        (odd / name).chmod(0o700)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "2 predicted, 7 cannot be read (column error), 1 other files left out" in done.stderr
    reasons = {row["path"]: row["error"] for row in rows_of("rows.csv")}
    assert list(reasons)[1:3] == ["odd/below/b.jpg", "odd/below/locked"]
    assert reasons["odd/locked"] == reasons["odd/below/locked"] == "the folder cannot be listed: Permission denied"
    assert reasons["odd/locked/a.png"] == "Permission denied"


STRANGE = 'line\rfeed\n"quoted", \x1b[31m.png'


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_name_is_read_back_as_it_is_when_it_holds_any_character(finished: Path, tmp_path: Path, ending: str):
    names = [f"names/{name}" for name in sorted([STRANGE, "\r.png", "=1+1.png", "plain.png"])]
    for name in names:
        write_image(tmp_path / name)
    (tmp_path / "names/\rbad.png").write_text("")
    assert predict(finished, "names", "--output", f"rows.{ending}") == 0
    text = Path(f"rows.{ending}").read_bytes().decode()
    rows = [json.loads(line) for line in text.splitlines()] if ending == "jsonl" else rows_of("rows.csv")
    assert [row["path"] for row in rows] == sorted([*names, "names/\rbad.png"])
    assert [row["path"] for row in rows if row["error"]] == ["names/\rbad.png"]
    assert all(row["label"] for row in rows if not row["error"])


def test_what_is_told_is_one_line_when_a_name_holds_control_characters(capsys, finished: Path, tmp_path: Path):
    (tmp_path / STRANGE).write_text("")
    (tmp_path / "empty\nfolder").mkdir()
    assert predict(finished, STRANGE, "--output", "\x1b[2J.csv") == 2
    assert predict(finished, STRANGE, "--output", "\x1b[2J.csv") == 2  # which is there already
    assert predict(finished, "empty\nfolder") == 2
    lines = capsys.readouterr().err.split("\n")
    written = r"written to \x1b[2J.csv"
    spoken = r"""line\rfeed\n"quoted", \x1b[31m.png"""
    assert lines == [
        f"images    0 predicted, 1 cannot be read (column error), {written}",
        f"error: none of the 1 images can be read; the first: {spoken}: the file is empty",
        r"error: --output \x1b[2J.csv: is there already: give another name, or --overwrite",
        r"error: empty\nfolder: there are no images in it",
        "",
    ]


def test_the_exit_code_is_2_when_nothing_could_be_read(capsys, finished: Path, odd: Path):
    assert predict(finished, "odd/empty.jpg", "odd/text.png", "--output", "rows.csv") == 2
    assert "error: none of the 2 images can be read; the first: odd/empty.jpg" in capsys.readouterr().err
    assert [bool(row["error"]) for row in rows_of("rows.csv")] == [True, True]


@pytest.mark.slow
@NEEDS_LOCKS
@pytest.mark.parametrize("place", ["photos", "photos/disc-checks/locked"])
def test_a_folder_without_permission_is_refused_in_one_line_when_it_is_evaluated(
    run: Runner, finished: Path, tmp_path: Path, place: str
):
    write_image(tmp_path / "photos/disc-checks/a.png")
    write_image(tmp_path / "photos/disc-checks/locked/b.png")
    locked = tmp_path / place
    locked.chmod(0)
    words = (str(finished), "--data-root", "photos", "--output-dir", "out")
    done = run("recipes/evaluate.py", *words, launcher=(*BOUND, sys.executable))
    locked.chmod(0o700)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: .*{locked.relative_to(tmp_path)}.*: Permission denied(: .*)?\n", done.stderr)
