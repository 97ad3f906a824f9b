"""The run directory: what a run may be continued with, and its records."""

import json
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolkit import InputError, Progressive, Settings, Strategy
from toolkit.data.loading.batches import Batch
from toolkit.runs.directory import RunDirectory
from toolkit.runs.metrics_row import MetricsRow
from toolkit.runs.progress import Progress
from toolkit.runs.quarantine import Quarantine
from toolkit.runs.resume_rules import acquire_run
from toolkit.runs.run_config import config_of
from toolkit.runs.sample_log import SampleLog
from toolkit.strategies.base import Step
from toolkit.system.run_lock import RunLock, refuse_if_locked

STRATEGY = Progressive((16, 32))


def settings(**values) -> Settings:
    return Settings(**{"synthetic_count": 100, **values})


def fingerprint(wanted: Settings, strategy: Strategy = STRATEGY, images: str = "these") -> dict[str, Any]:
    """What a run is of; `images` stands for their hash."""
    data = {"train": {"images": 90, "sha256": images}, "val": {"images": 10, "sha256": images}}
    return {"config": config_of(wanted, strategy), "data": data, "classes": ["cat", "dog"]}


def row(epoch: int, step: int, **metrics: float) -> MetricsRow:
    return MetricsRow(epoch, step, 12 * step, 0, (16, 32), metrics)


def chosen(strategy: Strategy = STRATEGY, images: str = "these", **values) -> tuple[Path, Path | None, str]:
    wanted = settings(**values)
    run, start, line = acquire_run(wanted, "multiscale", fingerprint(wanted, strategy, images))
    run.lock.release()
    return run.path, start, line


def begun(path: Path, step: int | None = 5, **values) -> RunDirectory:
    """A run with one checkpoint, or with none."""
    run = RunDirectory(path)
    run.create(config_of(settings(**values), STRATEGY), ["cat", "dog"])
    if step is not None:
        run.store.commit(step, {"model.safetensors": {"x": torch.zeros(1)}}, fingerprint(settings(**values)))
    return run


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_new_run_is_named_after_recipe_architecture_and_time_when_there_is_none():
    path, start, line = chosen()
    assert path.parent == Path("runs")
    assert path.match("runs/multiscale-test_resnet-????????-??????")
    assert (start, line) == (None, "")
    assert [entry.name for entry in path.iterdir()] == [".lock"]


def test_a_new_run_has_another_name_when_two_start_within_a_second():
    assert len({chosen()[0] for _ in range(4)}) == 4


def test_an_unfinished_run_goes_on_with_its_cache_when_none_is_asked_for():
    begun(Path("runs/multiscale-test_resnet-20260101-000000"), cache="disk")
    assert chosen(cache="auto")[1] is not None
    assert chosen(cache="ram")[1] is None  # control


def test_an_unfinished_run_goes_on_when_its_learning_settings_are_the_same():
    begun(Path("runs/multiscale-test_resnet-20260101-000000"))
    path, start, line = chosen(num_workers=1, device_batch_size=4, log_with="none")
    assert path == Path("runs/multiscale-test_resnet-20260101-000000")
    assert start == path / "checkpoints/step-000000005"
    assert str(path) in line
    assert "--resume never starts a new one" in line


@pytest.mark.parametrize(
    "change", [{"epochs": 5}, {"seed": 1}, {"batch_size": 8}, {"amp": True}, {"synthetic_count": 50}]
)
def test_an_unfinished_run_is_left_alone_when_learning_settings_differ(change):
    begun(Path("runs/multiscale-test_resnet-20260101-000000"))
    assert chosen()[1] is not None  # control
    assert chosen(**change)[1] is None
    assert chosen(Progressive((16, 24)))[1] is None


def test_an_unfinished_run_goes_on_when_its_images_lie_elsewhere_but_not_with_others():
    begun(Path("runs/multiscale-test_resnet-20260101-000000"), data_root="/old/photos", synthetic_count=None)
    elsewhere = {"data_root": "/new/photos", "synthetic_count": None}
    assert chosen(**elsewhere)[1] is not None
    assert chosen(images="others", **elsewhere)[1] is None


@pytest.mark.parametrize("reason", ["done", "early stop"])
def test_a_finished_run_is_left_alone_when_it_lies_under_runs(reason: str):
    run = begun(Path("runs/multiscale-test_resnet-20260101-000000"))
    run.write_summary({"exit_reason": "the loss is not finite"})
    assert chosen()[1] is not None
    run.write_summary({"exit_reason": reason})
    assert chosen()[1] is None


@pytest.mark.parametrize(("name", "text"), [("summary.json", '{ "exit_rea'), ("config.yaml", "a: [")])
def test_a_run_with_a_damaged_file_is_left_alone_when_it_lies_under_runs(name: str, text: str, caplog):
    older = begun(Path("runs/multiscale-test_resnet-20260101-000000"))
    damaged = begun(Path("runs/multiscale-test_resnet-20260101-000001"))
    (damaged.path / name).write_text(text)
    with caplog.at_level(logging.INFO):
        assert chosen()[0] == older.path
    assert f"{damaged.path / name}: " in caplog.text


