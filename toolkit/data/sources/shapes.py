"""The built-in shapes, `--data-root synthetic`: images on which accuracy depends on the image size.

Ten classes = 5 shapes x 2 fine textures on 1/f color noise. The shape is visible at any resolution. The texture is
visible only if its period of 4-7 px (at 64 px) survives, so the accuracy shows the cost of a smaller size.
"""

import numpy as np

from toolkit.data.sources.noise import color_noise
from toolkit.system.errors import InputError

SHAPES = ("disc", "square", "triangle", "star", "cross")
TEXTURES = ("stripes", "checks")
CLASSES = tuple(f"{shape}-{texture}" for shape in SHAPES for texture in TEXTURES)
COUNT = 6000  # default number of train images
VERSION = 1  # part of the folder's name, so that a changed drawing does not use old files


def class_names(classes: int | None) -> tuple[str, ...]:
    """The names of all ten classes; raises InputError for another number of them."""
    if classes not in (None, len(CLASSES)):
        raise InputError(f"--synthetic-classes {classes}: --data-root synthetic has {len(CLASSES)}; characters has any")
    return CLASSES


def _outline(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance of each point to the outline of a shape of radius 1: positive inside, about 1 unit per radius."""
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    if shape == "disc":
        return 0.95 - radius
    if shape == "square":
        return 0.82 - np.maximum(np.abs(x), np.abs(y))
    if shape == "triangle":
        return 0.52 - np.maximum.reduce(
            [np.cos(k * 2 * np.pi / 3) * x + np.sin(k * 2 * np.pi / 3) * y for k in range(3)]
        )
    if shape == "star":
        return 0.72 + 0.3 * np.cos(5 * angle) - radius
    arm, reach = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    return np.minimum(0.3 - arm, 1.0 - reach)  # cross


def draw(label: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """One image of a class: size x size x 3 uint8; random position, size, rotation and color."""
    shape, texture = SHAPES[label // len(TEXTURES)], TEXTURES[label % len(TEXTURES)]
    radius = size * rng.uniform(0.28, 0.44)
    cx, cy = rng.uniform(0.8 * radius, size - 0.8 * radius, 2)
    turn, weave = rng.uniform(0, 2 * np.pi, 2)
    grid = np.arange(size) + 0.5
    x, y = (grid - cx)[None, :] / radius, (grid - cy)[:, None] / radius
    x, y = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    mask = np.clip(_outline(shape, x, y) * radius + 0.5, 0, 1)[..., None]  # one pixel of antialiasing

    phase = 2 * np.pi / (size / 64 * rng.uniform(4, 7)) * radius
    along, across = np.cos(weave) * x + np.sin(weave) * y, np.cos(weave) * y - np.sin(weave) * x
    wave = np.sin(phase * along + rng.uniform(0, 2 * np.pi))
    if texture == "checks":
        wave = wave * np.sin(phase * across + rng.uniform(0, 2 * np.pi)) * 2**0.5  # the same power as stripes
    background, color = rng.uniform(60, 195, (2, 3))
    color = background + np.where(rng.random(3) < 0.5, -1, 1) * rng.uniform(35, 95, 3)
    image = background + 22 * color_noise(rng, size)
    image = image + mask * (color + 60 * wave[..., None] + 10 * rng.standard_normal((size, size, 1)) - image)
    return np.clip(image, 0, 255).astype(np.uint8)
