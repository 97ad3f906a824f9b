"""Models of the user's own, from files in the user's folder: trained, killed, resumed, used, exported."""

import csv
import hashlib
import importlib.util
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess
from typing import ClassVar

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests import forkserver
from tests.conftest import PATIENCE_S, ROOT, SLOW, write_image
from toolkit import InputError, Settings, Simultaneous, train
from toolkit.tools.evaluate import evaluate
from toolkit.tools.export import export
from toolkit.tools.predict import predict

# 15 steps an epoch, 60 in all, a checkpoint every 5.
FEW = {"synthetic_count": 120, "synthetic_size": 32, "batch_size": 8, "epochs": 4, "num_workers": 0, "log_with": "none"}
FLAGS = [word for name, value in FEW.items() for word in (f"--{name.replace('_', '-')}", str(value))]
WORDS = [*FLAGS, "--scales", "16,32", "--save-every-steps", "5", "--record-samples"]
LAST = 60
OWN = ("--model-from", "own_net:make")

OWN_NET = """
from pathlib import Path

import torch
from torch import nn

Path("imported").touch()  # a test looks for it


class Net(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.Dropout(0.2))
        self.again = self.block  # shared weights
        self.spare = nn.Linear(2, 2)  # gets no gradient
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.block(x).relu()
        x = x + self.again(x).relu()
        return self.head(x.mean((2, 3)))


def make(num_classes, width=8):
    return Net(num_classes, width)
"""

REGISTERED = """
from timm.models import register_model
from torch import nn


@register_model
def tiny_registered_net(pretrained=False, num_classes=1000, width=6, **_):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
    )
"""


def start(home: Path, name: str, *words: object) -> CompletedProcess[str]:
    """A recipe, or else a command of `toolkit`, as a process in the user's folder."""
    script = ROOT / "recipes" / f"{name}.py"
    program = [str(script)] if script.exists() else ["-m", "toolkit", name]
    return forkserver.run([sys.executable, *program, *map(str, words)], cwd=home, timeout=PATIENCE_S)


