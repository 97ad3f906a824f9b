"""Consistency between scales, against values by hand and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor

from toolkit.models.classification import Classification
from toolkit.strategies.consistency import CONSISTENCY, consistency, js, kl, mse

FORMS = sorted(CONSISTENCY)
TASK = Classification().bind(np.ones(7), torch.device("cpu"))


def logits(seed: int, rows: int = 5, classes: int = 7) -> Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def test_kl_is_the_value_by_hand_when_probabilities_are_simple():
    larger, smaller = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.25, 0.75]]))
    # 1/2 log(2) + 1/2 log(2/3)
    assert kl(larger, smaller, TASK).item() == pytest.approx(0.14384104, abs=1e-6)
    # the other way round: 1/4 log(1/2) + 3/4 log(3/2)
    assert kl(smaller, larger, TASK).item() == pytest.approx(0.13081204, abs=1e-6)


def test_kl_agrees_with_scipy_when_averaged_over_a_batch():
    larger, smaller = logits(0), logits(1)
    expected = np.mean(entropy(softmax(larger.numpy(), 1), softmax(smaller.numpy(), 1), axis=1))
    assert kl(larger, smaller, TASK).item() == pytest.approx(expected, rel=1e-5)


def test_js_agrees_with_scipy_when_averaged_over_a_batch():
    larger, smaller = logits(0), logits(1)
    distances = jensenshannon(softmax(larger.numpy(), 1), softmax(smaller.numpy(), 1), axis=1)
    assert js(larger, smaller, TASK).item() == pytest.approx(np.mean(distances**2), rel=1e-5)


def test_js_is_log_2_when_predictions_have_nothing_in_common():
    certain = torch.tensor([[100.0, 0.0]])
    assert js(certain, certain.flip(1), TASK).item() == pytest.approx(math.log(2), abs=1e-6)


def test_mse_is_the_value_by_hand_when_logits_are_simple():
    larger, smaller = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 3.0]])
    assert mse(larger, smaller, TASK).item() == pytest.approx((1 + 4 + 0 + 9) / 4)


@pytest.mark.parametrize("form", FORMS)
def test_consistency_is_zero_when_both_scales_agree(form: str):
    same = logits(0)
    assert consistency([same, same.clone()], form, TASK).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_larger_side_receives_no_gradient_when_two_scales_disagree(form: str):
    smaller, larger = logits(0).requires_grad_(), logits(1).requires_grad_()
    consistency([smaller, larger], form, TASK).backward()
    assert larger.grad is None
    assert smaller.grad is not None
    assert smaller.grad.abs().sum() > 0


@pytest.mark.parametrize("form", FORMS)
def test_only_the_largest_receives_no_gradient_when_there_are_three_scales(form: str):
    scales = [logits(seed).requires_grad_() for seed in range(3)]
    consistency(scales, form, TASK).backward()
    assert [scale.grad is not None for scale in scales] == [True, True, False]


@pytest.mark.parametrize("form", FORMS)
def test_consistency_is_the_mean_over_all_pairs_when_there_are_three_scales(form: str):
    small, middle, large = (logits(seed) for seed in range(3))
    one = CONSISTENCY[form]
    expected = (one(middle, small, TASK) + one(large, small, TASK) + one(large, middle, TASK)) / 3
    assert consistency([small, middle, large], form, TASK).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_consistency_is_not_zero_and_teaches_when_there_are_two_classes(form: str):
    smaller, larger = logits(0, classes=2).requires_grad_(), logits(1, classes=2)
    loss = consistency([smaller, larger], form, TASK)
    loss.backward()
    assert loss.item() > 0.01
    assert smaller.grad is not None
    assert smaller.grad.abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_consistency_is_computed_in_float32_when_logits_are_half_precision(form: str):
    smaller, larger = logits(0), logits(1)
    loss = consistency([smaller.bfloat16(), larger.bfloat16()], form, TASK)
    exact = consistency([smaller.bfloat16().float(), larger.bfloat16().float()], form, TASK)
    assert loss.dtype == torch.float32
    assert loss.item() == exact.item()


@pytest.mark.parametrize("form", FORMS)
def test_consistency_stays_finite_when_predictions_are_certain(form: str):
    smaller, larger = torch.tensor([[300.0, -300.0]]).requires_grad_(), torch.tensor([[-300.0, 300.0]])
    loss = consistency([smaller, larger], form, TASK)
    loss.backward()
    assert loss.isfinite()
    assert smaller.grad is not None
    assert smaller.grad.isfinite().all()
