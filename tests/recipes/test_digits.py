"""Real images that nobody here drew: scikit-learn's handwritten digits, as PNG files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tests.conftest import SLOW, recipe

FLAGS = ("--arch", "test_resnet", "--no-hflip", "--crop-scale", "0.7", "--batch-size", "32", "--learning-rate", "4e-3")
ENOUGH = 97.0


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1797 gray images of 8 x 8, enlarged to 32 x 32: three quarters to train on, the rest to test."""
    root, data = tmp_path_factory.mktemp("digits"), load_digits()
    numbers = np.arange(len(data.target))
    train, test = train_test_split(numbers, test_size=0.25, stratify=data.target, random_state=0)
    for split, members in (("train", train), ("test", test)):
        for i in members:
            folder = root / split / str(data.target[i])
            folder.mkdir(parents=True, exist_ok=True)
            gray = Image.fromarray(np.round(data.images[i] * 255 / 16).astype(np.uint8))
            gray.resize((32, 32), Image.Resampling.BILINEAR).save(folder / f"{i}.png")
    return root


def accuracies(run: Path) -> dict[str, float]:
    summary = json.loads((run / "summary.json").read_text())
    assert {score["images"] for score in summary["test"].values()} == {450}
    return {name: score["top1"] for name, score in summary["test"].items()}


@SLOW
def test_digits_are_recognized_at_16_px_when_trained_at_one_scale(digits: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--data-root", str(digits), "--img-size", "16", "--epochs", "11", "--log-with", "none")
    assert recipe("single_scale")([*FLAGS, *words, "--output-dir", "out"]) == 0
    assert accuracies(tmp_path / "out")["16px"] > ENOUGH


@pytest.mark.slow
def test_digits_are_recognized_at_16_and_32_px_when_trained_at_both(digits: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--data-root", str(digits), "--scales", "16,32", "--epochs", "8", "--log-with", "none")
    assert recipe("multiscale")([*FLAGS, *words, "--output-dir", "out"]) == 0
    found = accuracies(tmp_path / "out")
    assert set(found) == {"16px", "32px"}
    assert min(found.values()) > ENOUGH
