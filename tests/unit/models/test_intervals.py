"""Bootstrap intervals hold the true value about as often as they promise; images and seed alone decide them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from toolkit import Classification, Metric
from toolkit.models import intervals as module
from toolkit.models.intervals import Interval, intervals, resample
from toolkit.strategies.measures import ImageValues, Weighing

NAMES = ("top1", "loss", "macro_f1", "auroc", "average_precision", "expected_cost")
ALL = [metric for metric in (*Classification.metrics, *Classification.extra_metrics) if metric.name != "bayes_cost"]
COSTS = 1.0 - np.eye(3)


def drawn(rng: np.random.Generator, n: int) -> ImageValues:
    """Images of three classes, one rarer, and a model's probabilities."""
    labels = rng.choice(3, size=n, p=(0.5, 0.35, 0.15))
    logits = rng.normal(size=(n, 3))
    logits[np.arange(n), labels] += 1.2
    averaged = torch.log_softmax(torch.from_numpy(logits).float(), 1)
    bound, given = Classification().bind(np.ones(3), torch.device("cpu")), torch.from_numpy(labels)
    record, summed = bound.record(averaged, given), bound.each(averaged, given, torch.float64)
    scores = bound.probabilities(averaged).T.contiguous().numpy()
    return ImageValues(labels, record.double().numpy(), 3, summed.numpy(), scores, COSTS)


def measured(images: ImageValues) -> dict[str, float]:
    names = [metric.name for metric in ALL]
    found = Classification().weighted(names, images, Weighing.plain(len(images.labels)))
    return {name: float(values[0]) for name, values in found.items()}


def of(images: ImageValues, resamples: int) -> dict[str, Interval]:
    return intervals(Classification(), ALL, measured(images), images, resamples)


def test_they_hold_the_true_value_in_about_95_of_100_samples():
    rng = np.random.default_rng(0)
    truth = measured(drawn(rng, 100_000))
    held, narrow = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0)
    trials = 120
    for _ in range(trials):
        for name, found in of(drawn(rng, 150), 120).items():
            if name in held:
                middle, half = (found.low + found.high) / 2, (found.high - found.low) / 2
                held[name] += found.low <= truth[name] <= found.high
                narrow[name] += abs(truth[name] - middle) <= half / 2
    assert {name: count / trials for name, count in held.items() if not 0.86 <= count / trials <= 0.99} == {}
    assert max(narrow.values()) / trials < 0.8  # control: half as wide they hold it in about 67 of 100


def test_four_times_the_images_halve_them():
    rng = np.random.default_rng(1)
    few, many = of(drawn(rng, 500), 400), of(drawn(rng, 2000), 400)
    for name in NAMES:
        ratio = (few[name].high - few[name].low) / (many[name].high - many[name].low)
        assert 1.6 < ratio < 2.5, name


def test_they_are_the_same_whenever_and_in_whatever_parts_they_are_made(monkeypatch: pytest.MonkeyPatch):
    images = drawn(np.random.default_rng(2), 90)
    first = of(images, 130)
    monkeypatch.setattr(module, "AT_ONCE", 90 * 7)
    assert of(images, 130) == first
    another = resample(Classification(), ["top1"], images, 130, seed=1)["top1"]
    assert not np.array_equal(another, resample(Classification(), ["top1"], images, 130)["top1"])


def test_every_metric_has_one_that_holds_its_value_also_where_samples_are_biased():
    images = drawn(np.random.default_rng(3), 150)
    values, found = measured(images), of(images, 300)
    assert {*found} == {metric.name for metric in ALL}
    for name, (low, high) in found.items():
        assert low <= values[name] <= high
        assert low < high
    samples = resample(Classification(), ["worst_class_accuracy"], images, 300)["worst_class_accuracy"]
    assert samples.mean() < values["worst_class_accuracy"]  # control: they are biased
    assert found["top1"].high <= 100


@dataclass(frozen=True)
class Twice(Classification):
    """A task that measures top-1 in its own way."""

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("top1", "twice top-1", percent=False), Metric("loss", "loss"))

    def measure(self, *words) -> dict[str, float]:
        found = super().measure(*words)
        return {"top1": 2 * found["top1"], "loss": found["loss"]}


def test_a_task_of_ones_own_is_measured_by_its_own_definition():
    images = drawn(np.random.default_rng(4), 60)
    own, ours = (resample(task, ["top1", "loss", "auroc"], images, 40) for task in (Twice(), Classification()))
    np.testing.assert_allclose(own["top1"], 2 * ours["top1"])
    np.testing.assert_allclose(own["loss"], ours["loss"])
    np.testing.assert_allclose(own["auroc"], ours["auroc"])


def test_where_all_images_are_right_their_share_has_the_exact_interval_and_other_metrics_have_none():
    images = drawn(np.random.default_rng(6), 60)
    right = images.at(np.flatnonzero(images.record[0] == images.labels)[:30])
    found = of(right, 100)
    assert found["top1"] == (pytest.approx(88.43, abs=0.01), 100)  # as tables of binomial proportions have it
    assert not {"balanced_accuracy", "macro_f1", "worst_class_accuracy"} & found.keys()
    assert found["loss"].low < found["loss"].high


def test_a_metric_that_most_samples_lack_has_none():
    images = drawn(np.random.default_rng(5), 40)
    alone = images.at(np.flatnonzero(images.labels == 0))
    values = {name: value for name, value in measured(alone).items() if np.isfinite(value)}
    assert "auroc" not in values
    assert "auroc" not in intervals(Classification(), ALL, values, alone, 50)
