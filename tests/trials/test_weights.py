"""Starting from weights: whose they are, what is kept of them, and what is needed to continue."""

import argparse
import json
import pickle
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests import forkserver
from tests.conftest import ROOT, Runner, recipe
from toolkit import InputError, Settings, SingleScale, train
from toolkit.runs import weight_files
from toolkit.tools.evaluate import evaluate

CLASSES = ("ant", "bee", "cat")
PLAIN = ("--arch", "test_resnet", "--img-size", "32", "--log-with", "none", "--num-workers", "0", "--no-amp")
FLAGS = (*PLAIN, "--data-root", "photos", "--batch-size", "6", "--crop-scale", "1")
HELD = ("--learning-rate", "1e-12", "--epochs", "1")  # nothing is learned
WHOLE = "92 of 92 tensors loaded; head kept, of the same 3 classes"


def photos(root: Path, names: Sequence[str]) -> None:
    """Images that a color tells apart."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for label, name in enumerate(names):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.eye(3)[label] * 160 + 40 + noise.normal(0, 20, (16, 16, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos`, a `run` on them and what it exports."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        photos(Path("photos"), CLASSES)
        assert recipe("single_scale")([*FLAGS, "--epochs", "5", "--output-dir", "run"]) == 0
        assert recipe("export")(["run", "--formats", "safetensors"]) == 0
    assert top1(folder / "run") == 100
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the same `photos` and a copy of the run."""
    (tmp_path / "photos").symlink_to(trained / "photos")
    shutil.copytree(trained / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def top1(run: Path | str) -> float:
    return json.loads(Path(run, "summary.json").read_text())["test"]["32px"]["top1"]


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line on weights in the plan of a run, or its refusal."""
    code = recipe("single_scale")([*FLAGS, *words, "--dry-run"])
    said = capsys.readouterr()
    if code:
        assert (code, len(said.err.splitlines()), "Traceback" in said.err) == (2, 1, False)
        return said.err
    return next((line for line in said.out.splitlines() if line.startswith("weights ")), "")


def test_the_same_weights_are_found_in_a_run_an_export_a_checkpoint_and_each_of_their_files(here: Path, capsys):
    checkpoint = next(here.glob("run/checkpoints/step-*"))
    shutil.copy("run/export/model.safetensors", "alone.safetensors")
    places = ["run/best", "run/export", "local-dir:run/export", str(checkpoint), "run/best/model.safetensors"]
    for place in (*places, "run/export/model.safetensors", f"{checkpoint}/model.safetensors"):
        assert weight_files.read(Path(place)).classes == CLASSES, place
    for place in ("run", "run/export", "alone.safetensors"):
        assert WHOLE in planned(capsys, "--weights", place), place
    overlay = "pretrained_cfg_overlay={file: alone.safetensors}"
    assert WHOLE in planned(capsys, "--pretrained", "--model-kwargs", overlay)
    assert WHOLE in planned(capsys, "--arch", "local-dir:run/export", "--pretrained")
    assert planned(capsys, "--arch", "local-dir:run/export") == ""  # control: as with timm, only the architecture
    assert planned(capsys) == ""


def test_a_lost_best_model_of_a_finished_run_is_written_again(here: Path, capsys: pytest.CaptureFixture[str]):
    best = here / "run/best/model.safetensors"
    before = best.read_bytes()
    best.write_bytes(before[:-9])
    assert recipe("predict")(["run", "photos/val"]) == 2
    assert "the command that trained it writes it again from its checkpoint" in capsys.readouterr().err
    assert recipe("single_scale")([*FLAGS, "--epochs", "5", "--output-dir", "run"]) == 0
    assert best.read_bytes() == before


def test_a_plan_refuses_what_the_run_would_refuse(here: Path, capsys: pytest.CaptureFixture[str]):
    words = [*FLAGS, "--output-dir", "run", "--dry-run"]
    assert recipe("single_scale")([*words, "--epochs", "5"]) == 0
    capsys.readouterr()
    assert recipe("single_scale")([*words, "--epochs", "6"]) == 2
    assert "was trained with --epochs 5, now 6. A run keeps its settings" in capsys.readouterr().err


def test_a_file_is_no_output_folder(here: Path, capsys: pytest.CaptureFixture[str]):
    Path("file").touch()
    commands = {
        "single_scale": [*FLAGS, "--output-dir", "file"],
        "evaluate": ["run", "--output-dir", "file"],
        "scan": ["photos", "--output-dir", "file"],
    }
    for name, words in commands.items():
        assert recipe(name)(words) == 2
        assert "Not a directory: a part of this path is a file, not a folder" in capsys.readouterr().err, name


def test_a_head_has_the_classes_of_the_data_by_their_names(here: Path, capsys):
    tensors = load_file("run/export/model.safetensors")
    head = {name: tensors[name][[2, 0, 1]].contiguous() for name in ("fc.weight", "fc.bias")}
    moved = {**tensors, **head}
    save_file(moved, "moved.safetensors", {"label_names": json.dumps([CLASSES[i] for i in (2, 0, 1)])})
    save_file(moved, "unknown.safetensors")
    save_file(moved, "others.safetensors", {"label_names": '["ant", "bee", "dog"]'})
    more = {name: torch.cat([tensor] * 2) for name, tensor in head.items()}
    save_file({**tensors, **more}, "six.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name not in head}, "headless.safetensors")
    for name, told in {
        "moved": "92 of 92 tensors loaded; head kept, of the same 3 classes, its rows put into their order",
        "unknown": "92 of 92 tensors loaded; head kept: class order cannot be checked",
        "others": "90 of 92 tensors loaded, not fc.weight, fc.bias; new head: theirs is of other classes (ant, bee",
        "six": "90 of 92 tensors loaded, not fc.weight, fc.bias; new head: theirs has 6 classes, the data 3",
        "headless": "90 of 92 tensors loaded, not fc.weight, fc.bias; new head: they have no fc",
    }.items():
        assert told in planned(capsys, "--weights", f"{name}.safetensors"), name
    for name, reached in {"moved": True, "unknown": False}.items():
        assert recipe("single_scale")([*FLAGS, *HELD, "--weights", f"{name}.safetensors", "--output-dir", name]) == 0
        assert (top1(name) == 100) is reached


class Payload:
    def __reduce__(self):
        return (Path("executed").touch, ())


def test_the_line_on_weights_says_which_of_a_file_were_taken_and_which_were_not(here: Path, capsys):
    tensors = load_file("run/export/model.safetensors")
    averaged = {name: value + 1 if value.is_floating_point() else value for name, value in tensors.items()}
    rest = {"args": argparse.Namespace(lr=1), "best": np.float64(0.5), "epoch": 3}
    order = {name: i for i, name in enumerate(("cat", "ant", "bee"))}
    files = {
        "trainer.pth": ({"model": tensors, **rest}, "(model): 92 of 92"),
        "ema.pth": ({"state_dict": tensors, "ema_state_dict": averaged}, "(ema_state_dict): 92 of 92"),
        "nested.pth": ({"checkpoint": {"model": tensors}}, "(checkpoint.model): 92 of 92"),
        "ordered.pth": (
            {"state_dict": tensors, "class_to_idx": order},
            "same 3 classes, its rows put into their order",
        ),
        "more.pth": (tensors | {"aux.weight": torch.zeros(2)}, "; not used: aux.weight"),
    }
    for name, (content, told) in files.items():
        torch.save(content, name)
        assert told in planned(capsys, "--weights", name), name
    save_file(tensors, "safe.pth")  # the content decides, not the name
    assert "92 of 92 tensors loaded" in planned(capsys, "--weights", "safe.pth")
    body = {name: value for name, value in tensors.items() if not name.startswith("fc.")}
    torch.save({**body, "fc.1.weight": tensors["fc.weight"], "fc.1.bias": tensors["fc.bias"]}, "sequential.pth")
    assert "new head: they have no fc; not used: fc.1.weight, fc.1.bias" in planned(
        capsys, "--weights", "sequential.pth"
    )


def test_weights_that_do_not_fit_or_cannot_be_read_are_refused_in_one_line_before_anything_is_made(here: Path, capsys):
    Path("code.pth").write_bytes(pickle.dumps(Payload()))
    torch.save({"state_dict": timm.create_model("test_resnet").state_dict(), "what": Payload()}, "code.pt")
    torch.save(timm.create_model("test_resnet"), "module.pt")
    torch.save([1, 2], "list.pt")
    torch.save({"epoch": 3}, "scalars.pt")
    tensors = load_file("run/export/model.safetensors")
    torch.save(tensors | {"conv1.0.weight": tensors["conv1.0.weight"].to(torch.int8)}, "quantized.pt")
    Path("cut.safetensors").write_bytes(Path("run/export/model.safetensors").read_bytes()[:-9])
    save_file({"bert.embeddings": torch.zeros(3)}, "bert.safetensors")
    save_file(timm.create_model("resnet10t").state_dict(), "wide.safetensors")
    Path("empty").mkdir()
    for words, told in {
        ("run", "--arch", "test_efficientnet"): "of test_resnet do not fit test_efficientnet (--arch test_resnet): ",
        ("wide.safetensors",): "do not fit test_resnet: ",
        ("bert.safetensors",): "do not fit test_resnet: conv1.0.weight is missing; ",
        ("quantized.pt",): "do not fit test_resnet: conv1.0.weight is int8 there",
        ("run", "--pretrained"): "--pretrained would be ignored: the run starts from --weights run",
        ("run", "--weights-sha256", "00"): "its SHA-256 is ",
        ("run", "--arch", "local-dir:empty"): "--arch local-dir:empty: config.json cannot be read",
        ("run", "--arch", "timm/resnet18"): "--arch timm/resnet18: Model name",
    }.items():
        assert told in planned(capsys, "--weights", *words), words
    for name, told in {
        "none.safetensors": "no such file or folder",
        "hf-hub:me/tiny": "for a model of the hub, --arch hf-hub:NAME --pretrained",
        "empty": "neither a run nor a folder with model.safetensors",
        "code.pth": "code of a file is not run: save the model's state_dict()",
        "code.pt": "code of a file is not run: save the model's state_dict()",
        "module.pt": "code of a file is not run: save the model's state_dict()",
        "list.pt": "it holds list, not tensors by name: save the model's state_dict()",
        "scalars.pt": "there are no tensors by name in it",
        "cut.safetensors": "cannot be read",
        "photos/train/ant/0.png": "code of a file is not run: save the model's state_dict()",
    }.items():
        with pytest.raises(InputError, match=re.escape(told)) as caught:
            weight_files.read(Path(name))
        assert str(caught.value).startswith(f"--weights {name}: ")
        assert len(str(caught.value).splitlines()) == 1
    before = {*here.iterdir()}
    assert recipe("single_scale")([*FLAGS, "--weights", "bert.safetensors", "--output-dir", "new"]) == 2
    assert recipe("single_scale")([*FLAGS, "--weights", "bert.safetensors"]) == 2
    assert {path.name for path in {*here.iterdir()} - before} <= {"runs"}
    assert not [*here.glob("runs/*")]
    assert not Path("executed").exists()


def test_a_run_continues_and_ends_where_the_file_that_it_started_from_is_gone_or_moved(here: Path, capsys):
    def train(weights: str, *words: str) -> str:
        code = recipe("single_scale")([*FLAGS, "--epochs", "2", "--weights", weights, *words, "--output-dir", "new"])
        said = capsys.readouterr()
        return said.err if code else said.out

    shutil.copy("run/export/model.safetensors", "w.safetensors")
    assert WHOLE in train("w.safetensors")
    whole = Path("new/best/model.safetensors").read_bytes()
    newest = max(here.glob("new/checkpoints/step-*"))
    for gone in (newest, Path("new/best")):
        shutil.rmtree(gone)
    Path("new/summary.json").unlink()
    Path("w.safetensors").rename("moved.safetensors")
    said = train("w.safetensors")
    assert "continuing from" in said
    assert "weights   " not in said
    assert Path("new/best/model.safetensors").read_bytes() == whole
    assert "this run is finished" in train("w.safetensors")
    assert "this run is finished" in train("moved.safetensors")
    assert "weights_sha256: " in Path("new/config.yaml").read_text()
    assert "--weights w.safetensors, now other.safetensors" in train("other.safetensors")
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), "w.safetensors")
    assert "other contents of --weights w.safetensors" in train("w.safetensors")
    assert "no such file" in planned(capsys, "--weights", "gone.safetensors")  # control
    shutil.rmtree("new")
    Path("w.safetensors").unlink()
    assert "no such file" in train("w.safetensors")
    assert not Path("new").exists()


@pytest.mark.slow
def test_a_model_of_the_hub_is_taken_with_its_classes_and_not_needed_again(here: Path, monkeypatch, capsys):
    """The hub's cache is made by hand, as its client lays it out."""
    snapshot = here / "hub" / "models--me--tiny" / "snapshots" / "0"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree("run/export", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "hub"))
    words = [*FLAGS, *HELD, "--arch", "hf-hub:me/tiny", "--pretrained", "--output-dir", "new"]
    assert recipe("single_scale")(words) == 0
    assert (
        "--pretrained hf-hub:me/tiny: 92 of 92 tensors loaded; head kept, of the same 3 classes"
        in capsys.readouterr().out
    )
    assert top1("new") == 100
    shutil.rmtree("hub")
    Path("new/summary.json").unlink()
    for told in ("continuing from", "this run is finished"):
        assert recipe("single_scale")(words) == 0
        assert told in capsys.readouterr().out
    assert evaluate(Path("new"), scales=[32]).evaluations["test"].scores["32px"]["top1"] == 100
    assert "config.json cannot be read" in planned(capsys, "--arch", "hf-hub:me/tiny")  # control


