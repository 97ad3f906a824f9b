"""Consistency between scales, against values by hand and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor

from toolkit import InputError
from toolkit.models.classification import Classification
from toolkit.strategies.base import Step
from toolkit.strategies.consistency import CONSISTENCY, Teaching, consistency, taught_loss

FORMS = sorted(CONSISTENCY)
TASK = Classification().bind(np.ones(7), torch.device("cpu"))


TARGETS = torch.tensor([0, 1, 2, 3, 4])


def apart(form: str, teacher: Tensor, student: Tensor, **options) -> Tensor:
    targets = TARGETS[: len(teacher)] % teacher.shape[1]
    return Teaching(form, **options).disagreement(teacher, student, targets, TASK)  # type: ignore[arg-type]


def between(logits: list[Tensor], form: str) -> Tensor:
    return consistency(logits, form, TARGETS[: len(logits[0])] % logits[0].shape[1], TASK)  # type: ignore[arg-type]


def logits(seed: int, rows: int = 5, classes: int = 7) -> Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def test_kl_is_the_value_by_hand_when_probabilities_are_simple():
    larger, smaller = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.25, 0.75]]))
    # 1/2 log(2) + 1/2 log(2/3)
    assert apart("kl", larger, smaller).item() == pytest.approx(0.14384104, abs=1e-6)
    # the other way round: 1/4 log(1/2) + 3/4 log(3/2)
    assert apart("kl", smaller, larger).item() == pytest.approx(0.13081204, abs=1e-6)


def test_kl_agrees_with_scipy_when_averaged_over_a_batch():
    larger, smaller = logits(0), logits(1)
    expected = np.mean(entropy(softmax(larger.numpy(), 1), softmax(smaller.numpy(), 1), axis=1))
    assert apart("kl", larger, smaller).item() == pytest.approx(expected, rel=1e-5)


def test_js_agrees_with_scipy_when_averaged_over_a_batch():
    larger, smaller = logits(0), logits(1)
    distances = jensenshannon(softmax(larger.numpy(), 1), softmax(smaller.numpy(), 1), axis=1)
    assert apart("js", larger, smaller).item() == pytest.approx(np.mean(distances**2), rel=1e-5)


def test_js_is_log_2_when_predictions_have_nothing_in_common():
    certain = torch.tensor([[100.0, 0.0]])
    assert apart("js", certain, certain.flip(1)).item() == pytest.approx(math.log(2), abs=1e-6)


def test_mse_is_the_value_by_hand_when_logits_are_simple():
    larger, smaller = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 3.0]])
    assert apart("mse", larger, smaller).item() == pytest.approx((1 + 4 + 0 + 9) / 4)


@pytest.mark.parametrize("form", FORMS)
def test_consistency_is_zero_when_both_scales_agree(form: str):
    same = logits(0)
    assert between([same, same.clone()], form).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_larger_side_receives_no_gradient_when_two_scales_disagree(form: str):
    smaller, larger = logits(0).requires_grad_(), logits(1).requires_grad_()
    between([smaller, larger], form).backward()
    assert larger.grad is None
    assert smaller.grad is not None
    assert smaller.grad.abs().sum() > 0


@pytest.mark.parametrize("form", FORMS)
def test_only_the_largest_receives_no_gradient_when_there_are_three_scales(form: str):
    scales = [logits(seed).requires_grad_() for seed in range(3)]
    between(scales, form).backward()
    assert [scale.grad is not None for scale in scales] == [True, True, False]


@pytest.mark.parametrize("form", FORMS)
def test_consistency_is_the_mean_over_all_pairs_when_there_are_three_scales(form: str):
    small, middle, large = (logits(seed) for seed in range(3))
    expected = (apart(form, middle, small) + apart(form, large, small) + apart(form, large, middle)) / 3
    assert between([small, middle, large], form).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "standardized"])
def test_consistency_is_not_zero_and_teaches_when_there_are_two_classes(form: str):
    smaller, larger = logits(0, classes=2).requires_grad_(), logits(1, classes=2)
    loss = between([smaller, larger], form)
    loss.backward()
    assert loss.item() > 0.01
    assert smaller.grad is not None
    assert smaller.grad.abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_consistency_is_computed_in_float32_when_logits_are_half_precision(form: str):
    smaller, larger = logits(0), logits(1)
    loss = between([smaller.bfloat16(), larger.bfloat16()], form)
    exact = between([smaller.bfloat16().float(), larger.bfloat16().float()], form)
    assert loss.dtype == torch.float32
    assert loss.item() == exact.item()


@pytest.mark.parametrize("form", FORMS)
def test_consistency_stays_finite_when_predictions_are_certain(form: str):
    smaller, larger = torch.tensor([[300.0, -300.0]]).requires_grad_(), torch.tensor([[-300.0, 300.0]])
    loss = between([smaller, larger], form)
    loss.backward()
    assert loss.isfinite()
    assert smaller.grad is not None
    assert smaller.grad.isfinite().all()


def test_standardized_ignores_the_scale_and_offset_of_the_logits():
    teacher, student = logits(0), logits(1)
    assert apart("standardized", teacher, 5 * student + 3).item() == pytest.approx(
        apart("standardized", teacher, student).item(), rel=1e-4
    )
    assert apart("standardized", teacher, 5 * teacher + 3).item() == pytest.approx(0, abs=1e-5)
    assert apart("kl", teacher, 5 * teacher + 3).item() > 0.1  # the control


def test_dkd_is_kl_of_the_true_class_and_twice_that_of_the_rest():
    teacher, student = logits(0), logits(1)
    p, q = softmax(teacher.numpy(), 1), softmax(student.numpy(), 1)
    rows = np.arange(5)
    whether = [np.stack([x[rows, rows], 1 - x[rows, rows]]) for x in (p, q)]
    rest = [np.array([np.delete(row, i) for i, row in enumerate(x)]) for x in (p, q)]
    expected = entropy(*whether, axis=0) + 2 * entropy(*rest, axis=1)
    assert apart("dkd", teacher, student).item() == pytest.approx(expected.mean(), rel=1e-4)


def test_alpha_is_the_larger_of_kl_and_the_clipped_reverse_divergence():
    teacher, student = logits(0), logits(1)
    p, q = softmax(teacher.double().numpy(), 1), softmax(student.double().numpy(), 1)
    reverse = 0.5 * ((np.minimum(q / p, 5) - 1) * q).sum(1)
    expected = np.maximum(entropy(p, q, axis=1), reverse)
    assert apart("alpha", teacher, student).item() == pytest.approx(expected.mean(), rel=1e-4)
    alike = teacher + torch.randn(5, 7, generator=torch.Generator().manual_seed(2)) / 2
    p, q = softmax(teacher.double().numpy(), 1), softmax(alike.double().numpy(), 1)
    assert (q / p).max() < 5  # nothing is clipped: half the chi-square
    expected = np.maximum(entropy(p, q, axis=1), 0.5 * ((q**2 / p).sum(1) - 1))
    assert apart("alpha", teacher, alike).item() == pytest.approx(expected.mean(), rel=1e-3)


def test_alpha_stays_small_where_a_sure_teacher_makes_the_ratio_large():
    teacher, student = torch.tensor([[25.0, 0.0, 0.0]]), torch.zeros(1, 3, requires_grad=True)
    loss = apart("alpha", teacher, student)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * ((1 / 3 - 1) / 3 + 2 * (5 - 1) / 3), rel=1e-4)
    assert student.grad is not None
    assert student.grad.abs().max() < 5


def test_a_share_means_as_much_where_classes_have_a_probability_each():
    """The loss of the labels is a mean over classes then, and so is that of the predictions."""
    task = Classification(loss="bce").bind(np.ones(7), torch.device("cpu"))
    teacher, student = logits(0), logits(1)
    p, q = teacher.sigmoid().double(), student.sigmoid().double()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    found = Teaching("kl").disagreement(teacher, student, TARGETS, task)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_temperature_softens_both_sides_and_keeps_the_size_of_the_gradient():
    teacher, student = logits(0), logits(1)
    soft = [softmax(x.numpy() / 4, 1) for x in (teacher, student)]
    assert apart("kl", teacher, student, temperature=4).item() == pytest.approx(
        16 * entropy(*soft, axis=1).mean(), rel=1e-4
    )


def test_a_gate_lets_only_right_teachers_teach():
    right, wrong = torch.eye(5, 7) * 9, torch.roll(torch.eye(5, 7) * 9, 1, 1)
    student = logits(1)
    assert apart("kl", right, student, gate=True).item() == apart("kl", right, student).item() > 0
    assert apart("kl", wrong, student, gate=True).item() == 0
    assert apart("kl", wrong, student).item() > 0  # the control
    half = torch.cat([right[:2], wrong[2:]])
    assert apart("kl", half, student, gate=True).item() == pytest.approx(
        2 / 5 * apart("kl", right[:2], student[:2]).item(), rel=1e-5
    )


def test_a_gate_asks_each_class_apart_when_they_have_a_probability_each():
    task = Classification(loss="bce").bind(np.ones(7), torch.device("cpu"))
    teacher, student = torch.full((1, 7), -9.0), torch.zeros(1, 7)  # right on all classes but the image's own
    whole = Teaching("kl").disagreement(teacher, student, torch.tensor([2]), task)
    gated = Teaching("kl", gate=True).disagreement(teacher, student, torch.tensor([2]), task)
    assert gated.item() == pytest.approx(6 / 7 * whole.item(), rel=1e-5)


def test_mixed_targets_stand_for_their_heaviest_class():
    mixed = torch.tensor([[0.0, 0.3, 0.7, 0, 0, 0, 0]])
    assert TASK.true_class(mixed).tolist() == [2]
    task = Classification(loss="bce").bind(np.ones(7), torch.device("cpu"))
    assert task.true_class(mixed).tolist() == [[1, 1, 0, 1, 1, 1, 1]]


def taught(scales: list[Tensor], progress: float = 1.0, **options) -> float:
    step = Step((16, 24, 32), 5, progress)
    return taught_loss(scales, TARGETS, TASK, Teaching(**options), step).total.item()


def test_a_share_of_each_taught_scale_comes_from_its_teachers_and_all_scales_weigh_the_same():
    scales = [logits(seed) for seed in range(3)]
    labels = [TASK.loss(x, TARGETS) for x in scales]
    soft = [
        (apart("kl", scales[1], scales[0]) + apart("kl", scales[2], scales[0])) / 2,
        apart("kl", scales[2], scales[1]),
    ]
    expected = (0.6 * labels[0] + 0.4 * soft[0] + 0.6 * labels[1] + 0.4 * soft[1] + labels[2]) / 3
    assert taught(scales, share=0.4, ramp=False) == pytest.approx(expected.item(), rel=1e-5)
    assert taught(scales, share=0) == pytest.approx(torch.stack(labels).mean().item(), rel=1e-6)


def test_the_mean_of_the_logits_teaches_every_scale_the_largest_too():
    scales = [logits(seed) for seed in range(3)]
    mean = (scales[0] + scales[1] + scales[2]) / 3
    parts = [0.6 * TASK.loss(x, TARGETS) + 0.4 * apart("kl", mean, x) for x in scales]
    found = taught(scales, share=0.4, ramp=False, teacher="mean")
    assert found == pytest.approx(torch.stack(parts).mean().item(), rel=1e-5)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.05, 0.0), (0.1, 0.0), (0.55, 0.2), (1.0, 0.4)])
def test_a_ramped_share_grows_from_a_tenth_of_the_run_to_its_end(progress: float, share: float):
    assert Teaching(share=0.4).share_at(progress) == pytest.approx(share)
    assert Teaching(share=0.4, ramp=False).share_at(progress) == 0.4
    scales = [logits(seed) for seed in range(3)]
    assert taught(scales, progress, share=0.4) == pytest.approx(taught(scales, share=share, ramp=False), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "l1"}, "--consistency l1: one of kl, mse"),
        ({"share": 1.5}, "--consistency-share 1.5: a share, 0 to 1"),
        ({"share": -0.1}, "--consistency-share -0.1"),
        ({"teacher": "small"}, "--consistency-teacher small: one of larger, mean"),
        ({"temperature": 0}, "--consistency-temperature 0: above 0"),
        ({"temperature": math.inf}, "--consistency-temperature inf: above 0"),
        ({"form": "mse", "temperature": 2}, "--consistency-temperature 2 would be ignored by --consistency mse"),
        ({"form": "mse", "gate": True}, "--consistency-gate would be ignored by --consistency mse"),
    ],
)
def test_teaching_is_refused_with_its_flag_when_it_makes_no_sense(options: dict, words: str):
    with pytest.raises(InputError, match=words):
        Teaching(**options)
