"""Exports of networks with large logits give the top-1 of evaluation on images of odd sizes, in every format."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

from tests.conftest import ROOT, TINY, contents, recipe
from toolkit.data.images.preprocess import Preprocess, read
from toolkit.data.sources import synthetic
from toolkit.runs import best_model

pytestmark = pytest.mark.slow
ARCHS = ("test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_mambaout")
SIZE, LARGE = 32, 40.0  # px; sum of the absolute weights of a logit, after scaling
FEW = (*TINY, "--img-size", str(SIZE), "--epochs", "2", "--num-workers", "0", "--learning-rate", "4e-3")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test images of the built-in data, enlarged or reduced to odd sizes, with sides 1 to 7 px apart."""
    folder = tmp_path_factory.mktemp("odd")
    for i, path in enumerate(sorted((synthetic.prepare(32, 120) / "test").glob("*/*"))):
        side, more = 21 + 13 * (i % 9), 1 + i % 7
        size = (side, side + more) if i % 2 else (side + more, side)
        target = folder / path.parent.name / f"{i}.png"
        target.parent.mkdir(exist_ok=True)
        Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target)
    return folder


@pytest.fixture(scope="module", params=ARCHS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run whose head was scaled so that logits are large."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    assert recipe("single_scale")([*FEW, "--arch", request.param, "--output-dir", str(folder)]) == 0
    tensors, metadata = best_model.load(folder / "best")
    head = timm.create_model(request.param).pretrained_cfg["classifier"]
    scaled = [name for name in tensors if head in name]
    assert len(scaled) == 2
    factor = LARGE / float(tensors[scaled[0]].abs().sum(-1).max())
    best_model.save(folder / "best", {**tensors, **{name: factor * tensors[name] for name in scaled}}, metadata)
    return folder


def evaluated(run: Path, data: Path, output: Path) -> dict[str, str]:
    """The class that evaluation gives to each image, by file name."""
    words = [str(run), "--data-root", str(data), "--no-amp", "--output-dir", str(output)]
    assert recipe("evaluate")(words) == 0
    (path,) = (output / "predictions").glob("*.csv")
    with path.open(newline="") as file:
        predicted = {Path(row["name"]).name: int(row[f"{SIZE}px/predicted"]) for row in csv.DictReader(file)}
    names = json.loads((run / "class_map.json").read_text())
    return {name: names[str(label)] for name, label in predicted.items()}


@pytest.fixture(scope="module")
def exports(run: Path) -> dict[str, Path]:
    """An export of all formats for each input of ONNX."""
    folders = {kind: run.parent / kind for kind in ("uint8", "float32")}
    for kind, folder in folders.items():
        assert recipe("export")([str(run), "--onnx-input", kind, "--output-dir", str(folder)]) == 0
    return folders


def test_every_format_has_the_top_1_of_evaluation(run: Path, exports: dict[str, Path], odd: Path, tmp_path: Path):
    expected = evaluated(run, odd, tmp_path / "evaluation")
    assert len({*expected.values()}) > 1  # control: there is something to tell apart
    folder, providers = exports["float32"], ["CPUExecutionProvider"]
    names = json.loads((folder / "config.json").read_text())["label_names"]
    prepare = Preprocess.load(folder)
    weights = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    program = torch.export.load(folder / "model.pt2").module()
    graph = onnxruntime.InferenceSession(folder / "model.onnx", providers=providers)
    image_graph = onnxruntime.InferenceSession(exports["uint8"] / "model.onnx", providers=providers)
    largest = 0.0
    for path in odd.glob("*/*"):
        pixels, image = prepare(path.read_bytes()), read(path.read_bytes())
        with torch.no_grad():
            logits = [weights(torch.from_numpy(pixels)).numpy(), program(torch.from_numpy(pixels)).numpy()]
        logits += graph.run(None, {"pixels": pixels}) + image_graph.run(None, {"image": image})
        largest = max(largest, np.abs(logits[0]).max())
        assert [names[row.argmax()] for row in logits] == [expected[path.name]] * 4
        assert all(np.abs(row - logits[0]).max() <= 1e-5 * (1 + np.abs(logits[0]).max()) for row in logits)
    assert largest > 24


def test_the_lines_of_the_card_work_when_onnx_takes_an_image(
    run: Path, exports: dict[str, Path], odd: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(exports["uint8"], tmp_path / "export"))
    shutil.copy(next(odd.glob("*/*")), folder / "photo.jpg")
    card = (folder / "README.md").read_text()
    assert "takes one uint8 RGB image, H x W x 3" in card
    lines = "".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    check = "\nassert abs(by_onnx - model(pixels).detach().numpy()).max() < 1e-5 * (1 + abs(by_onnx).max())\n"
    done = subprocess.run(
        [sys.executable, "-c", lines + check], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_export_has_no_path_of_the_machine(exports: dict[str, Path]):
    home = f"{Path.home()}/"
    for folder in exports.values():
        paths = [str(folder.parent), str(ROOT), home, sys.prefix, "site-packages"]
        for name, content in contents(folder).items():
            assert [path for path in paths if path.encode() in content] == [], name
