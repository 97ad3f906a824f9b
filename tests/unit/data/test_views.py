"""Views of a batch, against PIL."""

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.data.images.views import normalize, resize, views

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])


def noise(size: int, count: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def of_pil(images: torch.Tensor, size: int, method: Image.Resampling) -> np.ndarray:
    planes = [Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), method) for image in images]
    return np.stack([np.array(plane) for plane in planes]).transpose(0, 3, 1, 2).astype(int)


@pytest.mark.parametrize("size", [7, 16, 20, 48, 96])
def test_resize_agrees_with_pil_when_it_shrinks_or_grows(size: int):
    images = noise(48)
    ours = resize(images, size).numpy().astype(int)
    assert np.abs(ours - of_pil(images, size, Image.Resampling.BILINEAR)).max() <= 1


def test_resize_is_antialiased_when_it_shrinks():
    images = noise(48)
    ours = resize(images, 12).numpy().astype(int)
    assert np.abs(ours - of_pil(images, 12, Image.Resampling.NEAREST)).mean() > 30  # control: not antialiased
    assert ours.std() < images.numpy().std() / 3  # noise is averaged away


def test_resize_of_floats_agrees_with_that_of_bytes_when_rounded():
    images = noise(48)
    assert (resize(images.float(), 20) - resize(images, 20).float()).abs().max() <= 1


def test_normalize_is_the_value_by_hand_when_pixels_are_simple():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    # (0 - .5) / .2, (.2 - .4) / .25, (1 - .3) / .5
    assert normalize(pixels, MEAN, STD).flatten().tolist() == pytest.approx([-2.5, -0.8, 1.4], rel=1e-6)


def test_views_have_the_sizes_asked_for_when_there_are_several():
    found = views(noise(32), (8, 20, 32), MEAN, STD)
    assert [tuple(view.shape) for view in found] == [(2, 3, 8, 8), (2, 3, 20, 20), (2, 3, 32, 32)]
    assert all(view.dtype == torch.float32 for view in found)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in found)


def test_a_view_is_the_same_when_others_are_asked_for_too():
    images = noise(32)
    alone, among = views(images, (8,), MEAN, STD)[0], views(images, (8, 20, 32), MEAN, STD)[0]
    assert torch.equal(alone, among)
    cascaded = resize(resize(normalize(images, MEAN, STD), 20), 8)
    assert not torch.allclose(among, cascaded, atol=1e-3)  # control


def test_the_largest_view_is_the_normalized_image_when_it_needs_no_resize():
    images = noise(32)
    assert torch.equal(views(images, (16, 32), MEAN, STD)[1], normalize(images, MEAN, STD))


def test_a_small_view_is_that_of_floats_to_a_gray_level_when_bytes_are_resized():
    images, level = noise(48), 1 / (255 * STD.view(1, 3, 1, 1))
    apart = (views(images, (20,), MEAN, STD)[0] - resize(normalize(images, MEAN, STD), 20)).abs() / level
    assert apart.max() <= 1  # rounded after rows and after columns, half a level each
    assert apart.mean() < 0.35
