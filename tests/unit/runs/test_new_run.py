"""The command that starts a new run from the weights of another."""

import shlex
from pathlib import Path

import pytest

from toolkit.config.yaml_values import to_yaml
from toolkit.runs.directory import RunDirectory
from toolkit.runs.new_run import way_on

CONFIG = {"arch": "test_resnet", "model_kwargs": {}, "epochs": 3}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    folder = tmp_path / "my run"
    (folder / "best").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(CONFIG))
    return RunDirectory(folder)


@pytest.mark.parametrize(
    "words",
    [
        ["--output-dir", "my run"],
        ["--output-dir=my run", "--resume", "auto"],
        ["--checkpoint-dir", "my run", "--resume=auto", "--pretrained"],
        ["--output_dir=my run", "--weights", "w.pth", "--weights-sha256", "00"],
        ["--no-pretrained", "--weights=w.pth", "--weights_sha256=00", "--checkpoint_dir", "my run"],
    ],
    ids=" ".join,
)
def test_the_command_is_the_users_own_but_for_weights_and_directory(run: RunDirectory, monkeypatch, words: list[str]):
    kept = ["--epochs=6", "--model-kwargs", "a=1", "b=2", "--transform", "a b"]
    argv = ["recipes/multiscale.py", *kept, *words]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setattr("sys.orig_argv", ["python", "-u", *argv])
    run.path.with_name("my run-2").touch()
    told = way_on(run, "multiscale", CONFIG)
    start, command = told.split(": ", 1)
    assert start == "start a new run from its weights"
    new = ["--weights", str(run.path), "--output-dir", f"{run.path}-3"]
    assert shlex.split(command) == ["python", "-u", argv[0], *kept, *new]


def test_there_is_no_such_command_without_weights_that_fit(run: RunDirectory):
    assert "weights=" in way_on(run, "train", CONFIG)  # control: called from Python
    assert way_on(run, "train", {**CONFIG, "arch": "test_vit"}) == "start another with --output-dir"
    run.best.rmdir()
    assert way_on(run, "train", CONFIG) == "start another with --output-dir"
