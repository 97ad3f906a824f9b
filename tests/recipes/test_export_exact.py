"""Exports of networks with large logits give the top-1 of evaluation on images of odd sizes, in every format."""

import csv
import json
import shutil
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
FILE = "model.safetensors"
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


def test_every_format_has_the_top_1_of_evaluation(run: Path, odd: Path, tmp_path: Path):
    expected = evaluated(run, odd, tmp_path / "evaluation")
    assert len({*expected.values()}) > 1  # control: there is something to tell apart
    for kind in ("uint8", "float32"):
        assert recipe("export")([str(run), "--onnx-input", kind, "--output-dir", str(tmp_path / kind)]) == 0
    folder, providers = tmp_path / "float32", ["CPUExecutionProvider"]
    names = json.loads((folder / "config.json").read_text())["label_names"]
    prepare = Preprocess.load(folder)
    weights = timm.create_model(run.name, num_classes=len(names), checkpoint_path=str(folder / FILE)).eval()
    program = torch.export.load(folder / "model.pt2").module()
    graph = onnxruntime.InferenceSession(folder / "model.onnx", providers=providers)
    image_graph = onnxruntime.InferenceSession(tmp_path / "uint8/model.onnx", providers=providers)
    largest = 0.0
    for path in odd.glob("*/*"):
        pixels, image = prepare(path.read_bytes()), read(path.read_bytes())
        with torch.no_grad():
            logits = [weights(torch.from_numpy(pixels)).numpy(), program(torch.from_numpy(pixels)).numpy()]
        logits += graph.run(None, {"pixels": pixels}) + image_graph.run(None, {"image": image})
        largest = max(largest, np.abs(logits[0]).max())
        assert [names[row.argmax()] for row in logits] == [expected[path.name]] * 4
        assert all(np.abs(row - logits[0]).max() <= 1e-4 * (1 + np.abs(logits[0]).max()) for row in logits)
    assert largest > 24, largest


def test_an_export_has_no_path_of_the_machine(run: Path, tmp_path: Path):
    assert recipe("export")([str(run), "--output-dir", str(tmp_path / "export")]) == 0
    paths = [str(run.parent), str(tmp_path), str(ROOT), f"{Path.home()}/", sys.prefix, "site-packages"]
    for name, content in contents(tmp_path / "export").items():
        assert [path for path in paths if path.encode() in content] == [], name


def test_the_card_has_no_path_when_settings_have(run: Path, tmp_path: Path):
    copy = Path(shutil.copytree(run, tmp_path / "private" / "copy"))
    config = copy / "config.yaml"
    secret = tmp_path / "private" / "weights.safetensors"
    text = config.read_text()
    assert "weights: null" in text
    config.write_text(text.replace("weights: null", f"weights: {secret}", 1))
    assert recipe("export")([str(copy), "--formats", "safetensors"]) == 0
    card = (copy / "export" / "README.md").read_text()
    assert "weights: weights.safetensors" in card
    assert "private" not in card
