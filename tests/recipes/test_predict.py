"""recipes/predict.py as a user calls it: it says what evaluation says, and drops nothing silently."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests import forkserver
from tests.conftest import PATIENCE_S, ROOT, TORCHRUN, Runner, recipe
from tests.forkserver import run_ranks
from toolkit.runs import saved_predictions
from toolkit.runs.saved_predictions import SavedPredictions

FIELDS = ["path", "label", "probability", "size", *(f"{c}_{i}" for i in range(2, 6) for c in ("label", "probability"))]


pytestmark = pytest.mark.usefixtures("elsewhere")


def predict(*words: str | Path) -> int:
    return recipe("predict")([str(word) for word in words])


def rows_of(path: Path | str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def evaluated(run: Path, figure: str, folder: Path | None = None) -> dict[str, tuple[str, float]]:
    """What the run itself, or its evaluation in a folder, said of its validation images: class, probability by name."""
    found = saved_predictions.read((folder or run) / "predictions", "val")
    assert isinstance(found, SavedPredictions)
    classes = json.loads((run / "class_map.json").read_text())
    answers = found.table.of(figure)
    pairs = zip(answers.predicted.tolist(), answers.confidence.tolist(), strict=True)
    return {name: (classes[str(said)], sure) for name, (said, sure) in zip(found.names, pairs, strict=True)}


def differences(rows: list[dict[str, str]], known: dict[str, tuple[str, float]], data: Path) -> tuple[int, float]:
    """Labels that differ, and the largest difference of a probability."""
    said = {str(Path(row["path"]).relative_to(data)): (row["label"], float(row["probability"])) for row in rows}
    assert said.keys() == known.keys()
    return (
        sum(said[name][0] != label for name, (label, _) in known.items()),
        max(abs(said[name][1] - sure) for name, (_, sure) in known.items()),
    )


@pytest.mark.parametrize("batch_size", ["1", "7", "64"])
def test_every_image_gets_what_evaluation_says_when_batches_are_of_any_size(
    finished: Path, data: Path, batch_size: str
):
    assert predict(finished, data / "val", "--batch-size", batch_size, "--output", "rows.csv") == 0
    rows = rows_of("rows.csv")
    assert [row["path"] for row in rows] == sorted(map(str, (data / "val").rglob("*.jpg")))
    different, apart = differences(rows, evaluated(finished, "32px"), data)
    assert (different, apart < 1e-5) == (0, True)
    assert differences(rows, evaluated(finished, "16px"), data)[1] > 1e-3  # control: another size says otherwise
    assert {row["size"] for row in rows} == {"32"}


def test_prediction_runs_in_a_thread_which_gets_no_ctrl_c(finished: Path, data: Path):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(predict, finished, data / "val", "--output", "rows.csv").result() == 0
    assert len(rows_of("rows.csv")) == len([*(data / "val").rglob("*.jpg")])


@pytest.mark.slow
def test_two_processes_write_the_same_rows_in_order_and_evaluate_says_the_same_on_two(
    run: Runner, finished: Path, data: Path, tmp_path: Path
):
    words = (finished, data / "val", "--scales", "16,32", "--batch-size", "8")
    assert predict(*words, "--output", "one.csv") == 0
    done = run("recipes/predict.py", *map(str, words), "--output", "two.csv", launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert "50 predicted, written to two.csv" in done.stderr
    one, two = rows_of("one.csv"), rows_of("two.csv")
    assert [(row["path"], row["label"], row["size"]) for row in one] == [
        (row["path"], row["label"], row["size"]) for row in two
    ]
    for mine, theirs in zip(one, two, strict=True):
        assert float(mine["probability"]) == pytest.approx(float(theirs["probability"]), abs=1e-5)
    evaluate = ("--scales", "16,32", "--average", "--split", "val", "--batch-size", "7", "--output-dir", "out")
    done = run_ranks([str(ROOT / "recipes/evaluate.py"), str(finished), *evaluate], cwd=tmp_path, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    for rows in (one, two):
        different, apart = differences(rows, evaluated(finished, "16+32px", tmp_path / "out"), data)
        assert (different, apart < 1e-5) == (0, True)


FIGURES = {"16": "16px", "24": "24px", "32": "32px", "16,24,32": "16+24+32px"}  # predict's --scales, evaluate's name


@pytest.mark.parametrize(
    ("batch_size", "flip"),
    [
        ("1", ["--flip"]),
        pytest.param("9", [], marks=pytest.mark.slow),
        pytest.param("1", [], marks=pytest.mark.slow),
        pytest.param("9", ["--flip"], marks=pytest.mark.slow),
    ],
)
def test_predict_says_what_evaluate_says_of_every_image_when_both_are_asked_the_same(
    finished: Path, data: Path, batch_size: str, flip: list[str]
):
    words = [str(finished), "--scales", "16,24,32", "--average", "--split", "val", "--output-dir", "out", *flip]
    assert recipe("evaluate")([*words, "--batch-size", "64"]) == 0
    for scales, figure in FIGURES.items():
        rows = f"{scales}.csv"
        flags = ("--scales", scales, "--batch-size", batch_size, *flip)
        assert predict(finished, data / "val", *flags, "--output", rows) == 0
        different, apart = differences(rows_of(rows), evaluated(finished, figure, Path("out")), data)
        assert (different, apart < 1e-5) == (0, True), scales
    assert differences(rows_of("16.csv"), evaluated(finished, "24px", Path("out")), data)[1] > 1e-3  # control


def test_probabilities_are_averaged_when_there_are_several_sizes_or_the_mirrored_image(finished: Path, data: Path):
    words = (finished, data / "val" / "disc-stripes", "--output")
    said = {}
    for name, flags in {"16": ["--scales", "16"], "32": [], "both": ["--scales", "16,32"], "flip": ["--flip"]}.items():
        assert predict(*words, f"{name}.jsonl", *flags) == 0
        said[name] = [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
    for small, large, both in zip(said["16"], said["32"], said["both"], strict=True):
        parts = [{best["label"]: best["probability"] for best in row["top"]} for row in (small, large)]
        shared = {best["label"]: best["probability"] for best in both["top"] if all(best["label"] in p for p in parts)}
        assert shared
        for label, probability in shared.items():
            assert probability == pytest.approx((parts[0][label] + parts[1][label]) / 2, abs=1e-6)
        assert both["size"] == "16+32"
    assert said["flip"] != said["32"]


def test_each_image_ends_at_the_first_size_that_is_sure_enough_when_a_cascade_is_asked_for(
    capsys, finished: Path, data: Path
):
    small, large = evaluated(finished, "16px"), evaluated(finished, "32px")
    confidence = float(np.median([sure for _, sure in small.values()])) + 1e-4  # not at any image's own value
    words = (finished, data / "val", "--cascade", "16,32", "--confidence", confidence)
    assert predict(*words, "--output", "rows.csv", "--batch-size", "7") == 0
    rows = rows_of("rows.csv")
    for row in rows:
        name = str(Path(row["path"]).relative_to(data))
        expected = ("16", *small[name]) if small[name][1] >= confidence else ("32", *large[name])
        assert (row["size"], row["label"]) == expected[:2]
        assert float(row["probability"]) == pytest.approx(expected[2], abs=1e-5)
    assert {row["size"] for row in rows} == {"16", "32"}
    share = sum(row["size"] == "32" for row in rows) / len(rows)
    told = capsys.readouterr().err
    assert f"exits at 16 px {100 * (1 - share):.1f}%  32 px {100 * share:.1f}%" in told
    assert re.search(r"[\d.]+x less compute than 32 px alone", told)


def test_a_cascade_tells_that_it_costs_more_when_every_image_goes_up(capsys, finished: Path, data: Path):
    assert predict(finished, data / "val", "--cascade", "24,32", "--confidence", "1", "--output", "rows.csv") == 0
    told = capsys.readouterr().err
    assert "exits at 24 px 0.0%  32 px 100.0%: " in told
    factor = re.search(r"([\d.]+)x more compute than 32 px alone", told)
    assert factor is not None
    assert 1 < float(factor[1]) < 2  # 32 px, and 24 px on top


@pytest.mark.parametrize("flags", [["--scales", "16,24,32"], ["--cascade", "16,24"], ["--scales", "24,40"]])
def test_borrowed_normalization_is_told_when_a_size_was_not_trained(
    capsys, finished: Path, data: Path, flags: list[str]
):
    assert predict(finished, data / "val", *flags, "--output", "rows.csv") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "normalization" in line]
    assert lines == [
        f"{size} px     normalization of 32 px: the run was not trained at {size} px"
        for size in (24, 40)
        if str(size) in flags[1]
    ]


def test_rows_go_to_standard_output_and_all_else_elsewhere_when_no_file_is_named(capfd, finished: Path, odd: Path):
    assert predict(finished, odd / "a.png") == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[0] == ",".join([*FIELDS, "error"])
    assert len(out.splitlines()) == 2
    assert err == "images    1 predicted\n"


def test_nothing_is_written_over_when_the_output_is_there(capsys, finished: Path, odd: Path):
    Path("rows.csv").write_text("mine")
    assert predict(finished, "odd", "--output", "rows.csv") == 2
    assert "--output rows.csv: is there already" in capsys.readouterr().err
    assert Path("rows.csv").read_text() == "mine"
    assert predict(finished, "odd", "--output", "rows.csv", "--overwrite") == 0
    assert len(rows_of("rows.csv")) == 6


def test_a_full_disk_is_one_line_when_rows_are_written(capsys, finished: Path, odd: Path):
    Path("full.csv").symlink_to("/dev/full")
    assert predict(finished, "odd", "--output", "full.csv") == 1
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"error: full.csv: No space left on device \(\d+ bytes free\): make room there.*; the rows before stand there "
        r"whole\n",
        err,
    )


def started(finished: Path, *words: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "recipes/predict.py"), str(finished), *map(str, words)]
    return forkserver.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_was_written_is_whole_when_it_is_stopped_by_ctrl_c(finished: Path, data: Path):
    process = started(finished, *[data / "test"] * 200, "--output", "rows.csv", "--batch-size", "10")
    while not (Path("rows.csv").exists() and Path("rows.csv").read_text().count("\n") > 10):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    lines = err.splitlines()
    rows = rows_of("rows.csv")
    assert lines[0] == f"stopped   after {len(rows)} of 20000 images"
    assert len(lines) == 2
    assert Path("rows.csv").read_text().endswith(",\n")
    assert all(row["label"] and row["error"] == "" for row in rows)


def test_nothing_is_said_when_the_reader_has_seen_enough(finished: Path, data: Path):
    process = started(finished, *[data / "test"] * 200, "--batch-size", "10")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("path,label")
    process.stdout.close()
    assert process.wait(timeout=PATIENCE_S) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["RUN"], "PATH is missing"),
        (["odd", "odd"], "odd: not a run directory: there is no config.yaml in it"),
        (["RUN", "empty"], "empty: there are no images in it"),
        (["RUN", "odd", "--scales", "small"], "--scales small"),
        (["RUN", "odd", "--scales", "32,16"], "--scales 32,16: sizes must be positive and ascending"),
        (["RUN", "odd", "--cascade", "16"], "--cascade 16: needs two sizes or more"),
        (["RUN", "odd", "--cascade", "32,16"], "--cascade 32,16: sizes must be positive and ascending"),
        (["RUN", "odd", "--cascade", "16,32", "--confidence", "1.5"], "--confidence 1.5"),
        (["RUN", "odd", "--cascade", "16,32", "--scales", "16"], "--scales would be ignored with --cascade"),
        (["RUN", "odd", "--confidence", "0.9"], "--confidence 0.9 would be ignored: it needs --cascade"),
        (["RUN", "odd", "--output", "rows.txt"], "--output rows.txt: must end in .csv or .jsonl"),
        (["RUN", "odd", "--output", "nowhere/rows.csv"], "--output nowhere/rows.csv: No such file or directory"),
        (["RUN", "odd", "--batchsizes", "3"], "there is no flag --batchsizes; did you mean --batch-size?"),
    ],
)
def test_a_command_is_refused_in_one_line_when_its_words_are_wrong(
    capsys, finished: Path, odd: Path, tmp_path: Path, words: list[str], told: str
):
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert predict(*(finished if word == "RUN" else word for word in words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert told in err
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_is_refused_in_one_line_when_its_best_model_is_missing_or_damaged(
    capsys, finished: Path, odd: Path, tmp_path: Path
):
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    model = run / "best" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-100] ^= 1
    model.write_bytes(content)
    assert predict(run, "odd") == 2
    assert "best/model.safetensors: the best model cannot be read: it was changed" in capsys.readouterr().err
    shutil.rmtree(run / "best")
    assert predict(run, "odd") == 2
    assert "there is no best model yet" in capsys.readouterr().err
