"""The task of one class per image, against scikit-learn and values by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, f1_score

from toolkit.models.classification import Classification
from toolkit.strategies.base import BoundTask
from toolkit.system.errors import InputError

N, CLASSES = 40, 6
COUNTS = np.array([40, 20, 10, 10, 10, 10])
CPU = torch.device("cpu")
LABELS = torch.arange(N) % (CLASSES - 1)  # the last class has no image


def bound(**fields) -> BoundTask:
    return Classification(**fields).bind(COUNTS, CPU)


def logits(seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(seed))


def measured(task: Classification, who: BoundTask, averaged: torch.Tensor) -> dict[str, float]:
    sums = dict(zip(task.summed, who.sums(averaged, LABELS, torch.float64).tolist(), strict=True))
    return task.measure(sums, LABELS.numpy(), who.record(averaged, LABELS).numpy(), CLASSES)


def test_metrics_agree_with_scikit_learn():
    task, who = Classification(), bound()
    averaged = who.average([logits()])
    found, predicted = measured(task, who, averaged), logits().argmax(1).numpy()
    assert [*found] == [metric.name for metric in task.metrics]
    assert found["top1"] == pytest.approx(100 * (predicted == LABELS.numpy()).mean())
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert found["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(LABELS.numpy(), predicted))
    assert found["macro_f1"] == pytest.approx(100 * f1_score(LABELS.numpy(), predicted, average="macro"))
    assert found["loss"] == pytest.approx(F.cross_entropy(logits(), LABELS).item())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"loss": "bce"},
        {"loss": "asl"},
        {"loss": "poly", "label_smoothing": 0.1},
        {"class_weights": "inverse"},
        {"label_smoothing": 0.2},
    ],
)
def test_hard_and_one_hot_targets_give_the_same_loss(fields: dict):
    who = bound(**fields)
    hard, soft = (who.loss(logits(), targets) for targets in (who.targets(LABELS), who.mixable(LABELS)))
    torch.testing.assert_close(hard, soft)


def test_label_smoothing_is_what_regularizes():
    task = Classification("bce", 0.2, "inverse")
    assert task.regularized(0.25) == Classification("bce", 0.05, "inverse")
    assert task.regularized(0) == Classification("bce", 0.0, "inverse")
    assert task.regularized(1) == task
    assert task.regularized(100).label_smoothing == 0.99  # below 1, as it must be


def test_cross_entropy_is_torchs_bit_for_bit():
    expected = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(logits(), LABELS)
    assert torch.equal(bound(label_smoothing=0.1).loss(logits(), LABELS), expected)


def test_binary_cross_entropy_is_timms():
    from timm.loss import BinaryCrossEntropy

    found = bound(loss="bce", label_smoothing=0.1).loss(logits(), LABELS)
    torch.testing.assert_close(found, BinaryCrossEntropy(smoothing=0.1)(logits(), LABELS))


def test_asymmetric_and_poly_losses_are_timms_also_of_mixed_images():
    from timm.loss import AsymmetricLossSingleLabel, PolyCrossEntropy

    asymmetric, poly = (bound(loss=loss, label_smoothing=0.1) for loss in ("asl", "poly"))
    theirs = AsymmetricLossSingleLabel(eps=0.1)(logits(), LABELS)
    torch.testing.assert_close(asymmetric.loss(logits(), LABELS), theirs)
    torch.testing.assert_close(poly.loss(logits(), LABELS), PolyCrossEntropy(smoothing=0.1)(logits(), LABELS))

    one_hot, other = asymmetric.mixable(LABELS), LABELS.flip(0)
    mixed = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    expected = 0.7 * theirs + 0.3 * AsymmetricLossSingleLabel(eps=0.1)(logits(), other)
    torch.testing.assert_close(asymmetric.loss(logits(), mixed), expected)
    plain = bound(loss="poly")
    torch.testing.assert_close(plain.loss(logits(), mixed), PolyCrossEntropy()(logits(), mixed))


def test_the_loss_of_an_evaluation_is_that_of_training_without_smoothing_and_weights():
    for loss in ("ce", "bce", "asl", "poly"):
        task = Classification(loss, 0.1, "inverse")
        who, plain = task.bind(COUNTS, CPU), bound(loss=loss)
        found = measured(task, who, who.average([logits()]))["loss"]
        assert found == pytest.approx(plain.loss(logits(), LABELS).item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["ce", "bce", "asl", "poly"])
def test_every_class_counts_alike_when_weights_are_inverse(loss: str):
    plain, weighted = bound(loss=loss), bound(loss=loss, class_weights="inverse")
    weights = COUNTS.sum() / (CLASSES * COUNTS)
    assert (weights * COUNTS).std() < 1e-9
    each = torch.stack([plain.loss(logits()[i : i + 1], LABELS[i : i + 1]) for i in range(N)])
    expected = (each * torch.tensor(weights)[LABELS]).mean()
    assert weighted.loss(logits(), LABELS).item() == pytest.approx(expected.item(), rel=1e-5)


def test_weights_follow_their_definition_and_have_a_mean_of_1_over_images():
    def weights(**fields) -> np.ndarray:
        return bound(**fields).weights.double().numpy()  # type: ignore[attr-defined]

    inverse = COUNTS.sum() / (CLASSES * COUNTS)
    np.testing.assert_allclose(weights(class_weights="inverse"), inverse, rtol=1e-6)
    root = weights(class_weights="inverse", class_weights_power=0.5)
    np.testing.assert_allclose(root / root[0], np.sqrt(inverse / inverse[0]), rtol=1e-6)
    effective = weights(class_weights="effective")
    number = (1 - 0.999**COUNTS) / (1 - 0.999)  # arXiv:1901.05555, eq. 2
    np.testing.assert_allclose(effective / effective[0], number[0] / number, rtol=1e-5)
    for found in (root, effective, weights(class_weights="effective", class_weights_power=2.0)):
        assert (found * COUNTS).sum() / COUNTS.sum() == pytest.approx(1, rel=1e-6)


def test_inverse_weights_are_those_of_earlier_versions_bit_for_bit():
    share = COUNTS.sum() / (len(COUNTS) * np.maximum(COUNTS, 1))
    assert torch.equal(bound(class_weights="inverse").weights, torch.tensor(share, dtype=torch.float32))


@pytest.mark.parametrize("loss", ["ce", "bce", "asl", "poly"])
def test_a_weighted_loss_is_the_mean_of_its_micro_batches(loss: str):
    """So that accumulation and more processes train the same."""
    who = bound(loss=loss, class_weights="inverse")
    halves = [who.loss(logits()[part], LABELS[part]) for part in (slice(0, N // 2), slice(N // 2, N))]
    torch.testing.assert_close(torch.stack(halves).mean(), who.loss(logits(), LABELS))


@pytest.mark.parametrize("loss", ["ce", "bce", "asl", "poly"])
def test_probabilities_of_an_average_are_the_mean_probabilities(loss: str):
    who = bound(loss=loss)
    pair = [logits(0), logits(1)]
    expected = torch.stack([who.probabilities(who.average([one])) for one in pair]).mean(0)
    torch.testing.assert_close(who.probabilities(who.average(pair)), expected)
    torch.testing.assert_close(who.confidence(expected), expected.max(1).values)


@pytest.mark.parametrize("loss", ["ce", "bce", "asl", "poly"])
def test_log_probabilities_are_of_a_distribution(loss: str):
    found = bound(loss=loss).log_probabilities(logits().bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(found.shape[:-1]))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"loss": "hinge"}, "--loss hinge: must be one of ce, bce, asl, poly with --task classification"),
        ({"class_weights": "balanced"}, "--class-weights balanced: must be one of none, inverse, effective"),
        ({"class_weights_power": 0.0}, "--class-weights-power 0: must be above 0"),
        ({"label_smoothing": 1.0}, "--label-smoothing 1: must be 0 or more and below 1"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields: dict, told: str):
    with pytest.raises(InputError, match=told):
        Classification(**fields)


def test_labels_that_are_no_classes_are_refused():
    with pytest.raises(InputError, match=r"labels of shape \(6,\) and type float32.*: the task wants one whole number"):
        Classification().check_labels(np.zeros((4, 6), dtype=np.float32), CLASSES)


def test_a_metric_is_found_by_name_or_title():
    assert Classification.metric("top-1") is Classification.metric("top1") is Classification.metrics[0]
    with pytest.raises(InputError, match="--select-by accuracy: --task classification measures top1, top5, loss"):
        Classification.metric("accuracy")
    assert [metric.name for metric in Classification.headline("macro_f1")] == ["macro_f1", "top1"]
    assert Classification.metric("loss").gain(0.5, 0.75) == 0.25


def test_sure_probabilities_of_several_sizes_average_to_finite_logits():
    who, sure = bound(loss="bce"), torch.full((2, CLASSES), 40.0)
    averaged = who.average([sure, sure])
    torch.testing.assert_close(averaged, sure)
    assert torch.isfinite(who.sums(who.average([-sure, sure]), LABELS[:2], torch.float64)).all()