def works(home: Path, name: str, *words: object) -> str:
    done = start(home, name, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def refused(home: Path, name: str, *words: object) -> str:
    """The one line with which a recipe refuses."""
    done = start(home, name, *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's folder with a run of a model in a file there."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "own_net.py").write_text(OWN_NET)
    (folder / "registered.py").write_text(REGISTERED)
    works(folder, "multiscale", *WORDS, *OWN, "--model-kwargs", "width=6", "--output-dir", "whole")
    return folder


@pytest.fixture
def copy(home: Path) -> Iterator[Path]:
    """A copy of the run that stopped at its second to last checkpoint."""
    run = shutil.copytree(home / "whole", home / "copy", ignore=shutil.ignore_patterns("export", "evaluation"))
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / f"step-{LAST:09d}")
    yield run
    shutil.rmtree(run)


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def weights(run: Path) -> dict[str, bytes]:
    """The files of tensors that a finished run ends with, bit for bit."""
    last = run / "checkpoints" / f"step-{LAST:09d}"
    files = [last / "model.safetensors", last / "optimizer.safetensors", run / "best" / "model.safetensors"]
    tensors = [load_file(file) for file in files]
    return {
        f"{i} {name}": tensor.numpy().tobytes() for i, found in enumerate(tensors) for name, tensor in found.items()
    }


def test_the_run_is_named_after_the_function_and_records_it(home: Path):
    said = works(home, "multiscale", *WORDS, *OWN, "--epochs", "1", "--resume", "never")
    (run,) = (home / "runs").glob("multiscale-make-*")
    assert "model     own_net:make, " in said
    assert "3 BatchNorm" not in said  # the shared one counts once
    assert "2 BatchNorm layers, per scale: full" in said
    assert "those of ImageNet" in said
    config = (run / "config.yaml").read_text()
    assert "model_from: own_net:make\n" in config
    assert not re.search("^(arch|pretrained|dropout_rate|drop_path):", config, re.MULTILINE)
    shutil.rmtree(home / "runs")


@pytest.mark.slow
def test_a_killed_run_of_an_own_model_goes_on_to_the_same_end(home: Path):
    words = [str(ROOT / "recipes/multiscale.py"), *WORDS, *OWN, "--model-kwargs", "width=6", "--output-dir", "killed"]
    process = forkserver.Popen([sys.executable, *words], cwd=home, stdout=DEVNULL, stderr=DEVNULL)
    samples, deadline = home / "killed" / "samples.jsonl", time.monotonic() + PATIENCE_S
    while not samples.exists() or samples.read_text().count("\n") < LAST // 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    said = works(home, "multiscale", *words[1:])
    assert "continuing from killed/checkpoints/step-" in said
    assert summary(home / "killed")["inexact_resumes"] == []
    assert weights(home / "killed") == weights(home / "whole")


@pytest.mark.slow
def test_other_code_is_reported_when_a_run_goes_on(copy: Path, home: Path):
    (home / "own_net.py").write_text(OWN_NET + "# another line\n")
    said = works(home, "multiscale", *WORDS, *OWN, "--model-kwargs", "width=6", "--output-dir", copy)
    opened = works(home, "predict", "whole", write_image(home / "photo.png"), *OWN)
    (home / "own_net.py").write_text(OWN_NET)
    assert "code of own_net changed since the run was trained" in opened
    assert "changed since" not in works(home, "predict", "whole", home / "photo.png", *OWN)
    assert "resume    not bit-exact: code of own_net changed\n" in said
    (inexact,) = summary(copy)["inexact_resumes"]
    assert inexact.endswith(": code of own_net changed")
    assert weights(copy) == weights(home / "whole")  # control: the line changed nothing else


def test_code_that_makes_another_model_is_refused_when_a_run_goes_on(copy: Path, home: Path):
    (home / "own_net.py").write_text(OWN_NET.replace("Net(num_classes, width)", "Net(num_classes, width + 1)"))
    done = start(home, "multiscale", *WORDS, *OWN, "--model-kwargs", "width=6", "--output-dir", copy)
    (home / "own_net.py").write_text(OWN_NET)
    assert done.returncode == 2
    assert "does not fit" in done.stderr
    assert "restore the model's code" in done.stderr
    assert not (copy / "summary.json").exists()


def test_a_checkpoint_that_recorded_no_code_counts_as_unchanged(copy: Path, home: Path):
    newest = max((copy / "checkpoints").iterdir())
    manifest = json.loads((newest / "MANIFEST.json").read_text())
    assert [*manifest["code"]] == ["own_net"]
    text = json.dumps({name: value for name, value in manifest.items() if name != "code"})
    (newest / "MANIFEST.json").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (newest / "COMMITTED").write_text(digest + "\n")
    works(home, "multiscale", *WORDS, *OWN, "--model-kwargs", "width=6", "--output-dir", copy)
    assert summary(copy)["inexact_resumes"] == []


def test_an_own_model_is_evaluated_and_predicts_when_it_is_named_again(home: Path):
    works(home, "evaluate", "whole", *OWN, "--output-dir", "evaluation", "--no-amp")
    found = json.loads((home / "evaluation" / "evaluation.json").read_text())
    for split in ("val", "test"):
        then = summary(home / "whole")[split]
        assert {name: score["top1"] for name, score in found["splits"][split].items()} == {
            name: score["top1"] for name, score in then.items()
        }
    photo = write_image(home / "photo.png")
    works(home, "predict", "whole", photo, "--import", "own_net", "--output", "rows.csv", "--overwrite")
    with (home / "rows.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(photo)]


def plain_model(home: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("plain_own_net", home / "own_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make(num_classes=10, width=6).eval()


def test_an_export_loads_into_the_plain_model_and_says_the_same_as_onnx(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(home)
    words = ("--scale", "16", "--formats", "safetensors,onnx", "--output-dir", "export", "--overwrite")
    works(home, "export", "whole", *OWN, *words)
    model = plain_model(home)
    model.load_state_dict(load_file(home / "export" / "model.safetensors"))
    session = onnxruntime.InferenceSession(home / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        expected = model(pixels).numpy()
    assert np.abs(session.run(None, {"pixels": pixels.numpy()})[0] - expected).max() <= 1e-4
    config = json.loads((home / "export" / "config.json").read_text())
    assert config["model_from"] == "own_net:make"
    assert config["arguments"] == {"num_classes": 10, "width": 6}
    card = (home / "export" / "README.md").read_text()
    assert "timm" not in card.split("## Versions")[0]
    write_image(home / "photo.jpg")
    names: dict = {}
    monkeypatch.chdir(home / "export")
    shutil.copy(home / "photo.jpg", home / "export" / "photo.jpg")
    for folder in (home, home / "export"):
        monkeypatch.syspath_prepend(str(folder))
    exec("\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL)), names)
    for module in ("own_net", "preprocess"):
        del sys.modules[module]
    (home / "export" / "photo.jpg").unlink()
    assert np.abs(names["by_onnx"] - names["model"](names["pixels"]).detach().numpy()).max() <= 1e-4


TOOLS = {"evaluate": ("--output-dir", "nothing"), "predict": ("photo.png",), "export": ("--output-dir", "nothing")}


@pytest.mark.parametrize("tool", TOOLS)
def test_opening_a_run_imports_nothing_that_only_the_run_names(home: Path, tool: str):
    (home / "imported").unlink(missing_ok=True)
    write_image(home / "photo.png")
    said = refused(home, tool, "whole", *TOOLS[tool])
    told = "whole: it was trained with --model-from own_net:make: give that flag again to allow running it, "
    told += "or --import own_net"
    assert said == f"error: {told}\n"
    assert not (home / "imported").exists()
    assert not (home / "nothing").exists()


def test_the_module_is_imported_when_a_flag_names_it(home: Path):
    """The control of the test above."""
    (home / "imported").unlink(missing_ok=True)
    works(home, "predict", "whole", write_image(home / "photo.png"), "--import", "own_net")
    assert (home / "imported").exists()


@pytest.mark.parametrize("name", ["os:system", "torch.hub:load", "toolkit.models.create:create", "__main__:main"])
def test_a_run_cannot_name_a_function_of_a_library_that_is_imported_anyway(copy: Path, home: Path, name: str):
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("own_net:make", name))
    assert f"--model-from {name}: give that flag again" in refused(home, "evaluate", "copy")


def test_a_config_of_a_run_imports_nothing_when_it_is_repeated(home: Path):
    (home / "imported").unlink(missing_ok=True)
    said = refused(home, "multiscale", "--config", "whole/config.yaml", "--output-dir", "nothing")
    told = "error: --model-from own_net:make: give that flag again to allow running it, or --import own_net\n"
    assert said == told
    assert not (home / "imported").exists()
    works(home, "multiscale", "--config", "whole/config.yaml", *OWN, "--dry-run")  # control


@SLOW
def test_runs_are_compared_at_a_new_size_when_the_module_is_imported(home: Path):
    shutil.copytree(home / "whole", home / "twin")
    works(home, "compare", "whole", "twin")  # by their saved predictions: no model is needed
    assert "or --import own_net" in refused(home, "compare", "whole", "twin", "--scales", "20")
    works(home, "compare", "whole", "twin", "--scales", "20", "--import", "own_net")


def test_other_code_opens_a_run_when_the_flag_names_it(home: Path):
    (home / "renamed_net.py").write_text(OWN_NET.replace("def make(", "def build("))
    works(home, "predict", "whole", write_image(home / "photo.png"), "--model-from", "renamed_net:build")
    (home / "narrow_net.py").write_text(OWN_NET.replace("Net(num_classes, width)", "Net(num_classes, 3)"))
    said = refused(home, "predict", "whole", home / "photo.png", "--model-from", "narrow_net:make")
    assert "does not fit" in said


@pytest.mark.slow
def test_a_model_registered_with_timm_trains_and_is_opened_when_its_module_is_imported(home: Path):
    words = (*WORDS, "--arch", "tiny_registered_net", "--epochs", "1", "--output-dir", "registered")
    hint = "--arch tiny_registered_net: timm has no such architecture; one of your own: --import its module"
    assert hint in refused(home, "multiscale", *words)
    works(home, "multiscale", *words, "--import", "registered")
    assert hint in refused(home, "evaluate", "registered")
    works(home, "evaluate", "registered", "--import", "registered", "--no-amp")
    found = json.loads((home / "registered" / "evaluation" / "evaluation.json").read_text())["splits"]["test"]
    assert found["32px"]["top1"] == summary(home / "registered")["test"]["32px"]["top1"]
    manifest = next((home / "registered" / "checkpoints").glob("*/MANIFEST.json"))
    assert [*json.loads(manifest.read_text())["code"]] == ["registered"]
    works(home, "export", "registered", "--import", "registered", "--formats", "safetensors")
    card = (home / "registered" / "export" / "README.md").read_text()
    assert "import registered  # registers tiny_registered_net" in card
    assert "local-dir" not in card
    told = "--model-from would be ignored: registered was trained with --arch tiny_registered_net"
    assert told in refused(home, "evaluate", "registered", *OWN)


@pytest.mark.slow
def test_two_processes_train_an_own_model_and_go_on_to_the_same_end(home: Path):
    """A layer without gradients and a shared block: DistributedDataParallel must be told."""
    words = [str(ROOT / "recipes/multiscale.py"), *WORDS, *OWN]
    done = forkserver.run_ranks([*words, "--output-dir", "two"], cwd=home, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    resumed = shutil.copytree(home / "two", home / "resumed")
    (resumed / "summary.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / f"step-{LAST:09d}")
    done = forkserver.run_ranks([*words, "--output-dir", "resumed"], cwd=home, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    assert summary(resumed)["inexact_resumes"] == []
    assert weights(resumed) == weights(home / "two")


class Net(nn.Module):
    """A model that only this module has; its pixels are those of its own config."""

    default_cfg: ClassVar = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.Linear(6, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_an_object_from_python_is_trained_as_a_copy_and_reopens_the_run(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    model, run = Net(), tmp_path / "run"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = Settings(**{**FEW, "epochs": 2, "save_every_steps": 5, "output_dir": run})
    said = train(settings, Simultaneous((16, 32)), model=model)
    out = capsys.readouterr().out
    assert "reopen    evaluate(run, model=...), likewise predict and export: config.yaml can only say" in out
    assert "pixels    mean 0.5, 0.5, 0.5, standard deviation 0.25, 0.25, 0.25\n" in out
    assert f"model_from: an object of {__name__}.Net\n" in (run / "config.yaml").read_text()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    first = load_file(run / "checkpoints" / "step-000000030" / "model.safetensors")
    (run / "summary.json").unlink()
    for step in ("30", "25"):
        shutil.rmtree(run / "checkpoints" / f"step-0000000{step}")
    assert train(settings, Simultaneous((16, 32)), model=model)["inexact_resumes"] == []
    again = load_file(run / "checkpoints" / "step-000000030" / "model.safetensors")
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())

    for tool in (lambda **more: evaluate(run, **more), lambda **more: export(run, formats=("safetensors",), **more)):
        with pytest.raises(InputError, match=r"it was trained with an object of .*Net: pass it again as model="):
            tool()
    report = evaluate(run, model=model, amp=False)
    assert report.evaluations["test"].scores["32px"]["top1"] == said["test"]["32px"]["top1"]
    assert predict(run, [str(write_image(tmp_path / "a.png"))], model=Net, output="rows.csv").read == 1
    assert export(run, formats=("safetensors",), model=model).differences["safetensors"] <= 1e-4
    fresh = Net()
    fresh.load_state_dict(load_file(run / "export" / "model.safetensors"))


def test_settings_that_python_would_ignore_are_refused(tmp_path: Path):
    for more, told in (
        ({"arch": "resnet18"}, "--arch would be ignored"),
        ({"model_kwargs": {"width": 3}}, "--model-kwargs width=3 would be ignored: the model is an object of"),
    ):
        with pytest.raises(InputError, match=told):
            train(Settings(**FEW, **more, output_dir=tmp_path / "run"), Simultaneous((16, 32)), model=Net())
    assert not (tmp_path / "run").exists()