@pytest.mark.parametrize("path", ["checkpoints/exp1", "checkpoints/exp1/checkpoints/step-000000005"])
def test_a_run_goes_on_when_it_lies_in_a_folder_of_checkpoints(path: str):
    """As `--checkpoint-dir checkpoints/exp1` puts it."""
    begun(Path("checkpoints/exp1"))
    found, start, _ = chosen(resume=path)
    assert (found, start) == (Path("checkpoints/exp1"), Path("checkpoints/exp1/checkpoints/step-000000005"))
    refuse_if_locked(None, path)
    owner = RunLock(found)
    owner.acquire()
    with pytest.raises(InputError, match="checkpoints/exp1"):
        refuse_if_locked(None, path)
    owner.release()


def test_a_run_of_another_recipe_or_without_checkpoint_is_left_alone_when_it_lies_under_runs():
    begun(Path("runs/single_scale-test_resnet-20260101-000000"))
    begun(Path("runs/multiscale-test_resnet-20260101-000000"), step=None)
    assert chosen()[1] is None


def test_a_new_run_starts_when_resume_is_never():
    begun(Path("runs/multiscale-test_resnet-20260101-000000"))
    path, start, _ = chosen(resume="never")
    assert start is None
    assert path != Path("runs/multiscale-test_resnet-20260101-000000")


def test_a_run_is_left_alone_when_another_process_has_it():
    run = begun(Path("runs/multiscale-test_resnet-20260101-000000"))
    run.lock.acquire()
    assert chosen()[1] is None
    with pytest.raises(InputError, match="another run is using it"):
        chosen(output_dir=run.path)
    with pytest.raises(InputError, match="another run is using it"):
        chosen(resume=str(run.path))
    run.lock.release()
    assert chosen()[0] == run.path


def test_going_back_is_refused_when_the_run_is_finished():
    run = begun(Path("out"))
    run.write_summary({"exit_reason": "done"})
    with pytest.raises(InputError, match="that run is finished"):
        chosen(resume="out/checkpoints/step-000000005")


def test_a_directory_is_refused_when_it_cannot_be_made():
    Path("thesis.txt").write_text("all my work")
    with pytest.raises(InputError, match=r"--output-dir: thesis\.txt"):
        chosen(output_dir="thesis.txt/run")


def test_a_given_directory_goes_on_when_it_holds_a_checkpoint():
    begun(Path("out"))
    path, start, line = chosen(output_dir="out")
    assert (path, start) == (Path("out"), Path("out/checkpoints/step-000000005"))
    assert "continuing from" in line


def test_a_given_directory_starts_over_when_no_checkpoint_was_committed():
    begun(Path("out"), step=None)
    assert chosen(output_dir="out")[1] is None
    assert "starting over" in chosen(output_dir="out")[2]


@pytest.mark.parametrize("exists", [False, True])
def test_a_given_directory_is_taken_when_it_is_empty_or_new(exists: bool):
    if exists:
        Path("out").mkdir()
    assert chosen(output_dir="out") == (Path("out"), None, "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 5, "output_dir": "out"}, "--epochs 12, now 5"),
        ({"seed": 3, "output_dir": "out"}, "--seed 0, now 3"),
        ({"output_dir": "out", "resume": "never"}, "--resume never forbids to continue it"),
        ({"output_dir": "other"}, "holds other files"),
        ({"resume": "nowhere"}, "--resume nowhere"),
        ({"resume": "other"}, "--resume other"),
        ({"resume": "out", "seed": 3}, "--seed 0, now 3"),
        ({"resume": "out", "output_dir": "new"}, "drop --output-dir new"),
        ({"resume": "out/checkpoints/step-000000006"}, "--resume out/checkpoints/step-000000006"),
    ],
)
def test_a_directory_is_refused_when_it_would_meet_another_runs_files(change, words: str):
    begun(Path("out"))
    Path("other").mkdir()
    Path("other/thesis.txt").write_text("all my work")
    with pytest.raises(InputError, match=words):
        chosen(**change)


def test_a_directory_is_refused_with_every_difference_when_the_strategy_is_another():
    begun(Path("out"))
    with pytest.raises(InputError, match="--scales 16,32, now 16,24"):
        chosen(Progressive((16, 24)), output_dir="out")


@pytest.mark.parametrize("name", ["out", "out/checkpoints/step-000000003"])
def test_a_named_run_or_checkpoint_goes_on_when_resume_names_it(name: str):
    begun(Path("out"), 3)
    begun(Path("out"), 5)
    expected = Path("out/checkpoints/step-000000005") if name == "out" else Path(name)
    assert chosen(resume=name)[:2] == (Path("out"), expected)


