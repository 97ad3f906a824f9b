"""What is particular to each strategy; the promises of all are in tests/contract."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from toolkit import InputError, Progressive, Simultaneous, SingleScale
from toolkit.config.tables import look_up
from toolkit.models.classification import Classification
from toolkit.strategies import build
from toolkit.strategies.base import Budget, NormPolicy

TASK = Classification().bind(np.ones(3), torch.device("cpu"))


def stages(strategy: Progressive, epochs: int) -> list[tuple[int, int]]:
    """(size, epochs) of each phase."""
    return [(phase.sizes[-1], phase.epochs) for phase in strategy.phases(Budget(epochs, 100, 10))]


@pytest.mark.parametrize(
    ("scales", "scale_epochs", "epochs", "expected"),
    [
        ((64, 112, 224), (2,), 6, [(64, 2), (112, 2), (224, 2)]),
        ((64, 112, 224), (2,), 20, [(64, 2), (112, 2), (224, 16)]),
        ((64, 112, 224), (1, 2, 5), 8, [(64, 1), (112, 2), (224, 5)]),
        ((64, 112, 224), None, 6, [(64, 2), (112, 2), (224, 2)]),
        ((64, 112, 224), None, 20, [(64, 6), (112, 6), (224, 8)]),
        ((20, 32), None, 2, [(20, 1), (32, 1)]),
    ],
)
def test_epochs_are_shared_out_when_progressive_goes_in_stages(scales, scale_epochs, epochs, expected):
    assert stages(Progressive(scales, scale_epochs), epochs) == expected


@pytest.mark.parametrize(
    ("scale_epochs", "epochs", "words"),
    [
        ((3,), 6, r"--scale-epochs 3,3,0 .*3\+3\+0 must be --epochs 6"),
        ((10,), 6, r"--scale-epochs 10,10,-14"),
        ((1, 2, 4), 6, r"1\+2\+4 must be --epochs 6"),
        ((1, 5), 6, "give one number, or 3, one per scale"),
        ((1, 1, 1, 3), 6, "give one number, or 3, one per scale"),
        (None, 2, "every scale needs an epoch"),
    ],
)
def test_epochs_are_refused_with_the_arithmetic_when_they_do_not_fit(scale_epochs, epochs, words):
    with pytest.raises(InputError, match=words):
        Progressive((64, 112, 224), scale_epochs).phases(Budget(epochs, 100, 10))


@pytest.mark.parametrize("largest", [8, 20, 32, 64, 96, 112, 160, 224, 288, 384, 512])
@pytest.mark.parametrize("epochs", [3, 12, 40, 300])
def test_a_ramp_grows_to_the_largest_in_at_most_8_sizes_when_epochs_are_many_or_few(largest: int, epochs: int):
    found = stages(Progressive((largest // 2, largest), ramp=True), epochs)
    sizes = [size for size, _ in found]
    assert sizes == sorted(set(sizes))
    assert len(sizes) <= 8
    assert sizes[-1] == largest
    assert min(sizes) >= largest / 2
    assert sum(number for _, number in found) == epochs


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_ramp_ends_at_the_size_that_is_selected_at_when_epochs_are_very_few(epochs: int):
    assert stages(Progressive((112, 224), ramp=True), epochs)[-1][0] == 224


def test_a_ramp_holds_half_size_for_half_and_full_size_for_a_fifth_when_it_has_100_epochs():
    found = stages(Progressive((112, 224), ramp=True), 100)
    assert [size for size, _ in found] == [112, 128, 144, 160, 176, 192, 208, 224]
    assert found[0] == (112, 52)  # .5 of the epochs, and the half of the first rise that rounds down to it
    assert 20 <= found[-1][1] <= 23
    assert all(3 <= number <= 5 for _, number in found[1:-1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Progressive((32, 16)), "--scales 32,16: .*ascending.*try 16,32"),
        (lambda: Simultaneous((16, 16)), "--scales 16,16"),
        (lambda: Simultaneous((0, 16)), "--scales 0,16"),
        (lambda: Simultaneous((32,)), "single_scale.py"),
        (lambda: Progressive(()), "--scales"),
        (lambda: SingleScale(0), "--img-size 0"),
        (lambda: SingleScale(32, (32, 16)), "--eval-scales 32,16"),
        (lambda: Progressive((16, 32), (1,), ramp=True), "--scale-epochs would be ignored with --ramp"),
        (lambda: Progressive((16, 32), ramp=True, norm_per_scale="full"), "--norm-per-scale full"),
        (lambda: Simultaneous((16, 32), consistency_weight=-1), "--consistency-weight -1"),
        (lambda: Simultaneous((16, 32), consistency="l1"), "--consistency l1: one of kl, mse, js"),
    ],
)
def test_a_strategy_is_refused_with_its_flag_when_it_makes_no_sense(make, words: str):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize(
    ("name", "choices", "flag"),
    [
        ("progressive", {"scales": (16, 32), "consistency_weight": 0.1}, "--consistency-weight"),
        ("progressive", {"scales": (16, 32), "consistency": "js"}, "--consistency"),
        ("simultaneous", {"scales": (16, 32), "scale_epochs": (2,)}, "--scale-epochs"),
        ("simultaneous", {"scales": (16, 32), "ramp": True}, "--ramp"),
        ("single", {"img_size": 32, "norm_per_scale": "full"}, "--norm-per-scale"),
    ],
)
def test_a_flag_is_refused_when_the_strategy_would_ignore_it(name: str, choices: dict, flag: str):
    with pytest.raises(InputError, match=f"{flag} would be ignored by --strategy {name}"):
        build(name, choices)


def test_a_switch_that_is_off_is_accepted_when_the_strategy_has_none():
    assert build("simultaneous", {"scales": (16, 32), "ramp": False}) == Simultaneous((16, 32))


@pytest.mark.parametrize("strategy", [SingleScale(32, (16, 32)), Progressive((16, 32), (1,)), Simultaneous((16, 32))])
def test_a_strategy_is_itself_when_rebuilt_from_its_dictionary(strategy):
    values = strategy.to_dict()
    kind = look_up("strategy", "--strategy", values.pop("strategy"))
    assert kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}) == strategy


@pytest.mark.parametrize(
    ("strategy", "names"),
    [
        (SingleScale(32), ["32px"]),
        (SingleScale(32, (16, 64)), ["16px", "32px", "64px"]),
        (Progressive((16, 32)), ["16px", "32px"]),
        (Simultaneous((16, 32), eval_scales=(8, 64)), ["8px", "32px", "64px"]),
    ],
)
def test_the_target_size_is_on_the_panel_when_others_are_asked_for(strategy, names: list[str]):
    assert [spec.name for spec in strategy.eval_specs()] == names
    assert strategy.selection() in strategy.eval_specs()


@pytest.mark.parametrize(
    ("strategy", "mode"), [(SingleScale(32), "off"), (Progressive((16, 32)), "off"), (Simultaneous((16, 32)), "full")]
)
def test_normalization_is_private_when_scales_meet_in_one_step(strategy, mode: str):
    assert strategy.norm().mode == mode


@pytest.mark.parametrize(
    ("scales", "size", "expected"),
    [
        ((64, 112, 224), 224, 224),
        ((64, 112, 224), 160, 224),  # 224/160 = 1.4 < 160/112 = 1.43
        ((64, 112, 224), 96, 112),
        ((64, 112, 224), 80, 64),
        ((64, 112, 224), 16, 64),
        ((64, 112, 224), 512, 224),
        ((64, 256), 128, 256),  # as near to both: the larger
    ],
)
def test_the_nearest_scale_serves_when_a_size_has_no_normalization_of_its_own(scales, size, expected):
    assert NormPolicy("full", scales).scale_for(size) == expected


def test_simultaneous_loss_is_the_value_by_hand_when_logits_are_simple():
    strategy = Simultaneous((16, 32), consistency_weight=0.5)
    phase = strategy.phases(Budget(1, 10, 10))[0]
    small, large = torch.log(torch.tensor([[0.25, 0.75]])), torch.log(torch.tensor([[0.5, 0.5]]))
    loss = strategy.loss([small, large], torch.tensor([0]), TASK, phase, strategy.step(phase, 0))
    # cross-entropies -log(1/4) = 1.386294, -log(1/2) = 0.693147; KL(large || small) = 0.143841
    assert loss.parts["loss/16px"].item() == pytest.approx(1.386294, abs=1e-6)
    assert loss.parts["loss/32px"].item() == pytest.approx(0.693147, abs=1e-6)
    assert loss.parts["consistency"].item() == pytest.approx(0.143841, abs=1e-6)
    assert loss.total.item() == pytest.approx((1.386294 + 0.693147) / 2 + 0.5 * 0.143841, abs=1e-6)


def test_simultaneous_loss_is_classification_alone_when_the_weight_is_0():
    strategy = Simultaneous((16, 32), consistency_weight=0)
    phase = strategy.phases(Budget(1, 10, 10))[0]
    logits = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    targets = torch.tensor([0, 1, 2, 0])
    loss = strategy.loss(logits, targets, TASK, phase, strategy.step(phase, 0))
    expected = (F.cross_entropy(logits[0], targets) + F.cross_entropy(logits[1], targets)) / 2
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
