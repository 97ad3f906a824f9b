"""What a dashboard is shown: names in sections, mistakes within bounds, no step twice."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from toolkit import Settings
from toolkit.models.metrics import PredictionTable
from toolkit.runs.dashboards import RowKind, Tracking, on_wandb
from toolkit.runs.dashboards.base import DashboardRun
from toolkit.runs.dashboards.names import named, of_epoch
from toolkit.runs.dashboards.notes import Notes
from toolkit.runs.dashboards.on_tensorboard import OnTensorBoard
from toolkit.runs.dashboards.tables import errors_of
from toolkit.runs.metrics_row import MetricsRow
from toolkit.runs.saved_predictions import SavedPredictions


def run_in(folder: Path, **more: Any) -> DashboardRun:
    """What a dashboard is opened with at a run's first start."""
    usual = {"id": "abc123", "config": {"sizes": [16, 32]}, "project": "toolkit", "mode": "auto"}
    return DashboardRun(**{"folder": folder, **usual, "step": 0, "first": True, "eval_specs": (), **more})


def test_a_metric_is_in_its_section_when_it_is_named():
    row = {"lr": 0.1, "32px/top1": 50.0, "peak_memory_gb/32px": 2.0, "phase": 1, "sizes": "32", "step": 5, "gap": ""}
    assert named(row) == {
        "optimization/lr": 0.1,
        "quality/32px/top1": 50.0,
        "throughput/peak_memory_gb/32px": 2.0,
        "run/phase": 1,
    }