def test_records_are_cut_to_the_step_that_is_resumed_when_later_ones_will_be_repeated():
    run = begun(Path("out"))
    for epoch in range(4):
        run.add_metrics(row(epoch, 5 * (epoch + 1), lr=0.1))
    lines = [json.dumps({"step": step, "ids": [step]}) + "\n" for step in range(20)]
    run.samples.write_text("".join(lines) + '{"step": 4, "id')  # killed within a line
    run.truncate_to(Progress(step=10, epoch=2))
    assert [row.step for row in run.metrics()] == [5, 10]
    assert run.samples.read_text() == "".join(lines[:10])


def test_metrics_get_a_column_when_a_later_epoch_has_more():
    run = begun(Path("out"))
    rows = [row(0, 5, **{"32px/top1": 50.0}), row(1, 10, **{"32px/top1": 60.0, "16px/top1": 40.0})]
    for each in rows:
        run.add_metrics(each)
    assert run.metrics() == rows
    assert (run.path / "metrics.csv").read_text().splitlines() == [
        "epoch,step,images_seen,phase,sizes,32px/top1,16px/top1",
        "0,5,60,0,16+32,50.0,",
        "1,10,120,0,16+32,60.0,40.0",
    ]


@pytest.mark.parametrize("text", ["0.1", "-3", "1e-05", "nan", "12", "0.30000000000000004"])
def test_a_number_keeps_its_digits_when_a_row_is_written_again(text: str):
    cells = {"epoch": "0", "step": "1", "images_seen": "2", "phase": "0", "sizes": "16", "lr": text}
    assert {name: str(cell) for name, cell in MetricsRow.from_cells(cells).columns().items()} == cells


def test_columns_of_earlier_versions_are_read_under_their_new_names():
    assert MetricsRow.from_cells({"epoch": "0", "strength": "0.5"}).metrics == {"regularization": 0.5}


def test_classes_are_written_by_label_when_a_run_is_created():
    begun(Path("out"))
    assert json.loads(Path("out/class_map.json").read_text()) == {"0": "cat", "1": "dog"}


def test_what_was_delivered_is_written_when_samples_are_recorded():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 4, 4, 3).permute(0, 3, 1, 2)
    batch = Batch(images, torch.tensor([0, 1]), np.array([17, 3]), Step((2, 4), 2), 6)
    log = SampleLog(Path("samples.jsonl"), 1)
    log.add(batch, 0.25)
    log.add(batch._replace(number=7), 0.125)
    lines = [json.loads(line) for line in Path("samples.jsonl").read_text().splitlines()]
    planes = [np.ascontiguousarray(image.numpy()).tobytes() for image in images]
    expected = {"step": 6, "rank": 1, "sizes": [2, 4], "ids": [17, 3], "digests": [zlib.crc32(p) for p in planes]}
    assert lines == [{**expected, "lr": 0.25}, {**expected, "step": 7, "lr": 0.125}]


def test_nothing_is_written_when_samples_are_not_recorded():
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    SampleLog(None, 0).add(Batch(images, torch.tensor([0]), np.array([0]), Step((4,), 1), 0), 0.1)
    assert list(Path().iterdir()) == []


def test_the_quarantine_goes_on_when_its_last_line_was_cut_off(tmp_path: Path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, 0).add([("a.png", "the file is empty")])
    path.write_text(path.read_text() + '{"name": "b.p')
    again = Quarantine(path, 1)
    again.add([("a.png", "the file is empty"), ("b.png", "no image")])
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["a.png", "b.png"]


def test_a_directory_is_as_good_as_empty_when_its_first_file_was_not_written(tmp_path: Path):
    Path("out").mkdir()
    Path("out/.tmp-123-config.yaml").write_text("seed")
    Path("out/.lock").touch()
    assert chosen(output_dir="out")[1:] == (None, "")


def test_the_same_command_goes_on_when_it_has_gone_back_before():
    run = begun(Path("out"), 5)
    run.store.commit(8, {"model.safetensors": {"x": torch.zeros(1)}}, fingerprint(settings()))
    five, seven, eight = (Path(f"out/checkpoints/step-{step:09d}") for step in (5, 7, 8))
    assert chosen(resume=str(five))[1] == five
    assert not eight.exists()
    run.store.commit(7, {"model.safetensors": {"x": torch.zeros(1)}}, fingerprint(settings()))
    path, start, line = chosen(resume=str(five))  # after a preemption
    assert (path, start) == (Path("out"), seven)
    assert "which comes after out/checkpoints/step-000000005" in line
    assert chosen(resume=str(seven))[1] == seven  # going back to another one is something new


def test_records_end_where_the_checkpoint_does():
    run = begun(Path("out"))
    for epoch, step in enumerate((2, 4)):
        run.add_metrics(row(epoch, step))
    lines = [json.dumps({"step": step, "ids": [step]}) + "\n" for step in range(4)]
    run.samples.write_text("".join(lines) + '{"step": 4, "i{"step": 4, "ids": [4]}\n' + '{"step"')
    run.truncate_to(Progress(step=4, epoch=1))  # the second epoch was trained, and stopped in its evaluation
    assert [row.epoch for row in run.metrics()] == [0]
    assert run.samples.read_text() == "".join(lines)
