"""Densities in the plane that are easy to draw and hard to fit.

Each is scaled by the moments of its law, never of the sample, so that the density does not depend on `n`: coordinates
have mean 0 and mean variance 1, and shapes keep their proportions.  Where the density has natural parts these are the
classes.
"""

import numpy as np

from score_sde.data.sources import ArraySource


def swiss_roll(n: int, seed: int) -> ArraySource:
    """`n` points, shape (2,), on the spiral r = a, a uniform on [3 pi/2, 9 pi/2], blurred by 0.5 before scaling.

    Source: Marsland, "Machine Learning" (2009), chapter 10, in the plane as in Sohl-Dickstein et al. (2015).
    """
    rng = np.random.default_rng(seed)
    angle = 1.5 * np.pi * (1 + 2 * rng.random(n))
    x = angle[:, None] * _on_circle(angle) + 0.5 * rng.standard_normal((n, 2))
    mean = np.array([2.0, 2 / (3 * np.pi)])
    variance = (9.75 * np.pi**2 - mean @ mean) / 2 + 0.25  # E[angle^2] = 9.75 pi^2, shared by two coordinates
    return _source((x - mean) / np.sqrt(variance))


def two_moons(n: int, seed: int) -> ArraySource:
    """`n` points, shape (2,), on two interleaved half circles (classes 0 and 1), blurred by 0.1 before scaling.

    The upper moon is (cos a, sin a), the lower (1 - cos a, 1/2 - sin a), a uniform on [0, pi].
    """
    rng = np.random.default_rng(seed)
    lower = rng.integers(2, size=n)
    upper_moon = _on_circle(np.pi * rng.random(n))
    x = np.where(lower[:, None] == 1, [1.0, 0.5] - upper_moon, upper_moon) + 0.1 * rng.standard_normal((n, 2))
    mean = np.array([0.5, 0.25])  # the figure is symmetric about this point
    variance = (1 - 2 * mean @ [0.0, 2 / np.pi] + mean @ mean) / 2 + 0.01  # E|moon - mean|^2, moon on the unit circle
    return _source((x - mean) / np.sqrt(variance), lower, 2)


def checkerboard(n: int, seed: int) -> ArraySource:
    """`n` points, shape (2,), uniform on the eight squares (i, j), i + j even, of a 4x4 board."""
    rng = np.random.default_rng(seed)
    column = rng.integers(4, size=n)
    row = 2 * rng.integers(2, size=n) + column % 2
    x = np.stack([column, row], axis=1) + rng.random((n, 2)) - 2.0
    return _source(x / np.sqrt(4 / 3))  # each coordinate is uniform on [-2, 2]


def eight_gaussians(n: int, seed: int) -> ArraySource:
    """`n` points, shape (2,), from eight Gaussians (the classes) of standard deviation 0.1 around a circle."""
    rng = np.random.default_rng(seed)
    component = rng.integers(8, size=n)
    radius = np.sqrt(2 * (1 - 0.1**2))  # radius^2 / 2 + 0.1^2 = 1
    return _source(radius * _on_circle(component * np.pi / 4) + 0.1 * rng.standard_normal((n, 2)), component, 8)


def _on_circle(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _source(x: np.ndarray, labels: np.ndarray | None = None, num_classes: int | None = None) -> ArraySource:
    return ArraySource(x.astype(np.float32), labels, num_classes=num_classes)
