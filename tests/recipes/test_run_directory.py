"""The run directory: what is in it, and what the same command does a second time. In this process, on tiny data."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.conftest import TIMES, TINY, contents, recipe, write_folders, write_image
from toolkit import Settings
from toolkit.models.inspection import plan_model
from toolkit.training import loop

pytestmark = pytest.mark.pages
PROGRESSIVE = (
    *TINY,
    "--scales",
    "16,32",
    "--progressive",
    "--epochs",
    "2",
    "--num-workers",
    "1",
    "--hourly-cost",
    "36",
)
PROGRESSIVE = (*PROGRESSIVE, "--record-samples")


def weights(run: Path) -> dict[str, bytes]:
    """Every tensor of the last checkpoint, as bytes."""
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(newest / "model.safetensors").items()}


def samples(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def learned(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what a clock or the memory says."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows(run)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished progressive run, to be read only."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert recipe("multiscale")([*PROGRESSIVE, "--output-dir", str(run)]) == 0
    return run


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def test_a_run_directory_holds_all_its_files_when_a_run_is_done(finished: Path):
    assert {path.name for path in finished.iterdir()} == {
        "config.yaml",
        "class_map.json",
        "metrics.csv",
        "steps.csv",
        "samples.jsonl",
        "summary.json",
        "checkpoints",
        "best",
        "predictions",
        "report.html",
        ".lock",
    }
    assert [path.name for path in sorted((finished / "checkpoints").iterdir())] == ["step-000000005", "step-000000010"]
    assert [path.name for path in (finished / "best").iterdir()] == ["model.safetensors"]


def test_the_config_holds_everything_resolved_but_the_directory_when_a_run_is_done(finished: Path):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert set(Settings.model_fields) - {"output_dir", "resume", "alone", "take_over", "upload_wait_s"} <= set(config)
    assert (config["arch"], config["epochs"], config["learning_rate"], config["batch_size"]) == (
        "test_resnet",
        2,
        4e-3,
        24,
    )
    assert (config["strategy"], config["scales"], config["norm_per_scale"]) == ("progressive", [16, 32], "off")


def test_the_class_map_names_every_label_when_a_run_is_done(finished: Path):
    classes = json.loads((finished / "class_map.json").read_text())
    assert list(classes) == [str(label) for label in range(10)]
    assert list(classes.values()) == sorted(classes.values())
    assert classes["0"] == "cross-checks"


def test_metrics_have_a_row_an_epoch_when_a_run_is_done(finished: Path):
    found, gmacs = rows(finished), plan_model(Settings(), 10, (16, 32)).gmacs
    columns = ("epoch", "step", "images_seen", "phase", "sizes")
    assert [tuple(row[name] for name in columns) for row in found] == [
        ("0", "5", "120", "0", "16"),
        ("1", "10", "240", "1", "32"),
    ]
    assert [float(row["save_seconds"]) > 0 for row in found] == [False, True]  # an epoch's save counts to the next row
    for row in found:
        assert float(row["lr"]) >= 0
        assert float(row["train_loss"]) > 0
        assert float(row["images_per_s"]) == float(row["images_per_s_per_device"]) > 0
        gflop = 6 * gmacs[int(row["sizes"])]  # of an image: forward, and backward for inputs and weights
        assert float(row["tflops"]) == pytest.approx(gflop * float(row["images_per_s"]) / 1000)
        assert 0 < float(row["share_of_peak"]) < 1
        assert 0 <= float(row["data_wait_share"]) <= 1
        assert 0 < float(row["step_p50_ms"]) <= float(row["step_p95_ms"])
        assert 0 < float(row["peak_memory_gb"]) < 100
        assert float(row["gradient_norm"]) > 0
        assert (row["clipped_share"], row["skipped_steps"], row["regularization"]) == ("0.0", "0", "1.0")
        assert float(row["eval_seconds"]) > 0
        assert "gradient_scale" not in row  # only float16 has one
        assert 0 <= float(row["32px/top1"]) <= float(row["32px/top5"]) <= 100
        assert float(row["16px/loss"]) > 0  # both epochs end a phase, so the whole panel is there


def test_samples_are_what_each_step_was_promised_when_they_are_recorded(finished: Path):
    lines = samples(finished)
    assert [line["step"] for line in lines] == list(range(10))
    assert [line["sizes"] for line in lines] == [[16]] * 5 + [[32]] * 5
    assert {line["rank"] for line in lines} == {0}
    for epoch in (lines[:5], lines[5:]):
        assert sorted(i for line in epoch for i in line["ids"]) == list(range(120))
    assert lines[0]["ids"] != lines[5]["ids"]
    # warm-up over the first of two epochs, taken at the middle of each step: 0.1, 0.3 ... of the peak
    assert [line["lr"] for line in lines[:5]] == pytest.approx([4e-4, 1.2e-3, 2e-3, 2.8e-3, 3.6e-3])
    assert lines[9]["lr"] > 0


def test_the_summary_tells_how_it_ended_when_a_run_is_done(finished: Path):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["exit_reason"] == "done"
    assert set(summary["val"]) == set(summary["test"]) == {"16px", "32px"}
    assert (summary["val"]["32px"]["images"], summary["test"]["32px"]["images"]) == (20, 40)
    assert summary["best_top1"] == summary["val"]["32px"]["top1"] == max(float(r["32px/top1"]) for r in rows(finished))
    assert summary["cost"] == pytest.approx(summary["wall_seconds"] / 100)
    assert ", at 36.0 an hour and machine" in (finished / "report.html").read_text()
    final = rows(finished)[-1]
    assert (summary["final"]["step"], summary["final"]["sizes"]) == (10, 32)
    assert summary["final"]["train_loss"] == float(final["train_loss"])
    assert summary["save_seconds"] >= sum(float(row["save_seconds"]) for row in rows(finished))
    assert (summary["steps"], summary["images_seen"], summary["processes"]) == (10, 240, 1)
    assert 0 < summary["train_seconds"] <= summary["wall_seconds"]
    assert summary["images_per_s"] == pytest.approx(240 / summary["train_seconds"])
    assert summary["peak_memory_gb"] > 0
    assert 0 < summary["latency_ms"]["16px"] < 1000
    assert set(summary["latency_ms"]) == {"16px", "32px"}
    peaks = {row["sizes"]: float(row["peak_memory_gb"]) for row in rows(finished)}
    assert summary["peak_memory_gb_by_sizes"] == peaks
    assert summary["peak_memory_gb"] >= max(peaks.values())
    assert set(summary["versions"]) >= {"python", "torch", "accelerate", "timm", "toolkit"}


def test_a_page_shows_the_run_when_it_is_done(finished: Path):
    page = (finished / "report.html").read_text()
    for words in ("<b>Done</b> 2 of 2 epochs done", "Top-1 against image size", "Confusion", "Hardest images"):
        assert words in page


def test_the_settings_that_were_given_stand_out_and_no_others_when_a_run_is_done(finished: Path):
    changed = re.findall(r'class="changed"><dt>(\w+)</dt><dd>([^<]*)', (finished / "report.html").read_text())
    assert changed == [
        ("strategy", "progressive"),
        ("scales", "16, 32"),
        ("num_workers", "1"),
        ("epochs", "2"),
        ("batch_size", "24"),
        ("log_with", "none"),
        ("hourly_cost", "36.0"),
        ("record_samples", "on"),
    ]


def test_a_page_says_why_when_a_run_fails(tmp_path: Path, capsys):
    words = [*PROGRESSIVE, "--learning-rate", "1e30", "--output-dir", "out"]
    assert recipe("multiscale")(words) == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>Failed</b>" in page
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["exit_reason"].partition(":")[0] in page
    assert "No epoch has been evaluated" in page


def test_a_run_ends_well_when_its_page_cannot_be_written(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("toolkit.runs.report.page.render", lambda records, errors_on: 1 / 0)
    words = [*TINY, "--img-size", "16", "--epochs", "1", "--num-workers", "0", "--output-dir", "out"]
    assert recipe("single_scale")(words) == 0
    assert "report.html could not be written: ZeroDivisionError" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["exit_reason"] == "done"


def test_nothing_is_done_when_a_finished_run_is_run_again(copied: Path, capsys):
    before = contents(copied)
    assert recipe("multiscale")([*PROGRESSIVE, "--output-dir", str(copied)]) == 0
    assert contents(copied) == before
    out = capsys.readouterr().out
    top1 = json.loads((copied / "summary.json").read_text())["test"]["32px"]["top1"]
    reached = f"this run is finished (test top-1 {top1:.2f}%); see {copied}/report.html."
    assert f"finished  {reached} To train again: another --output-dir\n" in out
    assert "epoch " not in out.replace("epochs", "")


@pytest.mark.parametrize("change", [("--log-with", "tensorboard"), ("--num-workers", "0")])
def test_nothing_is_written_when_a_finished_run_is_run_again_with_another_machine_in_mind(copied: Path, change):
    before = contents(copied)
    assert recipe("multiscale")([*PROGRESSIVE, "--output-dir", str(copied), *change]) == 0
    assert contents(copied) == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            ("--epochs", "4"),
            "was trained with --epochs 2, now 4. A run keeps its settings and data: go back to those, or",
        ),
        (("--seed", "7"), "--seed 0, now 7"),
        (("--scales", "16,24"), "--scales 16,32, now 16,24"),
        (("--batch-size", "12"), "--batch-size 24, now 12"),
        (
            ("--no-hflip", "--gradient-clip", "0.5"),
            "--hflip, now --no-hflip; no --gradient-clip, now --gradient-clip 0.5",
        ),
        (("--model-kwargs", "output_stride=8"), "no --model-kwargs, now --model-kwargs output_stride=8"),
        (("--resume", "never"), "--resume never"),
    ],
)
def test_a_directory_is_refused_with_the_difference_when_it_holds_a_run_with_other_settings(
    copied: Path, capsys, change: tuple[str, ...], told: str
):
    before = contents(copied)
    assert recipe("multiscale")([*PROGRESSIVE, "--output-dir", str(copied), *change]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1
    assert contents(copied) == before


def test_a_directory_is_refused_when_it_holds_other_files(tmp_path: Path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("all my work")
    assert recipe("multiscale")([*PROGRESSIVE, "--output-dir", "thesis"]) == 2
    assert "--output-dir thesis: the folder holds other files" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_a_run_is_repeated_bit_for_bit_when_its_config_is_given_elsewhere(finished: Path, tmp_path: Path):
    config = str(finished / "config.yaml")
    assert recipe("multiscale")(["--config", config, "--output-dir", "again", "--num-workers", "2"]) == 0
    assert weights(tmp_path / "again") == weights(finished)
    assert samples(tmp_path / "again") == samples(finished)
    assert learned(tmp_path / "again") == learned(finished)
    assert recipe("multiscale")(["--config", config, "--output-dir", "other", "--seed", "1"]) == 0
    assert weights(tmp_path / "other") != weights(finished)  # control


def cut_off(run: Path, epochs_left: int = 1) -> None:
    """As if the run had been killed within its last epoch."""
    newest = sorted((run / "checkpoints").glob("step-*"))[-epochs_left:]
    for path in newest:
        shutil.rmtree(path)
    (run / "summary.json").unlink()


@pytest.mark.parametrize("resume", [(), ("--resume", "copied")])
def test_a_run_ends_with_the_same_weights_when_it_was_cut_off_and_goes_on(
    copied: Path, finished: Path, capsys, resume: tuple[str, ...]
):
    cut_off(copied)
    words = PROGRESSIVE if resume else (*PROGRESSIVE, "--output-dir", str(copied))
    assert recipe("multiscale")([*words, *resume]) == 0
    assert "continuing from" in capsys.readouterr().out
    assert weights(copied) == weights(finished)
    assert samples(copied) == samples(finished)
    assert learned(copied) == learned(finished)


def test_a_run_goes_on_when_its_metrics_have_fewer_columns(copied: Path):
    """As of a release that did not measure arithmetic."""
    cut_off(copied)
    new = {"tflops", "share_of_peak"}
    old = [{name: value for name, value in row.items() if name not in new} for row in rows(copied)]
    with (copied / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*old[0]])
        writer.writeheader()
        writer.writerows(old)
    assert recipe("multiscale")([*PROGRESSIVE, "--output-dir", str(copied)]) == 0
    first, second = rows(copied)
    assert [first[name] for name in new] == ["", ""]
    assert all(float(second[name]) > 0 for name in new)
    assert {name: first[name] for name in old[0]} == old[0]
    page = (copied / "report.html").read_text()
    assert "Arithmetic, share of the peak" in page
    assert "nan" not in page


def test_the_page_says_that_a_run_goes_on_before_its_next_epoch_when_it_is_resumed(copied: Path, monkeypatch):
    cut_off(copied)
    train_step, seen = loop.train_step, []

    def looking(*words):
        seen.append((copied / "report.html").read_text())
        return train_step(*words)

    monkeypatch.setattr(loop, "train_step", looking)
    assert "1 of 2 epochs done when this page was written" not in (copied / "report.html").read_text()  # control
    assert recipe("multiscale")([*PROGRESSIVE, "--output-dir", str(copied)]) == 0
    assert "1 of 2 epochs done when this page was written" in seen[0]


def test_a_run_goes_on_when_workers_logging_and_device_batch_change(copied: Path, finished: Path):
    cut_off(copied)
    words = [word for word in PROGRESSIVE if word not in ("--log-with", "none", "--record-samples")]
    words += ["--log-with", "tensorboard", "--num-workers", "0", "--device-batch-size", "12"]
    assert recipe("multiscale")([*words, "--output-dir", str(copied)]) == 0
    assert [row["step"] for row in rows(copied)] == ["5", "10"]
    assert rows(copied)[0]["train_loss"] == rows(finished)[0]["train_loss"]
    assert yaml.safe_load((copied / "config.yaml").read_text())["device_batch_size"] == 12
    assert json.loads((copied / "summary.json").read_text())["exit_reason"] == "done"
    assert list(copied.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(("name", "text"), [("summary.json", '{ "exit_rea'), ("metrics.csv", "epoch,step\nx,y\n")])
def test_a_run_is_refused_and_left_as_it_is_when_a_record_is_damaged(copied: Path, name: str, text: str, capsys):
    cut_off(copied)
    (copied / name).write_text(text)
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file() and path.name[0] != "."}
    assert recipe("multiscale")([*PROGRESSIVE, "--output-dir", str(copied)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {copied / name}: ")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_newest_unfinished_run_goes_on_when_no_directory_is_given(finished: Path, tmp_path: Path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "runs" / "multiscale-test_resnet-20260101-000000"))
    cut_off(run)
    assert recipe("multiscale")(PROGRESSIVE) == 0
    told = capsys.readouterr().out
    assert str(run.relative_to(tmp_path)) in told
    assert "--resume never" in told
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.name]
    assert weights(run) == weights(finished)


def cache_of(run: Path) -> str:
    return yaml.safe_load((run / "config.yaml").read_text())["cache"]


def test_a_run_keeps_the_cache_it_began_with_when_memory_changes(copied: Path, tmp_path: Path, monkeypatch, capsys):
    cut_off(copied)
    new = tmp_path / "new"
    with monkeypatch.context() as crowded:
        crowded.setattr("toolkit.training.run_plan._free_gb", lambda: 1e-6)
        assert recipe("multiscale")([*PROGRESSIVE, "--output-dir", str(copied)]) == 2
        assert "--cache ram: 0.0 GB of decoded images in each process would not fit" in capsys.readouterr().err
        assert recipe("multiscale")([*PROGRESSIVE, "--output-dir", str(new)]) == 0  # a new one takes what there is
    assert (cache_of(copied), cache_of(new)) == ("ram", "off")
    expected = samples(new)
    cut_off(new)
    capsys.readouterr()
    assert recipe("multiscale")([*PROGRESSIVE, "--output-dir", str(new)]) == 0
    assert "nothing cached" in capsys.readouterr().out
    assert cache_of(new) == "off"
    assert samples(new) == expected
    assert recipe("multiscale")([*PROGRESSIVE, "--output-dir", str(new), "--cache", "ram"]) == 2
    assert "--cache off, now ram" in capsys.readouterr().err


def test_a_plan_is_shown_and_nothing_written_when_it_is_a_dry_run(tmp_path: Path, capsys):
    assert recipe("multiscale")([*PROGRESSIVE, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in (
        "24 images per step = 1 process(es) x 24 images x 1 micro-batch(es)",
        "2 epochs x 5 steps = 10 steps",
        "phase 0",
        "at 16 px",
        "phase 1",
        "at 32 px",
        "multiply-adds per image: 16 px",
        "train 120, val 20, test 40 images, 10 classes",
        "note      the last feature map of test_resnet is 1 x 1 at 16 and 32 px: --model-kwargs output_stride=8",
    ):
        assert words in out
    assert list(tmp_path.iterdir()) == []


def test_training_stops_early_in_the_last_phase_only_when_patience_runs_out(tmp_path: Path, capsys):
    words = [*TINY, "--scales", "16,32", "--progressive", "--epochs", "9", "--scale-epochs", "3", "--num-workers", "0"]
    words += ["--patience", "1", "--min-delta", "100", "--output-dir", "out"]  # nothing can improve by 100 points
    assert recipe("multiscale")(words) == 0
    assert [row["epoch"] for row in rows(tmp_path / "out")] == ["0", "1", "2", "3", "4"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["exit_reason"] == "early stop"
    before = contents(tmp_path / "out")
    assert recipe("multiscale")(words) == 0  # and stays stopped
    assert contents(tmp_path / "out") == before


def test_a_single_scale_run_is_repeated_when_its_config_is_given_elsewhere(tmp_path: Path, capsys):
    words = [
        *TINY,
        "--img-size",
        "16",
        "--eval-scales",
        "16,20",
        "--epochs",
        "1",
        "--num-workers",
        "0",
        "--dropout-rate",
    ]
    assert recipe("single_scale")([*words, "0.2", "--output-dir", "one"]) == 0
    assert recipe("single_scale")(["--config", "one/config.yaml", "--output-dir", "two"]) == 0
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    assert set(json.loads((tmp_path / "two" / "summary.json").read_text())["test"]) == {"16px", "20px"}
    capsys.readouterr()
    assert recipe("multiscale")(["--config", "one/config.yaml", "--output-dir", "three"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "three").exists()


def test_a_run_is_not_continued_when_the_data_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_folders(tmp_path / "data", {"train": 9, "val": 2})
    words = ["--data-root", str(tmp_path / "data"), "--img-size", "16", "--batch-size", "6", "--epochs", "2"]
    words += ["--arch", "test_resnet", "--log-with", "none", "--num-workers", "0", "--output-dir", "out"]
    assert recipe("single_scale")(words) == 0
    (tmp_path / "out" / "summary.json").unlink()
    shutil.rmtree(max((tmp_path / "out" / "checkpoints").iterdir()))  # killed before its end
    stopped = contents(tmp_path / "out")
    write_image(tmp_path / "data" / "train" / "cat" / "new.png", seed=1)
    assert recipe("single_scale")(words) == 2
    assert "was trained with 18 train images, now 19. A run keeps" in capsys.readouterr().err
    assert contents(tmp_path / "out") == stopped
    (tmp_path / "data" / "train" / "cat" / "new.png").unlink()
    assert recipe("single_scale")(words) == 0  # the control
