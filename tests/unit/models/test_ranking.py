"""AUROC and average precision: scikit-learn's on the same scores, also with ties, absent classes and weights."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from toolkit.models import ranking, weighted_metrics
from toolkit.strategies.measures import ImageValues, Weighing

BOTH = {"auroc": ranking.auroc, "average_precision": ranking.average_precision}


def ranked(seed: int, levels: int | None, n: int = 160, share: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Labels of 0 and 1, and scores that have to do with them; `levels`: so many different ones."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < share).astype(np.int64)
    scores = 0.6 * rng.random(n) + 0.3 * labels
    return labels, (np.round(scores * levels) / levels if levels else scores).astype(np.float32)


def classified(seed: int, classes: int, n: int, absent: tuple[int, ...] = ()) -> ImageValues:
    """Images of one class each, with probabilities that favor it."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([c for c in range(classes) if c not in absent], size=n)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += 1.5
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p = (np.round(p * 50) / 50).astype(np.float32)  # many alike
    record = np.stack([p.argmax(1), p.max(1), p[np.arange(n), labels]]).astype(np.float64)
    summed = np.stack([p.argmax(1) == labels, np.ones(n), -np.log(record[2] + 1e-3)]).astype(np.float64)
    return ImageValues(labels, record, classes, summed, np.ascontiguousarray(p.T))


def of_all(names: list[str], images: ImageValues) -> dict[str, float]:
    found = weighted_metrics.of_classes(names, images, Weighing.plain(len(images.labels)))
    return {name: float(values[0]) for name, values in found.items()}


@pytest.mark.parametrize("levels", [None, 6, 1])
@pytest.mark.parametrize("seed", range(3))
def test_one_ranking_is_measured_as_scikit_learn_does(seed: int, levels: int | None):
    labels, scores = ranked(seed, levels)
    found = ranking.measured(np.flatnonzero(labels), scores, Weighing.plain(len(labels)), BOTH)
    assert found["auroc"][0] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert found["average_precision"][0] == pytest.approx(average_precision_score(labels, scores), abs=1e-9)


@pytest.mark.parametrize("levels", [None, 6])
def test_weights_count_as_images_that_are_there_several_times(levels: int | None):
    labels, scores = ranked(0, levels)
    weighing = Weighing.bootstrap(len(labels), range(70))
    found = ranking.measured(np.flatnonzero(labels), scores, weighing, BOTH)
    for number, counts in enumerate(weighing.counts()):
        drawn = np.repeat(labels, counts), np.repeat(scores, counts)
        assert counts.sum() == len(labels)
        assert found["auroc"][number] == pytest.approx(roc_auc_score(*drawn), abs=1e-9)
        assert found["average_precision"][number] == pytest.approx(average_precision_score(*drawn), abs=1e-9)
    assert np.ptp(found["auroc"]) > 0.05  # control: samples differ


def test_the_means_over_classes_leave_out_those_without_images():
    images = classified(0, 6, 120, absent=(1, 4))
    assert images.scores is not None
    found, each = of_all([*BOTH], images), [0, 2, 3, 5]
    truth = np.stack([images.labels == c for c in each], 1)
    expected = roc_auc_score(truth, images.scores[each].T, average="macro")
    assert found["auroc"] == pytest.approx(100 * expected, abs=1e-6)
    expected = average_precision_score(truth, images.scores[each].T, average="macro")
    assert found["average_precision"] == pytest.approx(100 * expected, abs=1e-6)


def test_images_of_one_class_have_no_auroc_and_a_perfect_precision():
    images = classified(0, 3, 20, absent=(0, 2))
    found = of_all([*BOTH], images)
    assert np.isnan(found["auroc"])
    assert found["average_precision"] == 100


def test_every_weighted_metric_is_that_of_the_drawn_images():
    images, names = classified(1, 5, 80), ["top1", "top5", "loss", "balanced_accuracy", "macro_f1"]
    names += ["worst_class_accuracy", "ece", "auroc", "average_precision"]
    weighing = Weighing.bootstrap(80, range(5))
    found = weighted_metrics.of_classes(names, images, weighing)
    assert [*found] == ["top1", "top5", "loss", "balanced_accuracy", "macro_f1", *names[5:]]
    for number, counts in enumerate(weighing.counts()):
        drawn = of_all(names, images.at(np.repeat(np.arange(80), counts)))
        for name in names:
            assert found[name][number] == pytest.approx(drawn[name], rel=1e-5), name


def test_costs_are_those_of_the_answer_and_of_the_cheapest_decision():
    images = classified(2, 4, 200)
    assert images.scores is not None
    costs = np.random.default_rng(0).random((4, 4)) * (1 - np.eye(4))
    costs[0] *= 20  # never miss class 0
    with_costs = ImageValues(images.labels, images.record, 4, images.summed, images.scores, costs)
    found = of_all(["expected_cost", "bayes_cost"], with_costs)
    p, answer = images.scores.T.astype(np.float64), images.record[0].astype(int)
    cheapest = np.array([min(range(4), key=lambda k: p[i] @ costs[:, k]) for i in range(200)])
    assert found["expected_cost"] == pytest.approx(costs[images.labels, answer].mean(), abs=1e-9)
    assert found["bayes_cost"] == pytest.approx(costs[images.labels, cheapest].mean(), abs=1e-9)
    assert found["bayes_cost"] < found["expected_cost"]  # control
    alike = ImageValues(images.labels, images.record, 4, images.summed, images.scores, 1 - np.eye(4))
    found = of_all(["top1", "expected_cost", "bayes_cost"], alike)
    assert found["expected_cost"] == pytest.approx(1 - found["top1"] / 100)


def test_several_labels_an_image_have_the_metrics_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = (rng.random((150, 5)) < (0.05, 0.2, 0.5, 0.9, 0)).astype(np.int64)
    p = np.round((0.6 * rng.random((150, 5)) + 0.3 * labels) * 40) / 40
    images = ImageValues(labels, np.vstack([p.T, np.ones(150)]), 5, None, np.ascontiguousarray(p.T))
    names = ["map", "auroc", "micro_auroc", "worst_class_ap", "macro_f1", "micro_f1"]
    found = weighted_metrics.of_labels(names, images, (p > 0.5).astype(int), Weighing.plain(150))
    precisions = [average_precision_score(labels[:, c], p[:, c]) for c in range(4)]
    assert found["map"][0] == pytest.approx(100 * np.mean(precisions), abs=1e-6)
    assert found["worst_class_ap"][0] == pytest.approx(100 * min(precisions), abs=1e-6)
    assert found["auroc"][0] == pytest.approx(100 * roc_auc_score(labels[:, :4], p[:, :4], average="macro"), abs=1e-6)
    expected = roc_auc_score(labels, p, average="micro")
    assert found["micro_auroc"][0] == pytest.approx(100 * expected, abs=1e-6)
    weighing = Weighing.bootstrap(150, range(3))
    found = weighted_metrics.of_labels(names, images, (p > 0.5).astype(int), weighing)
    for number, counts in enumerate(weighing.counts()):
        drawn = np.repeat(np.arange(150), counts)
        some, plain = images.at(drawn), Weighing.plain(150)
        alone = weighted_metrics.of_labels(names, some, (p[drawn] > 0.5).astype(int), plain)
        assert {name: values[number] for name, values in found.items()} == {
            name: pytest.approx(values[0], rel=1e-6) for name, values in alone.items()
        }
