"""What docs/dashboards.md promises is found by each dashboard's own reader, also after a resumed run. Offline."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import forkserver
from tests.conftest import ROOT, recipe, write_folders
from toolkit import Settings
from toolkit.training import device

WANDB = Path(sys.executable).with_name("wandb")
RUN = (
    *("--synthetic-count", "120", "--synthetic-size", "32", "--batch-size", "24", "--scales", "16,32"),
    *("--ema-decay", "0.9", "--gradient-clip", "1", "--hourly-cost", "3.6", "--num-workers", "1"),
    *("--consistency-weight", "1"),
)
SIZES = ("16", "32")
STEPS = 5  # an epoch


def documented(*also: str) -> set[str]:
    """The metrics of docs/dashboards.md that a run must have; `also`: with float16, quarantine, matrix, select."""
    table = re.findall(r"^\| `([^`]+)` \|[^|]+\|([^|]+)\|", (ROOT / "docs/dashboards.md").read_text(), re.MULTILINE)
    assert len(table) >= 40
    special = {"float16", "quarantine", "matrix", "select"} - {*also}
    there = [name for name, when in table if not special & {*re.findall(r"\w+", when)}]
    names = {
        name.replace("TRAINED", size).replace("SIZES", "16+32").replace("SIZE", size)
        for name in there
        for size in SIZES
    }
    assert {"quality/32px/top1", "quality/train_loss/16px", "run/cost", "errors/balanced_accuracy"} <= names
    return names


def train(output: Path, *words: str, epochs: int = 2, **env: str) -> int:
    """As a user would."""
    command = [sys.executable, str(ROOT / "recipes/multiscale.py"), *RUN, "--epochs", str(epochs), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    done = forkserver.run([*command, "--output-dir", str(output)], cwd=output.parent, env=environment)
    return done.returncode


def forget_the_end(output: Path) -> None:
    """The run as a kill would have left it in its last epoch: a checkpoint and no summary."""
    newest = max((output / "checkpoints").glob("step-*"))
    assert len([*newest.parent.glob("step-*")]) > 1
    shutil.rmtree(newest)
    (output / "summary.json").unlink()


# wandb


@dataclass
class Log:
    """One start of a run, as wandb's reader tells it: records by type."""

    records: list[dict[str, Any]]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [record.get(kind, {}) for record in self.records if record["type"] == kind]

    @property
    def history(self) -> list[dict[str, Any]]:
        return [row["item"] for row in self.all("history")]


