"""Augmentation is a pure function of (seed, epoch, sample id)."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from toolkit.data.images.augment import Augmenter, mirrored, seen_box
from toolkit.data.images.decode import Box

AUGMENTER = Augmenter(crop_scale=0.35, hflip=True, seed=5)
COLORFUL = replace(AUGMENTER, rand_augment=7, color_jitter=0.4, random_erasing=0.5)


def draw(who: Augmenter, epoch: int, ids, width: int, height: int, regularization: float = 1.0):
    """(boxes, mirrors) of images that are all of one size."""
    ids = np.atleast_1d(ids)
    return who.draw(epoch, ids, np.full(len(ids), width), np.full(len(ids), height), regularization)


def test_a_draw_is_the_same_when_seed_epoch_and_sample_are():
    again = Augmenter(crop_scale=0.35, hflip=True, seed=5)
    together = draw(AUGMENTER, 2, np.arange(50), 64, 48)
    alone = [draw(again, 2, i, 64, 48) for i in range(50)]
    assert together == ([boxes[0] for boxes, _ in alone], [mirrors[0] for _, mirrors in alone])


@pytest.mark.parametrize(
    ("who", "epoch", "shift"),
    [(AUGMENTER, 3, 0), (AUGMENTER, 2, 1), (replace(AUGMENTER, seed=6), 2, 0)],
    ids=["epoch", "sample", "seed"],
)
def test_a_draw_is_another_when_one_of_its_keys_is(who: Augmenter, epoch: int, shift: int):
    ours, theirs = draw(AUGMENTER, 2, np.arange(50), 64, 48), draw(who, epoch, np.arange(50) + shift, 64, 48)
    assert sum(one != other for one, other in zip(ours[0], theirs[0], strict=True)) >= 48


@pytest.mark.parametrize(("width", "height"), [(64, 64), (64, 48), (10, 500), (500, 10), (1, 1), (3, 2)])
def test_a_box_lies_inside_the_image_when_it_is_drawn(width: int, height: int):
    for box in draw(AUGMENTER, 0, np.arange(200), width, height)[0]:
        assert box.left >= 0
        assert box.top >= 0
        assert 1 <= box.width <= width - box.left
        assert 1 <= box.height <= height - box.top


def test_areas_shapes_and_places_fill_their_ranges_when_many_boxes_are_drawn():
    boxes = draw(AUGMENTER, 0, np.arange(2000), 640, 640)[0]
    areas = np.array([box.width * box.height for box in boxes]) / 640**2
    ratios = np.array([box.width / box.height for box in boxes])
    room = np.array([box.left / (640 - box.width) for box in boxes if box.width < 600])
    assert 0.34 <= areas.min() < 0.37
    assert 0.95 < areas.max() <= 1
    assert 0.74 <= ratios.min() < 0.78
    assert 1.28 < ratios.max() <= 1.35
    assert abs(np.median(np.log(ratios))) < 0.03  # wide and tall alike
    assert abs(room.mean() - 0.5) < 0.03
    assert room.min() < 0.01
    assert room.max() > 0.99


def test_half_of_the_images_are_mirrored_when_it_is_on_and_none_when_it_is_off():
    assert 900 < sum(draw(AUGMENTER, 0, np.arange(2000), 64, 64)[1]) < 1100
    assert not any(draw(Augmenter(0.35, False, 5), 0, np.arange(200), 64, 64)[1])


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(64, 48, Box(8, 0, 48, 48)), (48, 64, Box(0, 8, 48, 48)), (65, 48, Box(8, 0, 48, 48)), (5, 5, Box(0, 0, 5, 5))],
)
def test_the_square_in_the_middle_is_seen_when_nothing_is_cropped(width: int, height: int, expected: Box):
    assert seen_box(width, height, "crop") == expected
    assert draw(Augmenter(1.0, True, 0), 3, 4, width, height)[0] == [expected]


def test_crops_are_weaker_when_the_strength_of_the_phase_is():
    def mean_area(regularization: float) -> float:
        boxes = draw(AUGMENTER, 0, np.arange(500), 640, 640, regularization)[0]
        return float(np.mean([box.width * box.height for box in boxes])) / 640**2

    assert draw(AUGMENTER, 0, 0, 64, 48, 0.0)[0] == [seen_box(64, 48, "crop")]
    assert mean_area(0.5) > mean_area(1.0) + 0.08  # .3375 to 1 against .35 to 1 would not do: .675 to 1 is meant


def test_augmentation_has_its_limits_when_a_phase_regularizes_more_than_the_run():
    strong = Augmenter(0.35, True, 0, rand_augment=9, color_jitter=0.8, random_erasing=0.6)
    boxes = draw(strong, 0, np.arange(200), 64, 48, 2.0)[0]
    assert all(0 < box.width * box.height <= 64 * 48 for box in boxes)
    assert min(box.width * box.height for box in boxes) < 0.35 * 64 * 48
    assert all(strong.change(gradient(), 0, sample, 2.0).shape == (32, 32, 3) for sample in range(60))


def gradient(size: int = 32) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size] * 255 // (size - 1)
    return np.stack([x, y, (x + y) // 2], -1).astype(np.uint8)


def test_colors_and_erasing_are_the_same_when_global_generators_differ():
    first = [COLORFUL.change(gradient(), 1, sample, 1.0) for sample in range(20)]
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    again = [COLORFUL.change(gradient(), 1, sample, 1.0) for sample in reversed(range(20))]
    assert all(np.array_equal(one, other) for one, other in zip(first, reversed(again), strict=True))
    others = [COLORFUL.change(gradient(), 2, sample, 1.0) for sample in range(20)]
    assert sum(np.array_equal(one, other) for one, other in zip(first, others, strict=True)) < 4  # control


@pytest.mark.parametrize("name", ["rand_augment", "color_jitter", "random_erasing"])
def test_an_image_stays_as_it_is_when_the_strength_is_zero_and_only_then(name: str):
    who = replace(AUGMENTER, **{name: 1.0})
    assert all(np.array_equal(who.change(gradient(), 0, sample, 0.0), gradient()) for sample in range(20))
    assert any(not np.array_equal(who.change(gradient(), 0, sample, 1.0), gradient()) for sample in range(20))


@pytest.mark.parametrize(("name", "weak"), [("rand_augment", 1.0), ("color_jitter", 0.05)])
def test_an_image_changes_more_when_the_magnitude_is_larger(name: str, weak: float):
    def change(who: Augmenter, regularization: float = 1.0) -> float:
        changed = [who.change(gradient(), 0, sample, regularization) for sample in range(60)]
        return float(np.mean([np.abs(image.astype(int) - gradient()).mean() for image in changed]))

    little, much = replace(AUGMENTER, **{name: weak}), replace(AUGMENTER, **{name: 10 * weak})
    assert change(much) > 1.3 * change(little)
    assert change(much, 0.1) == pytest.approx(change(little))


def test_a_rectangle_of_noise_stands_in_the_image_when_it_is_erased():
    who, shares = replace(AUGMENTER, random_erasing=0.5), []
    for sample in range(400):
        changed = np.any(who.change(gradient(), 0, sample, 1.0) != gradient(), axis=2)
        if changed.any():
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            inside = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert inside.mean() > 0.95  # a rectangle; a pixel may meet its own value
            shares.append(inside.size / changed.size)
    assert 160 < len(shares) < 240
    assert min(shares) < 0.05
    assert 0.25 < max(shares) < 0.36


def test_an_image_runs_from_right_to_left_when_it_is_mirrored():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert mirrored(pixels).tolist() == [[[3, 4, 5], [0, 1, 2]], [[9, 10, 11], [6, 7, 8]]]
