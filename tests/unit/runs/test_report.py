"""report.html from records: what stands in it at each stage of a run, what never does, how large it gets."""

import html
import json
import logging
import os
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import recipe
from tests.records import SHAPES, Page, answer, end, write_records
from toolkit.__main__ import main as toolkit
from toolkit.config.yaml_values import read_yaml, to_yaml
from toolkit.models.metrics import Predictions, class_accuracy, confused
from toolkit.runs import report
from toolkit.runs.metrics_row import MetricsRow
from toolkit.runs.report import page as report_page
from toolkit.runs.report import write_report
from toolkit.runs.report.history import Band, read_history
from toolkit.system.console import duration
from toolkit.system.errors import InputError

pytestmark = pytest.mark.pages
ALL = ["At every size", "How it learned", "What it cost", "Where it errs", "How to repeat it", "Settings"]


def outward(page: Page) -> list[str]:
    """What would run, or make a browser ask for something that is not in the page."""
    found = [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "embed", "base")]
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            refers = name in ("src", "href", "xlink:href", "srcset", "action", "data") or "url(" in value
            inside = value.startswith(("data:", "#")) or "url(#" in value
            if name.startswith("on") or (refers and not inside):
                found.append(f"{tag} {name}={value}")
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished run; to be read only."""
    folder = tmp_path_factory.mktemp("report") / "run"
    return write_report(answer(end(write_records(folder, synthetic_count=120))))


def test_a_page_has_every_section_and_nothing_leaves_it_when_a_run_is_done(finished: Path):
    page = Page(finished)
    assert page.headings["h1"] == ["run"]
    assert page.headings["h2"] == ALL
    for name in ("balanced accuracy", "macro F1", "worst class: "):
        assert any(word.startswith(name) for word in page.words)
    assert page.headings["h3"][:16] == [
        "Top-1 against image size",
        "Loss",
        "Top-1 accuracy on validation",
        "Training loss within the epochs",
        "Learning rate",
        "Regularization (share of the run's)",
        "Gradient norm",
        "Images per second",
        "Arithmetic, share of the peak",
        "Time of an optimizer step, ms",
        "Training time spent waiting for data",
        "Peak memory, GB",
        "Confusion",
        "Calibration",
        "Hardest images",
        "Scales",
    ]
    assert sum(tag == "img" for tag, _ in page.tags) == 24
    assert outward(page) == []
    assert "http" not in page.source.replace("http-equiv", "")
    assert page.empty_frames() == []
    # Of 9 x 37 s: 12% of 270 s waiting, the other 88% computing, 9 x 4 s evaluating, 9 x 1.5 s saving, the rest.
    for words in ("93.9 % top-1 at 64 px, validation", "92.9 % top-1", "6 min 14 s", "Done 9 of 9 epochs done"):
        assert words in page.text
    for words in ("waiting for data 32 s 10%", "forward and backward 3 min 58 s 71%", "evaluation 36 s 11%"):
        assert words in page.text
    for words in ("checkpoints 14 s 4%", "the rest 14 s 4%"):
        assert words in page.text


def test_nothing_is_called_clipped_where_nothing_clips(tmp_path: Path, finished: Path):
    assert "clip" not in re.sub("gradient_clip|crop", "", Page(finished).text)
    clips = Page(write_report(end(write_records(tmp_path / "run", gradient_clip=1.0))))
    assert "Gradient norm before the clip" in clips.headings["h3"]
    assert "gradients clipped, last epoch 4%" in clips.text


def test_errors_are_those_on_test_images_where_asked(tmp_path: Path):
    run = answer(end(write_records(tmp_path / "run")))
    answer(run, images=60, split="test", name="test/{}.jpg")
    assert "on the 240 validation images" in Page(write_report(run)).text
    assert recipe("report")([str(run), "--errors-on", "test"]) == 0
    page = Page(run / "report.html")
    assert "on the 60 test images" in page.text
    assert "test/0.jpg" in page.text
    assert "val/0.jpg" not in page.text
    assert f"true: {SHAPES[0]}" in page.text
    assert f"toolkit report {run} --errors-on test" in page.text  # to write it so again


def test_a_page_tells_how_the_latency_was_measured(tmp_path: Path):
    run = end(write_records(tmp_path / "run"))
    summary = json.loads((run / "summary.json").read_text())
    for device, told in (("cpu", "on the CPU with 2 threads."), ("cuda", "on cuda.")):
        (run / "summary.json").write_text(json.dumps({**summary, "device": device, "threads": 2}))
        assert f"median time for one image alone, {told}" in Page(write_report(run)).text


def test_a_page_is_the_same_byte_for_byte_when_it_is_made_again(finished: Path):
    before = finished.read_bytes()
    assert recipe("report")([str(finished.parent)]) == 0
    assert finished.read_bytes() == before


def test_the_command_on_the_page_trains_the_same_again_when_it_is_given(finished: Path, capsys):
    [command] = re.findall(r"<pre>(toolkit train .*?)</pre>", finished.read_text())
    words = shlex.split(command)
    assert words[:3] == ["toolkit", "train", "multi"]
    assert toolkit([*words[1:], "--dry-run"]) == 0
    assert "progressive 16 -> 32 -> 64 px, selection at 64px" in capsys.readouterr().out


OWN = {
    "strategy": "own_s:S",
    "task": "own_t:T",
    "scheduler": "own_t:Sched",
    "log_with": "own_l:L",
    "model_from": "own_m:make",
    "transform": "own_f:blur",
}


def again(run: Path, **values: str) -> list[str]:
    """The command on the page that trains a run again, whose config.yaml has these values; empty if there is none."""
    config = read_yaml(run / "config.yaml")
    (run / "config.yaml").write_text(to_yaml({**config, **values}))
    page = html.unescape(write_report(run).read_text())
    (run / "config.yaml").write_text(to_yaml(config))
    return [word for command in re.findall(r"<pre>(toolkit train .*?)</pre>", page) for word in shlex.split(command)]


def test_the_command_names_all_code_of_the_users_own(tmp_path: Path):
    run = end(write_records(tmp_path / "run", epochs=1))
    words = again(run, **OWN)
    assert words[-8:-4] == ["--model-from", "own_m:make", "--transform", "own_f:blur"]
    assert words[-4:] == ["--import", "own_s", "own_t", "own_l"]
    assert "--import" not in again(run)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, f"__main__:{text.partition(':')[2]}") for name, text in OWN.items()),
        ("transform", "a function own_f.<lambda>"),
        ("transform", "an object of own_f.Blur (0a1b2c3d)"),
        ("model_from", "an object of own_m.Net"),
        ("task", "own_t:test.<locals>.T"),
        ("data_root", "data sets passed from Python: own_d:Stripes"),
    ],
)
def test_no_command_would_train_it_when_only_python_can_pass_a_part(tmp_path: Path, name: str, value: str):
    run = end(write_records(tmp_path / "run", epochs=1))
    assert again(run, **{name: value}) == []


@pytest.mark.parametrize("name", ["os:getcwd", "collections:OrderedDict", "toolkit:Strategy"])
def test_a_task_that_is_none_is_as_unknown(tmp_path: Path, name: str):
    run = end(write_records(tmp_path / "run", epochs=1))
    config = (run / "config.yaml").read_text().replace("task: classification", f"task: {name}")
    assert name in config
    (run / "config.yaml").write_text(config)
    assert "top1" in write_report(run).read_text()


def test_no_command_would_train_it_when_the_strategy_is_the_users_own(tmp_path: Path):
    run = end(write_records(tmp_path / "run", epochs=1))
    config = (run / "config.yaml").read_text()
    assert "Train the same again" in Page(write_report(run)).text
    (run / "config.yaml").write_text(config.replace("strategy: progressive", "strategy: alternating"))
    assert "Train the same again" not in Page(write_report(run)).text


@pytest.mark.parametrize(
    ("stage", "sections", "told"),
    [
        ("stopped before an epoch", [ALL[2], *ALL[4:]], "Preempted by SIGTERM; 0 of 3 epochs done"),
        ("running", [*ALL[:3], *ALL[4:]], "Running 4 of 4 epochs done when this page was written"),
        ("diverged", [*ALL[:3], *ALL[4:]], "Failed step 120: the loss is nan"),
        ("one epoch", [ALL[0], *ALL[2:]], "Done 1 of 3 epochs"),
        ("one scale, no test images", ALL, "top-1 at 32 px, validation, epoch 5"),
        ("two epochs, no figures of the monitor", [*ALL[:3], *ALL[4:]], "training 1 min 00 s 81%"),
    ],
)
def test_a_page_has_no_empty_frames_when_something_is_missing(
    tmp_path: Path, stage: str, sections: list[str], told: str
):
    run = tmp_path / "run"
    if stage == "stopped before an epoch":
        end(write_records(run, epochs=0), "preempted by SIGTERM")
    elif stage == "running":
        write_records(run, epochs=4)
    elif stage == "diverged":
        end(write_records(run, epochs=3), "step 120: the loss is nan", splits=())
    elif stage == "one epoch":
        answer(end(write_records(run, epochs=1)))
    elif stage == "one scale, no test images":
        answer(end(write_records(run, epochs=5, scales=(32,), strategy="single"), splits=("val",)))
    else:
        write_records(run, epochs=2)
        lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
        kept = [i for i, name in enumerate(lines[0]) if name in _OLD or "top" in name or "/loss" in name]
        (run / "metrics.csv").write_text("".join(",".join(line[i] for i in kept) + "\n" for line in lines))
    page = Page(write_report(run))
    assert page.headings["h2"] == sections
    assert told in page.text
    assert page.empty_frames() == []
    assert "nan" not in page.text.replace("loss is nan", "")
    assert "None" not in page.text
    assert ('http-equiv="refresh"' in page.source) == ("Running" in page.text)


_OLD = (
    "epoch",
    "step",
    "images_seen",
    "phase",
    "sizes",
    "train_loss",
    "lr",
    "images_per_s",
    "train_seconds",
    "wall_seconds",
)


def test_the_most_confused_classes_stand_in_a_table_and_the_page_stays_small_when_there_are_many(tmp_path: Path):
    classes = [f"n{i:08d} a name, its synonyms, and what else it is called" for i in range(1000)]
    run = answer(end(write_records(tmp_path / "run", epochs=200, classes=classes)), images=5000)
    page = Page(write_report(run))
    assert len(page.source.encode()) < 3_000_000
    assert {"Most confused classes", "Classes recognized least"} <= {*page.headings["h3"]}
    assert "Confusion, the 20 classes in most errors" in page.headings["h3"]
    assert page.empty_frames() == []


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "a & b",
    "ok</style><b>",
    "&lt;i&gt;",
)


@pytest.mark.parametrize("escaped", [True, False])
def test_names_are_text_when_they_look_like_markup(tmp_path: Path, monkeypatch, escaped: bool):
    settings = {"data_root": '/data/<script src="//evil.example/x.js"></script>', "arch": "resnet18"}
    run = write_records(tmp_path / "run<script>x", classes=HOSTILE, **settings)
    answer(end(run), name='<svg onload="alert(1)">{}\udcff.jpg')
    if not escaped:  # the control
        plain = report_page._templates()
        plain.autoescape = False
        monkeypatch.setattr(report_page, "_templates", lambda: plain)
    page = Page(write_report(run))
    assert (outward(page) == []) == escaped
    if escaped:
        assert page.headings["h1"] == ["run<script>x"]
        for name in HOSTILE:
            assert " ".join(name.split()) in page.text


def test_a_page_is_not_written_anew_when_the_last_one_is_fresh(tmp_path: Path):
    run = write_records(tmp_path / "run", epochs=1)
    report.refresh(run)
    assert not (run / "report.html").exists()  # the run itself has just begun
    for name in ("config.yaml", "report.html"):
        long_ago = time.time() - report.REFRESH_S - 1
        os.utime(run / name, (long_ago, long_ago))
        report.refresh(run)
        first = (run / "report.html").stat().st_mtime_ns
        report.refresh(run)
        assert (run / "report.html").stat().st_mtime_ns == first > long_ago * 1e9
    report.refresh(run, at_once=True)
    assert (run / "report.html").stat().st_mtime_ns > first


def test_a_page_that_cannot_be_written_is_a_warning_when_a_run_goes_on(tmp_path: Path, caplog, capsys, monkeypatch):
    run = write_records(tmp_path / "run", epochs=1)
    (run / "summary.json").write_text("{half a li")
    monkeypatch.setattr(logging.getLogger("toolkit"), "propagate", True)
    report.refresh(run, at_once=True)
    assert "summary.json: cannot be read" in caplog.text
    (run / "summary.json").unlink()
    (run / "report.html").mkdir()
    report.refresh(run, at_once=True)
    assert f"report.html could not be written: {run}/report.html: Is a directory" in caplog.text
    capsys.readouterr()
    assert recipe("report")([str(run)]) == 2
    assert not list(run.glob(".tmp-*"))
    assert capsys.readouterr().err == f"error: {run / 'report.html'}: Is a directory: it is a folder, not a file\n"


def test_a_folder_is_refused_when_it_holds_no_run(tmp_path: Path, capsys):
    with pytest.raises(InputError, match="not a run directory"):
        write_report(tmp_path)
    assert recipe("report")([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_value_is_refused_when_somebody_edited_it_to_what_no_run_has(tmp_path: Path, capsys):
    run = write_records(tmp_path / "run", epochs=1)
    settings = re.sub(r"^epochs:.*$", "epochs: many", (run / "config.yaml").read_text(), flags=re.MULTILINE)
    (run / "config.yaml").write_text(settings)
    assert recipe("report")([str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --epochs many: ")
    assert error.count("\n") == 1


def test_sentences_below_the_table_are_apart_when_there_are_several(tmp_path: Path):
    run = answer(end(write_records(tmp_path / "run", strategy="simultaneous", epochs=2)))
    summary = json.loads((run / "summary.json").read_text())
    summary["val"]["16px"]["norm_from"] = summary["val"]["32px"]["norm_from"] = 64
    summary["raw"] = {"64px": {"top1": 46.666}}
    (run / "summary.json").write_text(json.dumps(summary))
    assert (
        "chosen by top-1 on validation at 64 px. ECE: by how much confidence and accuracy differ on average. "
        "Latency: median time for one image alone, on the CPU. "
        "16 px uses the normalization of 64 px. 32 px uses the normalization of 64 px. "
        "The last step's weights without averaging reach 46.67%."
    ) in Page(write_report(run)).text


def test_columns_are_read_with_gaps_and_phases_when_epochs_differ():
    history = read_history(
        [
            MetricsRow.from_cells(cells)
            for cells in (
                {"epoch": "0", "phase": "0", "sizes": "16", "lr": "0.5", "32px/top1": "", "train_seconds": "2"},
                {"epoch": "1", "phase": "1", "sizes": "32", "lr": "oops", "32px/top1": "7", "train_seconds": "5"},
                {"epoch": "2", "phase": "1", "sizes": "32", "lr": "0.1", "112px/top1": "9", "train_seconds": "6"},
            )
        ]
    )
    assert history.bands() == [Band(1, 1, "16"), Band(2, 3, "32")]
    assert history.evaluated() == ["32px", "112px"]  # by size, not by letter
    np.testing.assert_array_equal(history.columns["lr"], [0.5, np.nan, 0.1])
    np.testing.assert_array_equal(history.per_epoch("train_seconds"), [2, 3, 1])
    assert history.get("regularization") is None
    assert read_history([]).bands() == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.23, "4.2 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_a_duration_is_written_as_people_say_it_when_it_is_short_or_long(seconds: float, text: str):
    assert duration(seconds) == text


def test_classes_are_paired_by_how_often_they_are_confused_when_answers_are_wrong():
    answers = Predictions(np.array([0, 0, 0, 1, 2, 2]), np.array([1, 1, 0, 1, 0, 1]), np.ones(6))
    assert confused(answers, 2) == [(0, 1, 2), (2, 0, 1)]
    np.testing.assert_allclose(class_accuracy(answers, 4), [100 / 3, 100, 0, np.nan])
    assert confused(Predictions(np.array([1]), np.array([1]), np.ones(1)), 2) == []


def test_a_run_goes_on_when_its_folder_cannot_even_be_looked_at(caplog: pytest.LogCaptureFixture):
    report.refresh(Path("x" * 5000))
    assert "report.html: File name too long: take a shorter name" in caplog.text
