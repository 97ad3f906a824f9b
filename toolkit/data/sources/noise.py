"""Noise of the built-in images."""

import numpy as np


def color_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """1/f color noise, size x size x 3, mean 0, standard deviation 1 per channel."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((3, size, size))) / frequency
    noise = np.fft.irfft2(spectrum, s=(size, size)).transpose(1, 2, 0)
    return noise / noise.std(axis=(0, 1))
