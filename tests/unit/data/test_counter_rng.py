"""Random numbers by key."""

import numpy as np
import pytest

from toolkit.data.images.counter_rng import uniforms, words

IDS = np.arange(20_000)


def test_the_first_word_is_that_of_the_published_algorithm_when_keys_are_folded_by_hand():
    """SplitMix64 in plain Python integers, from the paper's constants."""
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    golden, state = 0x9E3779B97F4A7C15, 0
    for key in (7, 1, 3, 42):
        state = mix((state + golden + key) & mask)
    expected = [mix((state + golden * k) & mask) for k in (1, 2, 3)]
    assert words(7, 1, 3, np.array([42]), 3)[0].tolist() == expected


def test_a_sample_draws_the_same_when_its_neighbors_differ():
    assert np.array_equal(uniforms(0, 1, 2, np.array([5, 9, 3]), 4)[1], uniforms(0, 1, 2, np.array([9]), 4)[0])


@pytest.mark.parametrize("other", [(1, 1, 2), (0, 2, 2), (0, 1, 3)], ids=["seed", "stream", "epoch"])
def test_draws_are_unrelated_when_one_key_differs(other):
    ours, theirs = uniforms(0, 1, 2, IDS, 1)[:, 0], uniforms(*other, IDS, 1)[:, 0]
    assert abs(np.corrcoef(ours, theirs)[0, 1]) < 0.03
    assert np.corrcoef(ours, ours + 0.1 * theirs)[0, 1] > 0.9  # control


def test_numbers_fill_the_unit_interval_when_many_are_drawn():
    draws = uniforms(3, 1, 0, IDS, 5)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.stack([np.histogram(column, 10, (0, 1))[0] for column in draws.T])
    assert np.abs(counts - 2000).max() < 200  # 4.7 deviations of 42
    assert np.abs(np.corrcoef(draws.T) - np.eye(5)).max() < 0.03