@pytest.fixture(scope="module")
def on_wandb(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Log]]:
    """A run that is asked to stop in its second epoch, and goes on."""
    output = tmp_path_factory.mktemp("wandb") / "run"
    words = ("--wandb-mode", "offline", "--wandb-artifact", "--epochs", "8", "--output-dir", str(output))
    command = [sys.executable, "-u", str(ROOT / "recipes/multiscale.py"), *RUN, *words]
    options = {"cwd": output.parent, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    with forkserver.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options) as first:
        assert first.stdout is not None
        said = []
        for line in first.stdout:
            said.append(line)
            if line.startswith("epoch   1"):
                first.send_signal(signal.SIGTERM)
    assert first.returncode == 75, "".join(said)
    assert forkserver.run(command, **options).returncode == 0
    folders = sorted((output / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime)
    assert len(folders) == 2
    return output, [read(folder) for folder in folders]


def read(folder: Path) -> Log:
    inspect = [str(WANDB), "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(inspect, cwd=folder, capture_output=True, text=True, check=True)
    return Log([json.loads(line) for line in done.stdout.splitlines()])


def numbers(logs: Sequence[Log]) -> set[str]:
    """Names of all that is a number, but for the axes and what wandb adds."""
    rows = [row for log in logs for row in log.history]
    names = {name for row in rows for name, value in row.items() if isinstance(value, int | float)}
    return {name for name in names if not name.startswith("_") and "." not in name} - {"global_step", "epoch"}


def test_every_documented_metric_is_on_wandb_and_no_other_when_a_run_is_done(on_wandb: tuple[Path, list[Log]]):
    assert numbers(on_wandb[1]) == documented()


def test_the_metrics_of_float16_and_of_quarantine_are_on_wandb_when_a_run_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What needs float16 comes of its gradient scaler, which works on the CPU too."""
    monkeypatch.chdir(tmp_path)
    start = device.start

    def with_scaler(settings: Settings) -> Accelerator:
        accelerator = start(settings)
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)
        return accelerator

    monkeypatch.setattr(device, "start", with_scaler)
    write_folders(tmp_path / "photos", {"train": 24, "val": 6, "test": 6})
    for split in ("val", "test"):
        (tmp_path / "photos" / split / "cat" / "0.png").write_bytes(b"no image")
    words = ["--data-root", "photos", "--arch", "test_resnet", "--on-bad-sample", "quarantine", *RUN[4:]]
    words += ["--epochs", "1", "--wandb-mode", "offline", "--output-dir", "run"]
    assert recipe("multiscale")(words) == 0
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    log = read(folder)
    assert numbers([log]) == documented("float16", "quarantine")
    last = {name: value for row in log.history for name, value in row.items()}
    assert last["optimization/gradient_scale"] > 1
    assert [last[f"quality/{part}16px/unreadable"] for part in ("", "raw/", "test/")] == [1, 1, 1]


def test_the_tables_are_on_wandb_when_a_run_is_done(on_wandb: tuple[Path, list[Log]]):
    output, (_, log) = on_wandb
    last = {name: value for row in log.history for name, value in row.items()}
    names = ("errors/hardest", "errors/class_accuracy", "errors/confusion_table")
    assert [last[f"{name}._type"] for name in names] == ["table-file"] * 3
    assert [last[f"{name}.nrows"] for name in names] == [20, 10, 100]  # val images, at most 24; classes; their pairs
    (file,) = (output / "wandb").rglob("hardest_*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["image", "name", "label", "16px", "32px"]
    assert re.fullmatch(r"[a-z-]+ \(\d+%\)", table["data"][0][4])
    (kept,) = (artifact for artifact in log.all("artifact") if "errorshardest" in artifact["name"])
    assert len([entry for entry in kept["manifest"]["contents"] if entry["path"].endswith(".jpg")]) == 20


def test_the_best_model_is_on_wandb_once_when_it_is_asked_for(on_wandb: tuple[Path, list[Log]]):
    output, logs = on_wandb
    models = [artifact for log in logs for artifact in log.all("artifact") if artifact["type"] == "model"]
    assert len(models) == 1
    best = json.loads((output / "summary.json").read_text())["val"]
    metadata = json.loads(models[0]["metadata"])
    assert json.loads((output / ".dashboard-wandb.json").read_text())["model"] == metadata["step"]
    assert {"best", f"step-{metadata['step']}"} <= {*models[0]["aliases"]}
    assert {size: metadata[f"best/{size}/top1"] for size in best} == {size: best[size]["top1"] for size in best}
    files = [entry["path"] for entry in models[0]["manifest"]["contents"]]
    assert sorted(files) == ["class_map.json", "config.yaml", "model.safetensors"]


def test_a_preempted_run_says_so_on_wandb_when_it_stops(on_wandb: tuple[Path, list[Log]]):
    _, (first, second) = on_wandb
    assert [log.all("exit")[0].get("exit_code", 0) for log in (first, second)] == [75, 0]
    assert [alert["title"] for alert in first.all("alert")] == ["Preempted"]
    assert len(first.all("preempting")) == 1
    assert second.all("alert") == second.all("preempting") == []


def test_a_run_goes_on_under_its_own_id_on_wandb_when_it_is_resumed(on_wandb: tuple[Path, list[Log]]):
    _, (first, second) = on_wandb
    assert first.all("run")[0]["run_id"] == second.all("run")[0]["run_id"]
    before, after = ([row["global_step"] for row in log.history] for log in (first, second))
    assert 0 < before[-1] < after[0] <= before[-1] + STEPS
    assert after == sorted(after)
    assert after[-1] == 8 * STEPS
    assert [row["run/preemptions"] for row in second.history if "run/preemptions" in row] == [1] * (8 - len(before))


def test_the_cost_is_that_of_the_machine_s_time_when_a_price_is_given(on_wandb: tuple[Path, list[Log]]):
    _, (_, log) = on_wandb
    row = [row for row in log.history if "run/cost" in row][-1]
    assert row["run/cost"] == pytest.approx(row["throughput/wall_seconds"] / 1000)  # 3.6 an hour, one machine


def test_all_that_is_uploaded_later_lies_with_the_run_when_wandb_is_offline(on_wandb: tuple[Path, list[Log]]):
    output, _ = on_wandb
    staged = [path.read_bytes() for path in (output / "wandb" / "artifacts").rglob("*") if path.is_file()]
    assert (output / "best" / "model.safetensors").read_bytes() in staged
    assert any(content.startswith(b"\xff\xd8") for content in staged)  # JPEG


def test_a_run_that_diverges_says_so_on_wandb_when_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words = [*RUN, "--epochs", "2", "--wandb-mode", "offline", "--output-dir", "run", "--learning-rate", "1e30"]
    assert recipe("multiscale")(words) == 1
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    log = read(folder)
    (alert,) = log.all("alert")
    assert alert["title"] == "Diverged"
    assert alert["text"].startswith("the loss or its gradient is not finite")
    assert log.all("exit")[0]["exit_code"] == 1


# TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


@pytest.mark.slow
def test_tensorboard_finds_every_documented_metric_once_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    output = tmp_path / "run"
    assert train(output, "--log-with", "tensorboard") == 0
    found = scalars(output / "tensorboard")
    assert found.keys() == documented()  # no charts of the axes
    reader = EventAccumulator(str(output / "tensorboard"))
    reader.Reload()
    assert reader.Tags()["images"] == ["errors/hardest"]
    assert "run/config/text_summary" in reader.Tags()["tensors"]
    assert {file.parent for file in output.rglob("events.out.tfevents.*")} == {output / "tensorboard"}  # one run, once
    assert {"errors/confusion/text_summary", "errors/class_accuracy/text_summary"} <= {*reader.Tags()["tensors"]}

    forget_the_end(output)
    monkeypatch.chdir(tmp_path)
    words = [*RUN, "--epochs", "2", "--log-with", "tensorboard", "--output-dir", str(output)]
    assert recipe("multiscale")(words) == 0
    again = scalars(output / "tensorboard")
    assert [step for step, _ in again["quality/train_loss"]] == [STEPS, 2 * STEPS]
    assert again["quality/train_loss"] == found["quality/train_loss"]  # a run resumes exactly
    assert [value for _, value in again["run/preemptions"]] == [0, 1]
    assert len([*(output / "tensorboard").rglob("events.out.tfevents.*")]) > 1


def test_tensorboard_is_told_when_a_loss_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words = [*RUN, "--epochs", "2", "--log-with", "tensorboard", "--output-dir", "run", "--learning-rate", "1e30"]
    assert recipe("multiscale")(words) == 1
    reader = EventAccumulator("run/tensorboard")
    reader.Reload()
    (alert,) = reader.Tensors("run/alerts/text_summary")
    assert b"**Diverged** the loss or its gradient is not finite" in alert.tensor_proto.string_val[0]


# trackio


@pytest.fixture(scope="module")
def trackio_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("trackio")
        patch.setenv("TRACKIO_DIR", str(folder))
        yield folder


def logged(folder: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """Run, step and values of each row in trackio's database."""
    with sqlite3.connect(folder / "toolkit.db") as database:
        rows = database.execute("select run_id, step, metrics from metrics order by id").fetchall()
    database.close()
    return [(run, step, json.loads(values)) for run, step, values in rows]


@pytest.mark.slow
def test_trackio_finds_every_documented_metric_once_when_a_run_goes_on(tmp_path: Path, trackio_dir: Path):
    output = tmp_path / "run"
    assert train(output, "--log-with", "trackio") == 0
    rows = logged(trackio_dir)
    numbers = {name for _, _, row in rows for name, value in row.items() if isinstance(value, int | float)}
    assert numbers == documented()  # no charts of the axes
    tables = {name for _, _, row in rows for name in row} - numbers
    assert tables == {"errors/confusion", "errors/class_accuracy", "errors/hardest"}
    assert len([*trackio_dir.rglob("*.jpg")]) == 20
    table = next(row["errors/hardest"] for _, _, row in rows if "errors/hardest" in row)
    assert all(re.match("true .*, predicted ", row["image"]["caption"]) for row in table["_value"])

    forget_the_end(output)
    assert train(output, "--log-with", "trackio", epochs=2) == 0
    again = logged(trackio_dir)
    assert [row[:2] for row in again] == [row[:2] for row in rows]  # what was repeated is not there twice
    assert json.loads((output / ".dashboard-trackio.json").read_text())["starts"] == 2


@pytest.mark.parametrize("name", ["trackio", "tensorboard", "wandb"])
def test_a_dashboard_is_refused_when_its_package_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    assert recipe("multiscale")([*RUN, "--log-with", name, "--output-dir", "run"]) == 2
    assert f"--log-with {name}: the package is not installed: pip install {name}" in capsys.readouterr().err
    assert not Path("run").exists()


def test_trackio_is_refused_when_it_would_send_a_run_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    assert recipe("multiscale")([*RUN, "--log-with", "trackio", "--output-dir", "run"]) == 2
    assert "$TRACKIO_SPACE_ID sends it away: unset it" in capsys.readouterr().err


# The workspace


def test_the_workspace_has_the_five_sections_when_it_is_written_offline(tmp_path: Path):
    file = tmp_path / "layout.json"
    command = [sys.executable, str(ROOT / "recipes/wandb_dashboard.py"), "me/toolkit", "--output", str(file)]
    forkserver.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, check=True)
    layout = json.loads(file.read_text())
    assert (layout["entity"], layout["project"]) == ("me", "toolkit")
    sections = layout["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == ["Quality", "Optimization", "Throughput", "Errors", "Run"]
    panels = [eval_specs["config"] for section in sections for eval_specs in section["panels"]]
    titles = {
        eval_specs["metricRegex"]: eval_specs["chartTitle"] for eval_specs in panels if "metricRegex" in eval_specs
    }
    patterns = [*titles]
    text = (ROOT / "docs/dashboards.md").read_text()
    table = dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", text, re.MULTILINE))
    others = "auroc|average_precision|worst_class_accuracy|ece|expected_cost|bayes_cost"
    left_out = f"quality/((best|raw|test)/.*(top5|loss)|.*({others}))"  # beside top-1
    top5 = {name for name in table if re.fullmatch(left_out, name)}
    shown = {name for name in table if any(re.search(pattern, name) for pattern in patterns)}
    assert {*table} - shown == top5
    assert all(any(re.search(pattern, name) for name in table) for pattern in patterns)
    units = {title: {table[name] for name in table if re.search(pattern, name)} for pattern, title in titles.items()}
    assert [title for title, (unit,) in units.items() if not title.endswith(f", {unit}") and unit != "1"] == []
    (together,) = (pattern for pattern in patterns if re.search(pattern, "quality/32px/top1"))
    assert re.search(together, "quality/raw/32px/top1")


def test_the_workspace_is_refused_in_one_line_when_there_is_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert recipe("wandb_dashboard")(["me/toolkit"]) == 2
    assert capsys.readouterr().err == (
        "error: me/toolkit: no API key was found: `wandb login` where there is a network, or give --output FILE\n"
    )
