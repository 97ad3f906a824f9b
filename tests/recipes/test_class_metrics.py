"""Balanced accuracy, macro F1, worst class and calibration in summary.json, against scikit-learn on the predictions."""

import csv
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from tests.conftest import TINY, TORCHRUN, Runner
from toolkit import Classification, Metric, Settings, SingleScale, train
from toolkit.models.metrics import Predictions, class_metrics

NAMES = ("balanced_accuracy", "macro_f1", "worst_class", "worst_class_accuracy", "ece")


def columns(run: Path, split: str) -> dict[str, np.ndarray]:
    with (run / "predictions" / f"{split}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0] if name != "name"}


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """By its definition, with 15 bins that are open below."""
    edges = np.linspace(0, 1, 16)
    bins = [(confidence > low) & (confidence <= high) for low, high in itertools.pairwise(edges)]
    return sum(abs(right[inside].sum() - confidence[inside].sum()) for inside in bins) / len(right)


def check(run: Path) -> None:
    """Every evaluated size of val and test."""
    summary, classes = (json.loads((run / name).read_text()) for name in ("summary.json", "class_map.json"))
    for split in ("val", "test"):
        found = columns(run, split)
        labels = found["label"].astype(int)
        assert summary[split].keys() == {column.split("/")[0] for column in found if "/" in column}
        for spec, values in summary[split].items():
            predicted = found[f"{spec}/predicted"].astype(int)
            assert values["images"] == len(labels)
            assert values["balanced_accuracy"] == pytest.approx(
                100 * balanced_accuracy_score(labels, predicted), abs=1e-6
            )
            expected = 100 * f1_score(labels, predicted, average="macro", zero_division=0)
            assert values["macro_f1"] == pytest.approx(expected, abs=1e-6)
            present = np.unique(labels)
            recall = 100 * recall_score(labels, predicted, labels=present, average=None, zero_division=0)
            assert values["worst_class"] == classes[str(present[recall.argmin()])]
            assert values["worst_class_accuracy"] == pytest.approx(recall.min(), abs=1e-6)
            ece = calibration_error(found[f"{spec}/confidence"], predicted == labels)
            assert values["ece"] == pytest.approx(ece, abs=1e-5)  # the file holds six digits


def test_class_metrics_of_a_run_are_scikit_learns(finished: Path):
    check(finished)
    summary = json.loads((finished / "summary.json").read_text())
    assert {len({json.dumps(summary[split]["32px"][name]) for split in ("val", "test")}) for name in NAMES} != {1}
    assert summary["data"]["test"]["images"] == 100


@pytest.mark.slow
def test_class_metrics_count_each_image_once_on_two_processes(run: Runner, tmp_path: Path):
    words = ["--scales", "16,32", "--epochs", "2", "--output-dir", "run"]
    done = run("recipes/multiscale.py", *TINY, *words, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    check(tmp_path / "run")


@dataclass(frozen=True)
class OnlyTop1(Classification):
    """A task with one metric, and a calibration error of its own."""

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("top1", "top-1"), Metric("ece", "my calibration"))

    def measure(self, *words) -> dict[str, float]:
        return {"top1": super().measure(*words)["top1"], "ece": 42.0}


def test_a_task_with_one_class_per_image_has_them_too_beside_its_own_metrics(tmp_path: Path):
    settings = {"synthetic_count": 60, "synthetic_size": 16, "batch_size": 20, "epochs": 1, "log_with": "none"}
    summary = train(Settings(**settings, output_dir=tmp_path / "run"), SingleScale(16), task=OnlyTop1())
    values = summary["test"]["16px"]
    assert {"top1", *NAMES} < values.keys()
    assert values["ece"] == 42
    assert "top5" not in values


def test_a_class_without_images_does_not_count_but_one_that_is_only_predicted_counts_for_f1():
    labels, predicted = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 2, 3])
    found = class_metrics(Predictions(labels, predicted, np.ones(6)), ["a", "b", "c", "d", "e"])
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert found["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(100 * f1_score(labels, predicted, average="macro", zero_division=0))
    assert (found["worst_class"], found["worst_class_accuracy"]) == ("b", 50)
    assert found["ece"] == pytest.approx(2 / 6)
