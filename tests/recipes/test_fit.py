"""Objects at the border: what --fit shows of images is the same in evaluation, prediction, exports and the server."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tests.conftest import recipe
from tests.recipes.test_tutorial import OFFLINE, SERVE, free_port, post
from toolkit import load
from toolkit.config.choices import Fit
from toolkit.data.images.preprocess import Preprocess, read

pytestmark = pytest.mark.slow
FITS = get_args(Fit)
SIZE, LONG, SHORT = 32, 160, 120  # px
COLORS = {"blue": (30, 40, 230), "green": (20, 200, 40), "red": (230, 30, 30), "yellow": (230, 220, 20)}
COUNTS = {"train": 50, "val": 10, "test": 25}
BORDER = (LONG - SHORT) // 2  # px on either side of the square in the middle
FLAGS = (
    *("--img-size", str(SIZE), "--arch", "test_resnet", "--epochs", "6", "--batch-size", "20", "--crop-scale", "0.8"),
    *("--learning-rate", "4e-3", "--log-with", "none", "--no-amp", "--num-workers", "0"),
)


def photo(color: tuple[int, int, int], key: int) -> Image.Image:
    """Gray noise with a patch of the color outside of the square in the middle: 4:3, or turned 3:4."""
    rng = np.random.default_rng(key)
    pixels = np.repeat(rng.integers(60, 200, (SHORT, LONG, 1), dtype=np.uint8), 3, axis=2)
    top, left = int(rng.integers(SHORT - 40)), int(rng.choice([0, LONG - BORDER]))
    pixels[top : top + 40, left : left + BORDER] = color
    return Image.fromarray(pixels if key % 2 else pixels.transpose(1, 0, 2))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, key = tmp_path_factory.mktemp("border") / "data", 0
    for split, count in COUNTS.items():
        for name, color in COLORS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                key += 1
                photo(color, key).save(root / split / name / f"{i}.{'jpg' if i % 3 else 'png'}", quality=90)
    return root


@pytest.fixture(scope="module")
def runs(data: Path) -> dict[str, Path]:
    """A run of each fit, which differ in nothing else."""
    folders = {fit: data.parent / fit for fit in FITS}
    for fit, folder in folders.items():
        words = ["--data-root", str(data), *FLAGS, *(["--fit", fit] if fit != "crop" else [])]
        assert recipe("single_scale")([*words, "--output-dir", str(folder)]) == 0
    return folders


@pytest.fixture(scope="module")
def exports(runs: dict[str, Path]) -> dict[tuple[str, str], Path]:
    folders = {(fit, kind): runs[fit].parent / f"{fit}-{kind}" for fit in FITS for kind in ("float32", "uint8")}
    for (fit, kind), folder in folders.items():
        words = [str(runs[fit]), "--formats", "safetensors,onnx", "--onnx-input", kind, "--output-dir", str(folder)]
        assert recipe("export")(words) == 0
    return folders


def top1(run: Path) -> float:
    return json.loads((run / "summary.json").read_text())["test"][f"{SIZE}px"]["top1"]


def accuracy(predicted: Mapping[Path, str]) -> float:
    """Percent of the images whose class is the name of their folder."""
    return 100 * sum(path.parent.name == label for path, label in predicted.items()) / len(predicted)


def test_whole_images_show_what_the_square_in_the_middle_leaves_out(runs: dict[str, Path]):
    found = {fit: top1(run) for fit, run in runs.items()}
    assert found["crop"] < 50  # a quarter is chance
    assert found["pad"] >= found["crop"] + 10
    assert found["squash"] >= found["crop"] + 10


@pytest.fixture(scope="module", params=FITS)
def fit(request: pytest.FixtureRequest) -> Fit:
    return request.param


@pytest.fixture(scope="module")
def evaluated(fit: Fit, runs: dict[str, Path], data: Path) -> dict[Path, str]:
    """The class that evaluation gives to each test image."""
    output = data.parent / f"evaluation-{fit}"
    words = [str(runs[fit]), "--data-root", str(data), "--split", "test", "--no-amp", "--output-dir", str(output)]
    assert recipe("evaluate")(words) == 0
    (table,) = (output / "predictions").glob("*.csv")
    names = json.loads((runs[fit] / "class_map.json").read_text())
    with table.open(newline="") as file:
        found = {data / row["name"]: names[row[f"{SIZE}px/predicted"]] for row in csv.DictReader(file)}
    assert len(found) == COUNTS["test"] * len(COLORS)
    return found


def test_evaluation_of_the_finished_run_has_the_accuracy_of_training(
    fit: Fit, runs: dict[str, Path], evaluated: dict[Path, str]
):
    assert accuracy(evaluated) == pytest.approx(top1(runs[fit]))


def test_predictions_are_those_of_evaluation(fit: Fit, runs: dict[str, Path], data: Path, evaluated: dict[Path, str]):
    output = data.parent / f"{fit}.csv"
    assert recipe("predict")([str(runs[fit]), str(data / "test"), "--no-amp", "--output", str(output)]) == 0
    with output.open(newline="") as file:
        assert {Path(row["path"]): row["label"] for row in csv.DictReader(file)} == evaluated


def test_a_predictor_in_memory_has_the_classes_of_evaluation(
    fit: Fit, runs: dict[str, Path], evaluated: dict[Path, str]
):
    predictor = load(runs[fit])
    best = predictor([*evaluated]).argmax(1).tolist()
    assert [predictor.classes[label] for label in best] == [*evaluated.values()]


def test_exports_have_the_classes_of_evaluation(
    fit: Fit, exports: dict[tuple[str, str], Path], evaluated: dict[Path, str]
):
    pixels_graph, image_graph = (
        onnxruntime.InferenceSession(exports[fit, kind] / "model.onnx", providers=["CPUExecutionProvider"])
        for kind in ("float32", "uint8")
    )
    folder = exports[fit, "float32"]
    prepare, names = Preprocess.load(folder), json.loads((folder / "config.json").read_text())["label_names"]
    assert prepare.fit == fit
    for path, label in evaluated.items():
        content = path.read_bytes()
        (by_pixels,) = pixels_graph.run(None, {"pixels": prepare(content)})
        (by_image,) = image_graph.run(None, {"image": read(content)})
        assert [names[by_pixels.argmax()], names[by_image.argmax()]] == [label] * 2
        assert np.abs(by_pixels - by_image).max() <= 1e-5 * (1 + np.abs(by_pixels).max())


@pytest.mark.parametrize("fit", ["pad", "squash"], indirect=True)
def test_an_export_has_other_classes_when_images_are_cropped(
    fit: Fit, exports: dict[tuple[str, str], Path], evaluated: dict[Path, str]
):
    """The control of the test above."""
    folder = exports[fit, "float32"]
    graph = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    prepare, names = replace(Preprocess.load(folder), fit="crop"), [*COLORS]
    logits = {path: graph.run(None, {"pixels": prepare(path.read_bytes())})[0] for path in evaluated}
    assert accuracy({path: names[row.argmax()] for path, row in logits.items()}) < accuracy(evaluated) - 10


@pytest.fixture
def server(fit: Fit, exports: dict[tuple[str, str], Path], tmp_path: Path) -> Iterator[int]:
    """The port of the tutorial's server with this export."""
    (tmp_path / "serve.py").write_text(SERVE)
    port = free_port()
    command = [sys.executable, "serve.py", str(exports[fit, "float32"]), str(port)]
    process = subprocess.Popen(command, cwd=tmp_path, env=OFFLINE, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


def test_the_server_has_the_classes_of_evaluation(server: int, evaluated: dict[Path, str]):
    answers = {path: post(server, path.read_bytes()) for path in evaluated}
    assert {status for status, _ in answers.values()} == {200}
    assert {path: next(iter(odds)) for path, (_, odds) in answers.items()} == evaluated


def test_the_card_says_what_the_run_sees(fit: Fit, exports: dict[tuple[str, str], Path]):
    card = (exports[fit, "float32"] / "README.md").read_text()
    said = {"crop": "the largest square in the middle", "pad": "of the color (124, 116, 104)", "squash": "stretched"}
    assert [name for name, words in said.items() if words in card] == [fit]


def test_an_export_of_a_run_without_the_setting_crops(runs: dict[str, Path], exports: dict[tuple[str, str], Path]):
    """As a run of an earlier version, and an export of one, have none."""
    config = runs["crop"] / "config.yaml"
    text = config.read_text()
    assert "fit: crop\n" in text
    config.write_text(text.replace("fit: crop\n", ""))
    try:
        assert load(runs["crop"]).transform.fit == "crop"
    finally:
        config.write_text(text)
    about = json.loads((exports["crop", "float32"] / "config.json").read_text())["preprocess"]
    del about["fit"]
    assert Preprocess(**about).fit == "crop"
