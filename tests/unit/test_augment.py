"""Augmentation is a pure function of (seed, epoch, sample id)."""

import numpy as np
import pytest

from toolkit.data.augment import Augmenter, center_square, random_resized_crop
from toolkit.data.decode import Box

AUGMENTER = Augmenter(crop_scale=0.35, hflip=True, seed=5)


def test_a_draw_is_the_same_when_seed_epoch_and_sample_are():
    again = Augmenter(crop_scale=0.35, hflip=True, seed=5)
    np.random.random(3)  # a stray draw from the global generator
    assert all(AUGMENTER.draw(2, i, 64, 48, 1.0) == again.draw(2, i, 64, 48, 1.0) for i in range(50))


@pytest.mark.parametrize(
    "other",
    [
        lambda sample: AUGMENTER.draw(3, sample, 64, 48, 1.0),
        lambda sample: AUGMENTER.draw(2, sample + 1, 64, 48, 1.0),
        lambda sample: Augmenter(0.35, True, 6).draw(2, sample, 64, 48, 1.0),
    ],
    ids=["epoch", "sample", "seed"],
)
def test_a_draw_is_another_when_one_of_its_keys_is(other):
    different = [AUGMENTER.draw(2, sample, 64, 48, 1.0)[0] != other(sample)[0] for sample in range(50)]
    assert sum(different) >= 48


@pytest.mark.parametrize(("width", "height"), [(64, 64), (64, 48), (10, 500), (500, 10), (1, 1), (3, 2)])
def test_a_box_lies_inside_the_image_when_it_is_drawn(width: int, height: int):
    for sample in range(200):
        box, _ = AUGMENTER.draw(0, sample, width, height, 1.0)
        assert box.left >= 0
        assert box.top >= 0
        assert 1 <= box.width <= width - box.left
        assert 1 <= box.height <= height - box.top


def test_areas_and_shapes_fill_their_ranges_when_many_boxes_are_drawn():
    boxes = [AUGMENTER.draw(0, sample, 640, 640, 1.0)[0] for sample in range(2000)]
    areas = np.array([box.width * box.height for box in boxes]) / 640**2
    ratios = np.array([box.width / box.height for box in boxes])
    assert 0.34 <= areas.min() < 0.37
    assert 0.95 < areas.max() <= 1
    assert 0.74 <= ratios.min() < 0.78
    assert 1.28 < ratios.max() <= 1.35
    assert abs(np.median(np.log(ratios))) < 0.03  # wide and tall alike


def test_half_of_the_images_are_mirrored_when_it_is_on_and_none_when_it_is_off():
    mirrored = [AUGMENTER.draw(0, sample, 64, 64, 1.0)[1] for sample in range(2000)]
    assert 900 < sum(mirrored) < 1100
    assert not any(Augmenter(0.35, False, 5).draw(0, sample, 64, 64, 1.0)[1] for sample in range(200))


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(64, 48, Box(8, 0, 48, 48)), (48, 64, Box(0, 8, 48, 48)), (65, 48, Box(8, 0, 48, 48)), (5, 5, Box(0, 0, 5, 5))],
)
def test_the_square_in_the_middle_is_seen_when_nothing_is_cropped(width: int, height: int, expected: Box):
    assert center_square(width, height) == expected
    assert Augmenter(1.0, True, 0).draw(3, 4, width, height, 1.0)[0] == expected
    assert random_resized_crop(width, height, 1.0, np.random.default_rng(0)) == expected


def test_crops_are_weaker_when_the_strength_of_the_phase_is():
    def mean_area(strength: float) -> float:
        boxes = [AUGMENTER.draw(0, sample, 640, 640, strength)[0] for sample in range(500)]
        return float(np.mean([box.width * box.height for box in boxes])) / 640**2

    assert AUGMENTER.draw(0, 0, 64, 48, 0.0)[0] == center_square(64, 48)
    assert mean_area(0.5) > mean_area(1.0) + 0.08  # .3375 to 1 against .35 to 1 would not do: .675 to 1 is meant
