"""The built-in characters, `--data-root characters`: 64 classes that can be told apart at any image size.

A character of one of 20 fonts, turned, sheared and stretched, on 1/f color noise, with up to three faint other
characters as clutter. Unlike the textures of the shapes, what tells the classes apart is there at every resolution, so
that one size can learn from another. A mirrored or cropped character may be another one: train without both.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from toolkit.data.sources.noise import color_noise
from toolkit.system.errors import InputError
from toolkit.system.plotting import matplotlib

# All 20 fonts have them, under this code: the Computer Modern fonts of TeX have others in the place of <>{}|\^_~".
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghijmnqrty23456789&?!%#@$[]*+=/()"
FURTHER = ";:01cklopsuvwxz"  # hard or impossible to tell from another one: c and C differ only in size
FONTS = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmb10", "cmr10", "cmss10", "cmtt10")  # starts of their file names
DEFAULT_CLASSES = 64
COUNT = 9600  # default number of train images
VERSION = 1  # part of the folder's name, so that a changed drawing does not use old files
OVERSAMPLED = 2  # drawn this much larger, then averaged
LUMA = np.array((0.299, 0.587, 0.114))
LEAST_CONTRAST = 45  # of the character's gray level against the background's, of 255


def class_names(classes: int | None) -> tuple[str, ...]:
    """Folder names of the first `classes` characters; raises InputError for too few or too many."""
    known = CHARACTERS + FURTHER
    count = DEFAULT_CLASSES if classes is None else classes
    if not 2 <= count <= len(known):
        raise InputError(f"--synthetic-classes {count}: --data-root characters has 2 to {len(known)}")
    return tuple(f"{number:02d}-{ord(character):04x}" for number, character in enumerate(known[:count]))


@lru_cache(maxsize=4)
def _fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(file for file in folder.glob("*.ttf") if file.stem.startswith(FONTS) and "Display" not in file.stem)
    return [ImageFont.truetype(file, size) for file in files]


def _stencil(character: str, size: int, heights: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """The character's opacity, size x size x 1, 0 to 1; `heights`: range of its longer side, as a share of the size."""
    fonts = _fonts(size)
    page = Image.new("L", (2 * size, 2 * size))
    ImageDraw.Draw(page).text((size, size), character, fill=255, font=fonts[rng.integers(len(fonts))], anchor="mm")
    left, top, right, bottom = page.getbbox() or (0, 0, 2 * size, 2 * size)
    wanted = size * rng.uniform(*heights)
    turn, shear, stretch = np.deg2rad(rng.normal(0, 14)), rng.normal(0, 0.18), np.exp(rng.normal(0, 0.15))
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = max(right - left, bottom - top) / wanted * np.array([[cos * stretch, shear - sin], [sin, cos / stretch]])
    room = 0.45 * abs(size - wanted)
    center = size / 2 + rng.uniform(-room, room, 2)
    shift = np.array([left + right, top + bottom]) / 2 - matrix @ center
    affine = (*matrix[0], shift[0], *matrix[1], shift[1])
    drawn = page.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    return np.asarray(drawn, dtype=np.float64)[..., None] / 255


def draw(label: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """One image of a class: size x size x 3 uint8; random font, place, shape, color, clutter."""
    large, known = OVERSAMPLED * size, CHARACTERS + FURTHER
    background, color = rng.uniform(40, 215, 3), rng.uniform(0, 255, 3)
    while abs((background - color) @ LUMA) < LEAST_CONTRAST:
        color = rng.uniform(0, 255, 3)
    image = background + rng.uniform(8, 30) * color_noise(rng, large)
    for _ in range(rng.integers(4)):
        clutter = _stencil(known[rng.integers(len(known))], large, (0.2, 1.2), rng) * rng.uniform(0.15, 0.5)
        image += clutter * (rng.uniform(0, 255, 3) - image)
    stencil = _stencil(known[label], large, (0.35, 0.85), rng) * rng.uniform(0.75, 1)
    image += stencil * (color + rng.uniform(0, 15) * color_noise(rng, large) - image)
    image += rng.uniform(0, 10) * rng.standard_normal(image.shape)
    means = image.reshape(size, OVERSAMPLED, size, OVERSAMPLED, 3).mean(axis=(1, 3))
    return np.ascontiguousarray(np.clip(means, 0, 255).astype(np.uint8))
