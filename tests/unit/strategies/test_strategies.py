"""What is particular to each strategy; the promises of all are in tests/contract."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from toolkit import InputError, Progressive, Simultaneous, SingleScale
from toolkit.config.scales import make_scales
from toolkit.config.tables import look_up
from toolkit.models.classification import Classification
from toolkit.strategies import (
    Finish,
    HeadFirst,
    ProgressiveCompute,
    ProgressiveSimultaneous,
    Sampled,
    Sandwich,
    build,
    innermost,
)
from toolkit.strategies.base import Budget, NormPolicy
from toolkit.strategies.scales import share_out

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


def shares(strategy: Progressive, epochs: int) -> list[tuple[int, float]]:
    """(size, regularization) of each phase."""
    return [(phase.sizes[-1], phase.regularization) for phase in strategy.phases(Budget(epochs, 100, 10))]


def test_regularization_grows_linearly_with_the_size():
    grows = Progressive((64, 112, 224), regularization_from=0.25)
    assert shares(grows, 6) == [(64, 0.25), (112, pytest.approx(0.25 + 0.75 * 48 / 160)), (224, 1.0)]
    assert shares(Progressive((64, 112, 224)), 6) == [(64, 1.0), (112, 1.0), (224, 1.0)]  # control
    ramp = shares(Progressive((112, 224), ramp=True, regularization_from=0.1), 100)
    assert (ramp[0], ramp[-1]) == ((112, 0.1), (224, 1.0))
    assert ramp == sorted(ramp)
    assert shares(Progressive((112, 224), ramp=True, regularization_from=0.1), 1) == [(224, 1.0)]


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
        (lambda: Simultaneous((32,)), "toolkit train single"),
        (lambda: Progressive(()), "--scales"),
        (lambda: SingleScale(0), "--img-size 0"),
        (lambda: SingleScale(32, (32, 16)), "--eval-scales 32,16"),
        (lambda: Progressive((16, 32), (1,), ramp=True), "--scale-epochs would be ignored with --ramp"),
        (lambda: Progressive((16, 32), ramp=True, norm_per_scale="full"), "--norm-per-scale full"),
        (lambda: Progressive((16, 32), regularization_from=1.5), "--regularization-from 1.5: must be between 0 and 1"),
        (lambda: Progressive((16, 32), regularization_from=float("nan")), "--regularization-from nan"),
        (lambda: Simultaneous((16, 32), consistency_weight=-1), "--consistency-weight -1"),
        (lambda: Simultaneous((16, 32), consistency="l1"), "--consistency l1: must be one of 'kl', 'mse', 'js'"),
    ],
)
def test_a_strategy_is_refused_with_its_flag_when_it_makes_no_sense(make, words: str):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scales", ("a", 64)),
        ("scales", (32.5, 64)),
        ("norm_per_scale", "half"),
        ("grow_batch", "cubic"),
        ("regularization_from", "a"),
        ("ramp", "maybe"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_in_python_as_on_the_command_line(name: str, value: Any):
    with pytest.raises(InputError) as in_python:
        Progressive(**{"scales": (32, 64), name: value})
    with pytest.raises(InputError) as by_flag:
        make_scales({name: value})
    assert str(in_python.value) == str(by_flag.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Progressive(64), "--scales 64: must be a list of numbers in brackets"),
        (lambda: Progressive("32,64"), "--scales 32,64: must be a list of numbers in brackets"),
        (lambda: SingleScale((64,)), r"--img-size \(64,\): must be a whole number"),
        (lambda: Sampled((16, 32), "a"), "--strategy-kwargs target_share=a: must be a number"),
        (lambda: ProgressiveSimultaneous((16, 32), 1.5), "--strategy-kwargs together_epochs=1.5: must be a whole"),
        (lambda: Finish(SingleScale(32), "64"), "--finish-size 64: must be a whole number"),
    ],
)
def test_a_field_of_another_type_is_refused_in_one_line(make, words: str):
    with pytest.raises(InputError, match=words):
        make()


def test_a_subclass_may_have_fields_of_any_type():
    @dataclass(frozen=True)
    class Mine(Progressive):
        stages: tuple[tuple[int, float], ...] = ((32, 0.5),)
        share: int | float | None = 0.5
        places: dict[str, int] = field(default_factory=dict)

    assert Mine((32, 64)).share == 0.5
    with pytest.raises(InputError, match="--scales 64: must be a list"):
        Mine(64)  # type: ignore[arg-type]


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


@pytest.mark.parametrize(
    ("epochs", "weights", "expected"),
    [
        (12, (1, 1, 1), (4, 4, 4)),
        (10, (1, 1, 1), (3, 4, 3)),
        (24, (1 / 400, 1 / 1024, 1 / 4096), (16, 6, 2)),
        (3, (1, 100, 1), (1, 1, 1)),
        (100, (1, 98, 1), (1, 98, 1)),
    ],
)
def test_epochs_are_shared_out_in_proportion_with_one_for_each(epochs: int, weights: tuple, expected: tuple):
    assert share_out(epochs, weights) == expected


def test_stages_cost_the_same_when_progressive_goes_by_compute():
    phases = ProgressiveCompute((16, 32, 64)).phases(Budget(210, 100, 10))
    costs = [phase.epochs * phase.sizes[0] ** 2 for phase in phases]
    assert max(costs) / min(costs) < 1.05
    assert [phase.lr_weight for phase in phases] == [1 / 16, 1 / 4, 1]
    weighted = ProgressiveCompute((16, 32), stage_compute=(1, 3)).phases(Budget(70, 100, 10))
    assert [phase.epochs for phase in weighted] == [40, 30]


def test_stages_of_other_shares_are_given_as_a_list_in_brackets():
    given = make_scales({"strategy_kwargs": {"stage_compute": [1, 3]}, "scales": "16,32"})
    assert build("progressive-compute", given) == ProgressiveCompute((16, 32), stage_compute=(1, 3))


def test_batches_grow_to_as_many_pixels_when_asked():
    budget = Budget(12, 1000, 10)
    phases = Progressive((16, 32, 64), grow_batch="sqrt").phases(budget)
    assert [(phase.batch_size, phase.lr_scale) for phase in phases] == [(80, 8**0.5), (40, 2.0), (10, 1.0)]
    assert [phase.steps for phase in phases] == [4 * 12, 4 * 25, 4 * 100]
    linear = Progressive((16, 32, 64), grow_batch="linear").phases(budget)
    assert [phase.lr_scale for phase in linear] == [8.0, 4.0, 1.0]
    few = Progressive((16, 32), grow_batch="sqrt").phases(Budget(2, 20, 10))
    assert [phase.batch_size for phase in few] == [20, 10]  # no more than there are images


def test_sampled_takes_each_scale_once_a_round_and_the_target_at_the_end():
    strategy = Sampled((16, 24, 32))
    phase = strategy.phases(Budget(10, 300, 10))[0]
    sizes = [strategy.step(phase, i).sizes for i in range(phase.steps)]
    rounds = [sizes[i : i + 3] for i in range(0, 270, 3)]
    assert all(sorted(three) == [(16,), (24,), (32,)] for three in rounds)
    assert len({tuple(three) for three in rounds}) == 6  # in every order
    assert set(sizes[270:]) == {(32,)}


def test_sandwich_takes_the_ends_and_each_scale_between_them_equally_often():
    strategy = Sandwich((16, 20, 24, 28, 32))
    phase = strategy.phases(Budget(3, 100, 10))[0]
    sizes = [strategy.step(phase, i).sizes for i in range(phase.steps)]
    assert all((small, large) == (16, 32) for small, _, large in sizes)
    assert [[middle for _, middle, _ in sizes].count(size) for size in (20, 24, 28)] == [10, 10, 10]


def test_sandwich_loss_is_the_value_by_hand():
    strategy = Sandwich((16, 24, 32))
    phase = strategy.phases(Budget(1, 10, 10))[0]
    small, large = torch.log(torch.tensor([[0.25, 0.75]])), torch.log(torch.tensor([[0.5, 0.5]]))
    loss = strategy.loss([small, large, large], torch.tensor([0]), TASK, phase, strategy.step(phase, 0))
    assert loss.total.item() == pytest.approx((0.143841 + 0 + 0.693147) / 3, abs=1e-6)


def test_small_scales_come_alone_and_hold_the_rate_before_all_come_together():
    phases = ProgressiveSimultaneous((16, 24, 32)).phases(Budget(12, 100, 10))
    assert [(phase.sizes, phase.epochs, phase.lr_weight) for phase in phases] == [
        ((16,), 4, 0),
        ((24,), 4, 0),
        ((16, 24, 32), 4, 1),
    ]
    chosen = ProgressiveSimultaneous((16, 24, 32), together_epochs=8).phases(Budget(10, 100, 10))
    assert [phase.epochs for phase in chosen] == [1, 1, 8]


def test_a_finish_adds_a_phase_of_the_head_at_the_larger_size():
    before = Progressive((16, 24))
    strategy = Finish(before, 32, 2)
    phases = strategy.phases(Budget(6, 100, 10))
    assert phases[:2] == before.phases(Budget(4, 100, 10))
    last = phases[2]
    assert (last.sizes, last.epochs, last.trainable, last.lr_restart) == ((32,), 2, ("head", "last_norm"), True)
    assert [spec.name for spec in strategy.eval_specs()] == ["16px", "24px", "32px"]
    assert strategy.selection().name == "32px"
    assert Finish(Simultaneous((16, 24)), 32).norm() == NormPolicy("full", (16, 24, 32))
    assert Finish(SingleScale(24), 32).norm() == NormPolicy("off", (32,))


def test_a_finish_is_built_from_flags_beside_those_of_any_strategy():
    built = build("progressive", {"scales": (16, 24), "ramp": True, "finish_size": 32, "finish_epochs": 2})
    assert built == Finish(Progressive((16, 24), ramp=True), 32, 2)
    assert built.to_dict()["strategy"] == "progressive"
    with pytest.raises(InputError, match="--consistency-ramp would be ignored by --strategy sandwich"):
        build("sandwich", {"scales": (16, 24, 32), "consistency_ramp": False})
    with pytest.raises(InputError, match="--finish-epochs would be ignored without --finish-size"):
        build("single", {"img_size": 32, "finish_epochs": 2})


def test_the_head_learns_first_in_epochs_like_the_first_of_the_strategy():
    before = Progressive((16, 24), grow_batch="sqrt", regularization_from=0.5)
    strategy, budget = HeadFirst(before, 2), Budget(6, 100, 10)
    head, *rest = strategy.phases(budget)
    then = before.phases(Budget(4, 100, 10))
    assert (head.sizes, head.epochs, head.batch_size, head.regularization) == ((16,), 2, 20, 0.5)
    assert head.steps * then[0].epochs == then[0].steps * head.epochs
    assert (head.trainable, head.lr_hold, head.lr_scale) == (("head",), True, 2 * then[0].lr_scale)
    assert not head.counts_for_patience
    assert [replace(phase, index=phase.index - 1) for phase in rest] == [*then]
    assert strategy.selection() == before.selection()


def test_each_step_behind_the_head_is_that_of_the_strategy():
    before, budget = Sampled((16, 24, 32)), Budget(4, 100, 10)
    head, then = HeadFirst(before, 1).phases(budget)
    (alone,) = before.phases(Budget(3, 100, 10))
    steps = [HeadFirst(before, 1).step(then, i) for i in range(then.steps)]
    assert steps == [before.step(alone, i) for i in range(alone.steps)]
    assert {HeadFirst(before, 1).step(head, i).sizes for i in range(head.steps)} == {(16,), (24,), (32,)}


def test_the_head_is_first_and_the_finish_last_when_flags_ask_for_both():
    built = build("progressive", {"scales": (16, 24), "finish_size": 32, "head_epochs": 2})
    assert built == Finish(HeadFirst(Progressive((16, 24)), 2), 32)
    assert built.to_dict().keys() >= {"head_epochs", "finish_size", "finish_epochs"}
    assert innermost(built) == Progressive((16, 24))
    phases = built.phases(Budget(6, 100, 10))
    assert [phase.trainable for phase in phases] == [("head",), (), (), ("head", "last_norm")]
    assert [phase.epochs for phase in phases] == [2, 1, 2, 1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HeadFirst(SingleScale(32), 0), "--head-epochs 0: 1 or more"),
        (lambda: HeadFirst(SingleScale(32), 1.5), "--head-epochs 1.5: must be a whole number"),
        (lambda: HeadFirst(HeadFirst(SingleScale(32), 1), 1), "HeadFirst of a HeadFirst: a run has one"),
        (lambda: HeadFirst(Finish(SingleScale(16), 32), 1), "HeadFirst of a Finish: .*a Finish goes around it"),
        (lambda: HeadFirst(SingleScale(32), 4).phases(Budget(4, 100, 10)), "--head-epochs 4: at most 3 of 4 epochs"),
        (
            lambda: HeadFirst(Progressive((16, 24), (2, 2)), 1).phases(Budget(4, 100, 10)),
            "must be --epochs 3; 1 of 4 epochs are the head's",
        ),
        (lambda: Finish(SingleScale(32), 32), "--finish-size 32: larger than the 32 px"),
        (lambda: Finish(Simultaneous((16, 24)), 20), "--finish-size 20: larger than the 24 px"),
        (lambda: Finish(SingleScale(32), 40, 0), "--finish-epochs 0: 1 or more"),
        (lambda: Finish(Finish(SingleScale(16), 24), 32), "a run has one finish"),
        (
            lambda: Finish(Progressive((16, 24), (2, 2)), 32).phases(Budget(4, 100, 10)),
            "must be --epochs 3; 1 of --epochs 4 are the finish",
        ),
        (lambda: ProgressiveSimultaneous((16, 24), 0).phases(Budget(6, 100, 10)), "together_epochs=0: 1 to 5"),
        (lambda: ProgressiveCompute((16, 32), "1,2"), r"stage_compute=1,2: .*in brackets.*such as \[1,2\]"),
        (
            lambda: Finish(SingleScale(32), 40, 3).phases(Budget(3, 100, 10)),
            "--finish-epochs 3: at most 2 of --epochs 3",
        ),
        (lambda: Sandwich((16, 32)), "--scales 16/32: --strategy sandwich needs 3 or more"),
        (lambda: Sandwich((16, 24, 32), 1.2), "--consistency-share 1.2"),
        (lambda: Sampled((16, 32), 1.0), "target_share=1"),
        (
            lambda: Progressive((16, 32), grow_batch="cubic"),
            "--grow-batch cubic: must be one of 'off', 'sqrt' or",
        ),
        (lambda: ProgressiveCompute((16, 32), (1,)), "stage_compute=.*2 numbers above 0"),
        (lambda: ProgressiveCompute((16, 32)).phases(Budget(1, 100, 10)), "every scale needs an epoch"),
        (lambda: ProgressiveSimultaneous((16, 24, 32)).phases(Budget(2, 100, 10)), "--epochs 2: .* need 3"),
        (lambda: ProgressiveSimultaneous((16, 24, 32), 6).phases(Budget(6, 100, 10)), "together_epochs=6: 1 to 4"),
        (
            lambda: Simultaneous((16, 32), 0.5, consistency_share=0.5),
            "--consistency-weight and --consistency-share are two forms",
        ),
        (lambda: Simultaneous((16, 32), consistency_gate=True), "--consistency-gate would be ignored without"),
        (
            lambda: Simultaneous((16, 32), 0.5, consistency_temperature=2),
            "--consistency-temperature would be ignored without --consistency-share",
        ),
    ],
)
def test_a_newer_strategy_is_refused_with_its_flag_when_it_makes_no_sense(make, words: str):
    with pytest.raises(InputError, match=words):
        make()
