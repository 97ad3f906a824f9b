"""mAP, F1 and thresholds of several labels an image: the same as scikit-learn's on the same predictions."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from timm.loss import AsymmetricLossMultiLabel

from toolkit import InputError, MultiLabel
from toolkit.models import multilabel_metrics as metrics

CPU = torch.device("cpu")


def predictions(seed: int, n: int = 200, classes: int = 7, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities that have to do with each other; `levels`: so many different values, many alike."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, classes)) < np.linspace(0.05, 0.8, classes)).astype(np.int64)
    p = 1 / (1 + np.exp(-(rng.normal(size=(n, classes)) + 1.5 * labels - 1)))
    return labels, (np.round(p * levels) / levels if levels else p).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("seed", range(3))
def test_map_and_f1_are_those_of_scikit_learn(seed: int, levels: int | None):
    labels, p = predictions(seed, levels=levels)
    thresholds = np.array(metrics.best_thresholds(labels, p))
    predicted = p > thresholds
    assert metrics.mean_average_precision(labels, p) == pytest.approx(
        100 * average_precision_score(labels, p, average="macro"), abs=1e-6
    )
    for average, own in (("micro", metrics.micro_f1), ("macro", metrics.macro_f1)):
        assert own(labels, predicted) == pytest.approx(100 * f1_score(labels, predicted, average=average), abs=1e-6)


def test_a_class_without_images_counts_neither_for_map_nor_without_predictions_for_f1():
    labels, p = predictions(0)
    labels[:, 2] = 0
    others = [0, 1, 3, 4, 5, 6]
    assert metrics.mean_average_precision(labels, p) == pytest.approx(
        100 * average_precision_score(labels[:, others], p[:, others], average="macro"), abs=1e-6
    )
    predicted = p > 0.5
    predicted[:, 2] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's of a class it leaves out
        expected = f1_score(labels, predicted, average="macro", zero_division=np.nan)
    assert metrics.macro_f1(labels, predicted) == pytest.approx(100 * expected, abs=1e-6)
    nothing = np.zeros_like(labels)
    assert metrics.mean_average_precision(nothing, p) == metrics.micro_f1(nothing, nothing) == 0
    assert metrics.best_thresholds(labels, p)[2] == 0.5


@pytest.mark.parametrize("levels", [None, 5])
def test_no_other_threshold_of_a_class_has_a_higher_f1(levels: int | None):
    labels, p = predictions(3, levels=levels)
    for c, threshold in enumerate(metrics.best_thresholds(labels, p)):
        assert 0 < threshold < 1
        found = f1_score(labels[:, c], p[:, c] > threshold)
        others = [f1_score(labels[:, c], p[:, c] > other) for other in np.linspace(0.001, 0.999, 400)]
        assert found >= max(others) - 1e-12


def test_a_threshold_is_in_the_middle_between_separate_probabilities():
    labels = np.array([[1], [1], [0], [0]])
    assert metrics.best_thresholds(labels, np.array([[0.9], [0.8], [0.2], [0.1]])) == [0.5]
    assert metrics.best_thresholds(labels, np.array([[0.9], [0.3], [0.2], [0.1]])) == [pytest.approx(0.25)]
    assert metrics.best_thresholds(labels, np.zeros((4, 1))) == [0.5]  # none tells them apart
    assert metrics.best_thresholds(labels, np.ones((4, 1))) == [0.5]


def test_what_is_measured_and_answered_follows_the_thresholds():
    labels, p = predictions(1)
    record = np.vstack([p.T, np.ones(len(p))])
    task = MultiLabel(thresholds=tuple(metrics.best_thresholds(labels, p)))
    found = task.measure({"loss": 0.0}, labels, record, 7)
    answers = [task.answer(row.astype(np.float32), tuple("abcdefg")) for row in p]
    predicted = np.array([[name in answer.split("|") for name in "abcdefg"] for answer in answers])
    assert found["macro_f1"] == pytest.approx(100 * f1_score(labels, predicted, average="macro"), abs=1e-6)
    assert found["macro_f1"] > MultiLabel(thresholds=(0.9,)).measure({"loss": 0.0}, labels, record, 7)["macro_f1"]


def test_thresholds_are_chosen_where_none_are_given_and_only_there():
    labels, p = predictions(1)
    record = np.vstack([p.T, np.ones(len(p))])
    assert MultiLabel().choices(labels, record) == {"thresholds": metrics.best_thresholds(labels, p)}
    assert MultiLabel(thresholds=(0.3,)).choices(labels, record) == {}
    assert MultiLabel(thresholds=(0.3,)).exported("ab") == {"thresholds": [0.3, 0.3]}


def test_the_losses_are_means_over_images_and_classes():
    labels, p = predictions(2)
    logits, targets = torch.logit(torch.from_numpy(p)).float(), torch.from_numpy(labels)
    counts = MultiLabel().class_counts(labels, 7)

    def loss(**fields) -> float:
        bound = MultiLabel(**fields).bind(counts, CPU)
        return float(bound.loss(logits, bound.targets(targets)))

    y = targets.float()
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
    assert loss() == pytest.approx(float(plain.mean()), rel=1e-6)
    weights = torch.from_numpy((1 / counts) / (1 / counts).mean()).float()
    assert loss(class_weights="inverse") == pytest.approx(float((plain * weights).mean()), rel=1e-5)
    root = torch.from_numpy(np.sqrt(1 / counts) / np.sqrt(1 / counts).mean()).float()
    assert loss(class_weights="inverse", class_weights_power=0.5) == pytest.approx(
        float((plain * root).mean()), rel=1e-5
    )
    assert loss(loss="asl") == pytest.approx(float(AsymmetricLossMultiLabel()(logits, y)) / 7, rel=1e-5)
    smooth = torch.nn.functional.binary_cross_entropy_with_logits(logits, 0.9 * y + 0.05)
    assert loss(label_smoothing=0.1) == pytest.approx(float(smooth), rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"thresholds": (1.5,)}, "--task-kwargs thresholds=1.5: a threshold must be above 0 and below 1"),
        ({"thresholds": (0.5, 0.0)}, "--task-kwargs thresholds=0.0: a threshold must be above 0 and below 1"),
        ({"thresholds": "high"}, "--task-kwargs thresholds=high: a threshold must be above 0 and below 1"),
        ({"loss": "ce"}, "--loss ce: must be one of bce, asl with --task multilabel"),
        ({"label_smoothing": 1.0}, "--label-smoothing 1: must be 0 or more and below 1"),
    ],
)
def test_values_that_do_not_fit_are_refused(fields: dict, told: str):
    with pytest.raises(InputError) as error:
        MultiLabel(**fields)
    assert str(error.value) == told


def test_a_class_that_some_images_have_and_others_have_not_is_needed_to_select_by_auroc():
    task, labels = MultiLabel(), np.array([[1, 0], [1, 0]])
    for name in ("auroc", "micro_auroc"):
        with pytest.raises(InputError) as error:
            task.check_selection(task.metric(name), labels, ["a", "b"])
        assert str(error.value).startswith(
            f"--select-by {name}: no class is on some of the 2 validation images and not"
        )
        task.check_selection(task.metric(name), np.array([[1, 0], [1, 1]]), ["a", "b"])
    task.check_selection(task.metric("map"), labels, ["a", "b"])


def test_thresholds_for_another_number_of_classes_are_refused():
    with pytest.raises(InputError, match="--task-kwargs thresholds: 2 for 3 classes: give one, or one for each"):
        MultiLabel(thresholds=(0.5, 0.5)).check_labels(np.ones((4, 3), dtype=np.int64), 3)


def test_a_class_without_images_is_named():
    with pytest.raises(InputError, match=r"^no image of train has class 'b': leave the class out"):
        MultiLabel().check_counts(np.array([3, 0, 1]), "abc")
    with pytest.raises(InputError, match=r"^no image of train has class 'b', nor 1 others: "):
        MultiLabel().check_counts(np.array([3, 0, 0]), "abc")