@pytest.mark.slow
def test_the_command_that_a_refusal_prints_starts_a_new_run_from_the_weights(here: Path, run: Runner):
    words = ["--epochs", "6", "--output-dir", "run", "--resume=auto", "--wandb-project", "a b", "--log-with", "trackio"]
    said = run("recipes/single_scale.py", *FLAGS, *words).stderr
    assert "run was trained with --epochs 5, now 6. A run keeps its settings and data: go back to those, or" in said
    command = re.search(r"start a new run from its weights: (.*)", said)[1]
    assert shlex.split(command)[-4:] == ["--weights", "run", "--output-dir", "run-2"]
    assert "'a b'" in command
    quick = command.replace("--epochs 6", "--epochs 1").replace("--log-with trackio", "--log-with none")
    done = forkserver.run(shlex.split(quick.replace("--wandb-project 'a b'", "")), cwd=here)
    assert done.returncode == 0, done.stderr
    assert WHOLE in done.stdout
    assert Path("run-2/summary.json").exists()


@pytest.mark.slow
def test_runs_of_several_sizes_of_earlier_versions_and_of_models_of_ones_own_start_from_weights_too(here: Path, capsys):
    several = [*FLAGS[:2], *FLAGS[4:], *HELD, "--scales", "16,32", "--weights", "run", "--output-dir", "two"]
    assert recipe("multiscale")(several) == 0
    assert WHOLE in capsys.readouterr().out
    assert top1("two") == 100
    assert WHOLE in planned(capsys, "--weights", "two")
    earlier = ROOT / "tests" / "fixtures" / "runs-8909503" / "finished"
    model = ("--arch", "test_efficientnet", "--model-kwargs", "channel_multiplier=0.25")
    told = planned(capsys, "--weights", str(earlier), *model)
    assert "new head: theirs is of other classes (" in told

    def net(num_classes: int) -> torch.nn.Module:
        return timm.create_model("test_resnet", num_classes=num_classes)

    given = {"data_root": "photos", "num_workers": 0, "log_with": "none", "crop_scale": 1, "batch_size": 6, "epochs": 1}
    settings = Settings(**given, weights="two", learning_rate=1e-12, output_dir="own")
    assert train(settings, SingleScale(32), model=net)["test"]["32px"]["top1"] == 100
    assert WHOLE in capsys.readouterr().out
    with pytest.raises(InputError, match=r"start a new run from its weights: weights='own', output_dir='own-2'"):
        train(settings.model_copy(update={"learning_rate": 1e-3}), SingleScale(32), model=net)
    again = settings.model_copy(update={"weights": Path("own"), "output_dir": Path("own-2")})
    assert train(again, SingleScale(32), model=net)["test"]["32px"]["top1"] == 100


