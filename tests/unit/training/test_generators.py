"""What draws random numbers in a step depends on its key only."""

import random

import numpy as np
import pytest
import torch

from toolkit.training.generators import seed_generators


def draws() -> tuple:
    return (
        torch.randn(3).tolist(),
        random.random(),
        random.gauss(0, 1),
        np.random.random(3).tolist(),
        np.random.standard_normal(1).tolist(),
    )


@pytest.mark.parametrize("half_used", [False, True])
def test_all_generators_draw_the_same_when_seeded_again(half_used: bool):
    seed_generators(3, 4, 5)
    expected = draws()
    assert draws() != expected  # control
    if half_used:  # one of a pair of normal draws is kept for the next call
        random.gauss(0, 1)
        np.random.standard_normal()
    seed_generators(3, 4, 5)
    assert draws() == expected


def test_generators_draw_alike_when_and_only_when_their_key_is_the_same():
    drawn = []
    for key in ((0, 7, 1), (0, 7, 1), (0, 7, 0), (0, 8, 1)):
        seed_generators(*key)
        drawn.append(draws())
    assert drawn[0] == drawn[1]
    assert not any(
        a == b for first, second in ((0, 2), (0, 3)) for a, b in zip(drawn[first], drawn[second], strict=True)
    )
