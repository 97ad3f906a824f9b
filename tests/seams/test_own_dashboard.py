"""A dashboard of the user's own is chosen as ours are, and no fault of it stops or changes a run."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import own_dashboard
import pytest
import yaml
from safetensors.torch import load_file

from tests.conftest import TINY, recipe
from toolkit import Dashboard, DashboardRun, InputError, Settings, SingleScale, train
from toolkit.config.tables import TABLES
from toolkit.training import loop

RUN = (*TINY[:-2], "--img-size", "16", "--epochs", "2", "--num-workers", "1")


def started(*words: str) -> int:
    return recipe("single_scale")([*RUN, *words])


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_file(run / "best" / "model.safetensors").items()}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights of the same run without a dashboard."""
    output = tmp_path_factory.mktemp("untracked") / "run"
    assert started("--log-with", "none", "--output-dir", str(output)) == 0
    return weights(output)


@pytest.mark.parametrize("name", ["lines", "own_dashboard:Lines"])
def test_rows_go_to_the_dashboard_that_was_imported(name: str, untracked: dict[str, bytes]):
    assert started("--import", "own_dashboard", "--log-with", name, "--wandb-project", "p", "--output-dir", "run") == 0
    start, first, second, end = rows(Path("run"))
    assert start == {"start": 0, "first": True, "id": start["id"], "epochs": 2}
    assert (first["global_step"], second["global_step"], end["global_step"]) == (5, 10, 10)
    assert first["quality/train_loss"] > 0
    assert "errors/balanced_accuracy" in end
    assert yaml.safe_load(Path("run/config.yaml").read_text())["log_with"] == "own_dashboard:Lines"
    assert Path("run/.dashboard-own_dashboard.Lines.json").exists()
    assert weights(Path("run")) == untracked
    assert recipe("evaluate")(["run", "--split", "val"]) == 0  # opening a run needs no dashboard


def test_a_class_on_the_command_line_is_imported_and_one_in_a_config_is_not(capsys: pytest.CaptureFixture[str]):
    Path("once.py").write_text("from own_dashboard import Lines\n")
    Path("config.yaml").write_text("log_with: other:Lines\n")
    Path("other.py").write_text("raise SystemExit('imported')\n")
    assert started("--log-with", "once:Lines", "--epochs", "1", "--output-dir", "run") == 0
    assert "once" in sys.modules
    assert started("--config", "config.yaml", "--output-dir", "other") == 2
    assert "--log-with other:Lines: the module is not imported: --import other allows that" in capsys.readouterr().err


def test_a_stopped_run_goes_on_with_its_dashboard_and_repeats_no_row(monkeypatch: pytest.MonkeyPatch):
    train_epoch = loop.train_epoch

    def stop_in_the_second(run: Any, epoch: Any) -> Any:
        if epoch.number == 1:
            run.control.preemption.ask("SIGTERM")
        return train_epoch(run, epoch)

    settings = Settings(
        synthetic_size=32, synthetic_count=120, batch_size=24, epochs=2, log_with="lines", output_dir="run"
    )
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_epoch", stop_in_the_second)
        patch.setattr(loop, "LOG_EVERY_STEPS_OF_SHORT", 4)
        with pytest.raises(Exception, match="stopped by SIGTERM at step"):
            train(settings, SingleScale(16))
    train(settings, SingleScale(16))
    starts = [row for row in rows(Path("run")) if "start" in row]
    assert [row["first"] for row in starts] == [True, False]
    assert starts[1]["start"] > 5
    assert starts[0]["id"] == starts[1]["id"]
    assert [row["alert"] for row in rows(Path("run")) if "alert" in row] == ["Preempted"]
    assert [row["global_step"] for row in rows(Path("run")) if "run/phase" in row] == [5, 10]


def broken_at(method: str) -> type[Dashboard]:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{method} is broken")

    at_class = method in ("open", "check")
    return type("Broken", (own_dashboard.Lines,), {method: classmethod(fail) if at_class else fail})  # in no module


@pytest.mark.parametrize("method", ["check", "open", "log", "show", "finish"])
def test_a_run_goes_on_whatever_its_dashboard_raises(
    method: str, untracked: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(TABLES["dashboard"], "broken", broken_at(method))
    assert started("--log-with", "broken", "--output-dir", "run") == 0
    assert f"{method} is broken" in capsys.readouterr().err
    assert weights(Path("run")) == untracked


class Incomplete(Dashboard):
    def log(self, row: Mapping[str, float], step: int) -> None: ...


class Picky(own_dashboard.Lines):
    @classmethod
    def check(cls) -> None:
        raise InputError("--log-with picky: set $PICKY first")


class Empty(own_dashboard.Lines):
    @classmethod
    def open(cls, run: DashboardRun) -> Any:
        return None


@pytest.mark.parametrize(
    ("name", "entry", "told"),
    [
        (
            "linse",
            None,
            "--log-with linse: must be one of wandb, tensorboard, trackio, none, lines; did you mean lines?",
        ),
        (
            "nowhere:Lines",
            None,
            "nowhere: cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("own_dashboard:Line", None, "own_dashboard has no Line; did you mean Lines?"),
        ("dict", dict, "--log-with dict: must be a subclass of toolkit.Dashboard"),
        ("incomplete", Incomplete, "--log-with incomplete: lacks open"),
        ("picky", Picky, "--log-with picky: set $PICKY first"),
    ],
)
def test_a_dashboard_that_cannot_work_is_refused_in_one_line_before_anything_is_written(
    name: str, entry: Any, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if entry is not None:
        monkeypatch.setitem(TABLES["dashboard"], name, entry)
    assert started("--log-with", name, "--output-dir", "run") == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


def test_an_open_that_returns_no_dashboard_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(TABLES["dashboard"], "empty", Empty)
    assert started("--log-with", "empty", "--epochs", "1", "--output-dir", "run") == 0
    assert "its open returned None, not a toolkit.Dashboard" in capsys.readouterr().err


def test_the_same_name_is_not_registered_twice():
    with pytest.raises(InputError, match="there is a dashboard 'lines' already"):
        own_dashboard.register("dashboard", "lines", Incomplete)
