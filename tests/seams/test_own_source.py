"""A source of the user's own is asked first, and trains, resumes, evaluates and scans as ours do."""

import csv
import types
from pathlib import Path
from typing import Any

import own_data
import own_source
import pytest
import yaml
from runs import cut_off
from safetensors.torch import load_file

from tests.conftest import recipe, write_folders
from toolkit import Found, Index, InputError, Settings, SingleScale, Source, SourceOptions, register
from toolkit.config.tables import TABLES
from toolkit.data.sources.splits import absolute, open_splits
from toolkit.training import device
from toolkit.training.parts import make_parts
from toolkit.training.run_plan import make_run_plan

RUN = (*("--arch", "test_resnet", "--img-size", "16", "--epochs", "2", "--batch-size", "8"), "--log-with", "none")
TABLE = ("--import", "own_source", "--data-root", "table:photos/table.csv")


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of images, and a table of the same in the same order."""
    monkeypatch.chdir(tmp_path)
    root = write_folders(tmp_path / "photos", {"train": 12, "val": 3, "test": 3})
    rows = [path.relative_to(root).parts for path in sorted(root.rglob("*.png"), key=lambda path: str(path))]
    with (root / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "class", "image"])
        writer.writerows([split, name, f"{split}/{name}/{image}"] for split, name, image in rows)
    return root


def weights(run: str) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_file(f"{run}/best/model.safetensors").items()}


def test_a_source_of_ones_own_trains_resumes_and_evaluates_as_folders_do(capsys: pytest.CaptureFixture[str]):
    single = recipe("single_scale")
    assert single([*RUN, "--data-root", "photos", "--output-dir", "folders"]) == 0
    assert single([*RUN, *TABLE, "--output-dir", "table"]) == 0
    assert weights("table") == weights("folders")
    assert yaml.safe_load(Path("table/config.yaml").read_text())["data_root"] == "table:photos/table.csv"

    cut_off(Path("table"), Path("resumed"))
    assert single([*RUN, *TABLE, "--output-dir", "resumed"]) == 0
    assert "continuing from resumed/checkpoints/step-000000003" in capsys.readouterr().out
    assert weights("resumed") == weights("table")

    assert recipe("evaluate")(["table", "--import", "own_source"]) == 0
    assert recipe("evaluate")(["table", "--data-root", "photos", "--output-dir", "again"]) == 0
    assert Path("table/evaluation/predictions/val.csv").read_text() == Path("again/predictions/val.csv").read_text()


def test_a_scan_reads_a_source_of_ones_own():
    assert recipe("scan")(["table:photos/table.csv", "--import", "own_source", "--output-dir", "scan"]) == 0
    assert "usable as it is" in Path("scan/scan.txt").read_text()


def test_a_source_that_is_not_imported_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delitem(TABLES["source"], "table")
    assert recipe("single_scale")([*RUN, *TABLE[2:], "--output-dir", "run"]) == 2
    assert "no such folder; a source of your own needs --import MODULE" in capsys.readouterr().err


class Everything(own_source.TableSource):
    def recognizes(self, data_root: str) -> bool:
        return True

    def read(self, data_root: str, options: SourceOptions) -> Found:
        return super().read("table:photos/table.csv", options)._replace(name="everything")


def test_sources_of_ones_own_are_asked_before_ours_in_the_order_of_registration(monkeypatch: pytest.MonkeyPatch):
    assert open_splits(Settings(data_root="photos"), 16).source == str(Path("photos").resolve())  # control
    monkeypatch.setitem(TABLES["source"], "everything", Everything)
    assert open_splits(Settings(data_root="photos"), 16).source == "everything"
    assert open_splits(Settings(data_root="table:photos/table.csv"), 16).source == "table:photos/table.csv"


@pytest.mark.parametrize("form", ["an instance", "a module", "module:attribute"])
def test_a_source_may_be(form: str, monkeypatch: pytest.MonkeyPatch):
    own = Everything()
    module = types.ModuleType("own")
    module.recognizes, module.read = own.recognizes, own.read  # type: ignore[attr-defined]
    entry = {"an instance": own, "a module": module, "module:attribute": f"{__name__}:Everything"}[form]
    monkeypatch.setitem(TABLES["source"], "everything", entry)
    assert open_splits(Settings(data_root="photos"), 16).source == "everything"


class Endings(own_source.TableSource):
    def recognizes(self, data_root: str) -> bool:
        return data_root.endswith(".csv")


def test_a_path_becomes_absolute_where_its_source_knows_it_still(monkeypatch: pytest.MonkeyPatch):
    assert absolute("table:photos/table.csv") == "table:photos/table.csv"
    monkeypatch.setitem(TABLES["source"], "endings", Endings)
    assert absolute("photos/table.csv") == str(Path("photos/table.csv").resolve())
    assert absolute("gone.csv") == "gone.csv"
    assert absolute("photos") == str(Path("photos").resolve())


class InPython(own_source.TableSource):
    """Gives data sets instead of an index."""

    def recognizes(self, data_root: str) -> bool:
        return data_root.startswith("python:")

    def read(self, data_root: str, options: SourceOptions) -> Any:
        return own_data.DATA


@pytest.mark.slow
def test_a_source_may_give_data_sets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(TABLES["source"], "in python", InPython)
    own_data.start(Path("run"), None, data_root="python:stripes", epochs=1)
    own_data.start(Path("passed"), epochs=1)
    assert weights("run") == weights("passed")
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data_root"] == "python:stripes"
    assert recipe("evaluate")(["run"]) == 0
    assert recipe("scan")(["python:stripes", "--output-dir", "scan"]) == 2
    assert "python:stripes: gives data sets of Python, whose images are not files" in capsys.readouterr().err


@pytest.mark.parametrize(("root", "modules"), [(TABLE[-1], {"own_source"}), ("python:stripes", {__name__, "own_data"})])
def test_its_file_is_part_of_what_a_run_is(root: str, modules: set[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TABLES["source"], "in python", InPython)
    for name, expected in ((root, modules), ("photos", set())):
        usual = {"arch": "test_resnet", "batch_size": 8, "log_with": "none"}
        settings = Settings(data_root=name, output_dir=Path("run"), **usual)
        plan = make_run_plan(device.start(settings), *make_parts(settings, SingleScale(24)))
        device.stop()
        assert {*plan.own_code()} == expected


def found(**changes: Any) -> Found:
    def index(labels: list[float]) -> Index:
        return Index.of_files(Path("photos"), [f"train/cat/{i}.png" for i in range(len(labels))], labels)

    usual = {"train": index([0, 1, 0, 1]), "val": index([0, 1]), "test": None, "classes": ["a", "b"]}
    return Found(**{**usual, **{name: index(v) if name != "classes" else v for name, v in changes.items()}})


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda: {}["x"], "photos: read of source 'bad' failed: KeyError: 'x'"),
        (lambda: None, "photos: source 'bad' must read a toolkit.Found, not None"),
        (lambda: found(train=[0, 2, 0, 2]), "train: labels must be 0 ... C-1, at least 2, each used; 1 is not used"),
        (lambda: found(train=[0, 1, 0, -1]), "train: train/cat/3.png: label -1 is out of range: 0 or more"),
        (lambda: found(train=[0, 1, 0.5, 1]), "train: label 0.5 is not a whole number"),
        (lambda: found(classes=["a"]), "labels of train are 0 to 1, but only 1 classes have names"),
        (lambda: found(val=[0, 1, 2]), "val, train/cat/2.png: label 2 is out of range: 0 to 1, as in train"),
        (lambda: found(test=[0, -1]), "test, train/cat/1.png: label -1 is out of range"),
        (lambda: found(test=[]), "photos: test has no images"),
    ],
)
def test_what_a_source_reads_is_checked(
    read: Any, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Bad(Everything):
        def read(self, data_root: str, options: SourceOptions) -> Any:
            return read()

    monkeypatch.setitem(TABLES["source"], "bad", Bad)
    assert recipe("single_scale")([*RUN, "--data-root", "photos", "--output-dir", "run"]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


class Fails(Everything):
    def recognizes(self, data_root: str) -> bool:
        raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (dict, "source 'odd' needs recognizes(data_root) and read(data_root, options)"),
        (Fails, "--data-root photos: recognizes of source 'odd' failed: ZeroDivisionError: division by zero"),
        ("nowhere:Source", "--data-root nowhere: cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_source_that_cannot_be_asked_is_refused(entry: Any, told: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TABLES["source"], "odd", entry)
    with pytest.raises(InputError) as caught:
        open_splits(Settings(data_root="photos"), 16)
    assert told in str(caught.value)


def test_a_name_of_ours_is_not_taken():
    with pytest.raises(InputError, match="there is a source 'folders' already"):
        register("source", "folders", Source)