@pytest.mark.slow
def test_a_configuration_file_starts_from_the_weights_that_a_flag_names(here: Path, capsys):
    """Also where it names others, or timm's."""
    assert recipe("single_scale")([*FLAGS, *HELD, "--weights", "run", "--output-dir", "new"]) == 0
    assert WHOLE in planned(capsys, "--config", "new/config.yaml")
    config = Path("new/config.yaml")
    config.write_text(config.read_text().replace("learning_rate: 1.0e-12", "learning_rate: 1.0e-3"))
    assert WHOLE in planned(capsys, "--config", "new/config.yaml", "--weights", "new")
    assert "weights of test_resnet could not be loaded" in planned(
        capsys, "--config", "new/config.yaml", "--pretrained"
    )
    other = timm.create_model("test_resnet", num_classes=3).state_dict()
    save_file(other, "run/best/model.safetensors")
    assert "--weights run: its SHA-256 is" in planned(capsys, "--config", "new/config.yaml")


@pytest.mark.slow
def test_all_ranks_start_from_the_weights_that_the_first_one_reads(here: Path):
    words = [str(ROOT / "recipes" / "single_scale.py"), *FLAGS, *HELD, "--weights", "run", "--output-dir", "new"]
    done = forkserver.run_ranks(words, timeout=600)
    assert done.returncode == 0, done.stderr
    assert top1("new") == 100