def test_a_record_lies_in_its_run_when_the_service_was_started_elsewhere(tmp_path, monkeypatch, accelerator):
    """As by a sweep's agent, or by an earlier run of the same program."""
    wandb.setup().ensure_service()
    monkeypatch.chdir(tmp_path)
    on_wandb._start(run_in(Path("run"), mode="offline")).run.finish()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*-abc123/*.wandb"))


def test_a_run_is_called_as_its_folder_when_it_is_named_from_within(tmp_path, monkeypatch, accelerator):
    (tmp_path / "my-run").mkdir()
    monkeypatch.chdir(tmp_path / "my-run")
    run = on_wandb._start(run_in(Path(), mode="offline")).run
    run.finish()
    assert run.name == "my-run"


def test_memory_is_told_by_sizes_when_an_epoch_ends():
    told = of_epoch(MetricsRow(0, 5, 60, 0, (16, 32), {"peak_memory_gb": 3.0}))
    assert (told["largest_size_px"], told["peak_memory_gb/16+32px"]) == (32, 3.0)


def test_the_mistakes_shown_are_those_of_the_worst_50_classes_when_there_are_more():
    """60 classes of 2 images; of classes 10 to 59 one is taken for class 0, of class 59 both."""
    labels = np.repeat(np.arange(60), 2)
    said = labels.copy()
    said[20::2] = 0
    said[-1] = 0
    sure = np.full((1, 120), 0.5)
    predictions = PredictionTable.of_classes(("32px",), labels, said[None], sure, sure)
    names = tuple(f"{i}.jpg" for i in range(120))
    classes = [f"class {i}" for i in range(60)]
    errors = errors_of(SavedPredictions(names, predictions, {3: Path("3.jpg")}), classes, "32px")
    assert len(errors.classes) == 50
    assert errors.classes[:2] == ["class 0", "class 10"]
    assert errors.classes[-1] == "class 59"
    assert errors.confusion[0].tolist() == [2] + [0] * 49
    assert errors.confusion[-1].tolist() == [2] + [0] * 49
    assert errors.class_accuracy.rows[1] == ["class 10", 2, 50.0]
    assert errors.hardest.rows == [[Path("3.jpg"), "3.jpg", "class 1", "class 1 (50%)"]]
    assert errors.numbers["worst_class_accuracy"] == 0.0
    assert errors.numbers["balanced_accuracy"] == pytest.approx((10 * 100 + 49 * 50) / 60)


def test_names_are_text_when_a_file_system_holds_bytes():
    predictions = PredictionTable.of_classes(
        ("32px",), np.array([0]), np.array([[1]]), np.full((1, 1), 0.5), np.full((1, 1), 0.5)
    )
    saved = SavedPredictions(("caf\udce9.jpg",), predictions, {0: Path("0.jpg")})
    errors = errors_of(saved, ("a", "b\udcff"), "32px")
    assert errors.hardest.rows == [[Path("0.jpg"), r"caf\udce9.jpg", "a", r"b\udcff (50%)"]]


def test_a_run_has_its_own_id_again_when_its_notes_are_opened_a_second_time(tmp_path: Path):
    first = Notes.open(tmp_path, "wandb")
    first.shown = [40, 1]
    first.write()
    second = Notes.open(tmp_path, "wandb")
    assert (second.id, second.starts, second.shown) == (first.id, 2, [40, 1])
    assert Notes.open(tmp_path, "trackio").id != first.id


def test_a_run_begins_anew_with_a_warning_when_its_notes_are_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / ".dashboard-wandb.json").write_text('{"id": "abc"')
    with caplog.at_level(logging.WARNING):
        assert Notes.open(tmp_path, "wandb").starts == 1
    assert "not readable, the dashboard starts a new run" in caplog.text


def test_rows_of_steps_are_known_after_a_kill_and_hold_nothing_up_when_they_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A kill leaves what was written, not what is in the process; the disk is waited for once an epoch."""
    forced: list[int] = []
    tracking = tracked(tmp_path)
    monkeypatch.setattr(os, "fsync", forced.append)
    for step in (50, 100, 150):
        tracking.log({"train_loss": 1.0}, step, 0.5)
    assert forced == []
    assert Notes.open(tmp_path, "page").shown == [150, RowKind.STEPS]
    forced.clear()
    tracking.log_epoch(
        MetricsRow(0, 150, 60, 0, (16,), {"images_per_s": 1.0, "wall_seconds": 1.0}), {"best_top1": 50.0}
    )
    assert len(forced) > 0
    tracking.log({"train_loss": 1.0}, 200, 1.5)
    again = Notes.open(tmp_path, "page")
    assert (again.shown, again.id, again.starts) == ([200, RowKind.STEPS], tracking._notes.id, 2)
    tracking.finish()


def test_a_row_that_no_dashboard_can_show_ends_the_dashboard_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    tracking = tracked(tmp_path)
    tracking.log_epoch(MetricsRow(0, 5, 60, 0, (16,), {}), {"best_top1": 50.0})
    assert tracking._dashboard is not None  # control
    with caplog.at_level(logging.WARNING):
        tracking.log_epoch(MetricsRow(1, 10, 120, 0, (), {}), {"best_top1": 50.0})  # no sizes, so no largest one
    assert tracking._dashboard is None
    assert "the dashboard failed and is left alone from here" in caplog.text


@pytest.mark.parametrize("tail", ["25", "25 ", "\0\0\0\0\n", "250"])
def test_the_last_whole_row_counts_when_a_dying_machine_wrote_half_a_line(tmp_path: Path, tail: str):
    notes = Notes.open(tmp_path, "wandb")
    notes.show(150, RowKind.STEPS)
    with notes.path.open("a") as file:
        file.write(tail)
    again = Notes.open(tmp_path, "wandb")
    assert (again.shown, again.id) == ([150, RowKind.STEPS], notes.id)


def test_tensorboard_shows_the_second_attempt_when_a_run_went_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # names of event files end in this count: writer 10 comes before writer 9 in the order of text
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    board = OnTensorBoard.open(run_in(tmp_path))
    for step, loss in ((10, 3.0), (20, 2.0), (30, 1.0)):
        board.log({"quality/train_loss": loss}, step)
    board.rewind(10)
    board.log({"quality/train_loss": 5.0}, 20)
    board.finish(0)
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("quality/train_loss")] == [(10, 3.0), (20, 5.0)]


class Page(OnTensorBoard):
    """A dashboard that cannot forget."""

    can_rewind = False

    def rewind(self, step: int) -> None: ...


def tracked(folder: Path) -> Tracking:
    """As a start in the folder of a run opens it."""
    tracking = Tracking.__new__(Tracking)
    tracking._settings = Settings()
    tracking._dashboard = Page.open(run_in(folder, step=10**6))  # hides nothing of an earlier start
    tracking._notes = Notes.open(folder, "page")
    tracking._seen = [*tracking._notes.shown]
    return tracking


@pytest.mark.parametrize("killed", [False, True])
def test_no_step_is_shown_twice_when_a_dashboard_cannot_forget(tmp_path: Path, killed: bool):
    """After a rollback within a run, or a kill in the middle of an epoch."""
    tracking = tracked(tmp_path)
    for step in (10, 20):
        tracking.log({"train_loss": 1.0}, step, 0.5)
    if killed:
        tracking._dashboard.finish(0)
        tracking = tracked(tmp_path)
    else:
        tracking.rewind(10)
    for step in (20, 30):
        tracking.log({"train_loss": 2.0}, step, 0.5)
    tracking.finish()
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    # Its files are read in the order of their names, which two of one process and second need not be in.
    shown = sorted((event.step, event.value) for event in reader.Scalars("quality/train_loss"))
    assert shown == [(10, 1.0), (20, 1.0), (30, 2.0)]
