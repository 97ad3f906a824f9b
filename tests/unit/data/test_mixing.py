"""MixUp and CutMix of neighbors."""

import numpy as np
import pytest
import torch

from toolkit.data.images.mixing import Mixer, mix

IDS = np.arange(100, 120)


def test_a_pair_shares_its_draw_when_ids_follow_each_other():
    drawn = Mixer(0.5, 0, 0).draw(0, IDS, 1.0)
    assert drawn is not None
    assert tuple(drawn.shape) == (20, 5)
    assert torch.equal(drawn[::2], drawn[1::2])
    assert len(set(drawn[::2, 0].tolist())) == 10


def test_a_pair_draws_the_same_when_the_batch_around_it_is_cut_differently():
    whole, part = (Mixer(0.5, 1, 3).draw(2, ids, 1.0) for ids in (IDS, IDS[6:10]))
    assert whole is not None
    assert part is not None
    assert torch.equal(whole[6:10], part)


@pytest.mark.parametrize(("who", "epoch"), [(Mixer(0.5, 1, 4), 2), (Mixer(0.5, 1, 3), 1)], ids=["seed", "epoch"])
def test_a_pair_draws_otherwise_when_seed_or_epoch_differ(who: Mixer, epoch: int):
    one, other = Mixer(0.5, 1, 3).draw(2, IDS, 1.0), who.draw(epoch, IDS, 1.0)
    assert one is not None
    assert other is not None
    assert not torch.isclose(one[:, 0], other[:, 0]).any()


@pytest.mark.parametrize(("who", "regularization"), [(Mixer(0, 0, 0), 1.0), (Mixer(0.4, 1.0, 0), 0.0)])
def test_nothing_is_mixed_when_it_is_off_or_the_strength_is_zero(who: Mixer, regularization: float):
    assert who.draw(0, IDS, regularization) is None


def test_weights_follow_their_beta_distribution_when_many_are_drawn():
    many = np.arange(8000)
    for alpha in (0.2, 1.0):
        drawn = Mixer(alpha, 0, 0).draw(0, many, 1.0)
        assert drawn is not None
        own = drawn[::2, 0].numpy()
        assert own.mean() == pytest.approx(0.5, abs=0.02)
        assert own.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)  # of Beta(a, a)


def test_half_of_the_pairs_are_cut_when_both_are_on():
    drawn = Mixer(0.5, 1, 0).draw(0, np.arange(4000), 1.0)
    assert drawn is not None
    assert 900 < int((drawn[::2, 3] > 0).sum()) < 1100


def images(count: int = 4, size: int = 8) -> torch.Tensor:
    shape = (count, 3, size, size)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def one_hot(labels: list[int], classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), classes).float()


def test_mixup_is_the_weighted_mean_by_hand_when_a_weight_is_given():
    pixels, drawn = images(), torch.tensor([[0.75, 0, 0, 0, 0]] * 2 + [[1.0, 0, 0, 0, 0]] * 2)
    mixed, targets = mix(pixels, one_hot([2, 0, 1, 1], 3), drawn)
    expected = (0.75 * pixels[0].float() + 0.25 * pixels[1].float()).round()
    assert mixed.dtype == torch.uint8
    assert (mixed[0].float() - expected).abs().max() <= 1
    assert torch.equal(mixed[2:], pixels[2:])
    assert targets.tolist() == [[0.25, 0, 0.75], [0.75, 0, 0.25], [0, 1, 0], [0, 1, 0]]


def test_cutmix_pastes_the_partner_and_counts_its_pixels_when_a_box_is_given():
    pixels, box = images(2), [0.5, 0.25, 0.0, 0.75, 0.5]  # columns 2 to 5, rows 0 to 3: 16 of 64 pixels
    mixed, targets = mix(pixels, one_hot([0, 1], 2), torch.tensor([box, box]))
    for i, other in ((0, 1), (1, 0)):
        expected = pixels[i].clone()
        expected[:, 0:4, 2:6] = pixels[other][:, 0:4, 2:6]
        assert torch.equal(mixed[i], expected)
    assert targets.tolist() == [[0.75, 0.25], [0.25, 0.75]]


def test_targets_sum_to_one_when_pairs_are_drawn():
    drawn = Mixer(0.5, 1, 0).draw(0, IDS, 1.0)
    assert drawn is not None
    _, targets = mix(images(20), one_hot([i % 7 for i in range(20)], 7), drawn)
    assert targets.sum(1).tolist() == pytest.approx([1.0] * 20)
