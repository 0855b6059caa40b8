"""The toy densities: scale, and the shape that each is named for."""

import numpy as np
import pytest

from score_sde.data import checkerboard, eight_gaussians, swiss_roll, two_moons

N = 20_000
TOYS = [swiss_roll, two_moons, checkerboard, eight_gaussians]


@pytest.mark.parametrize("toy", TOYS)
def test_form_and_scale(toy):
    source = toy(N, seed=0)
    assert (len(source), source.shape, source.levels, source.x.dtype) == (N, (2,), None, np.float32)
    # Standard errors at N = 20,000 of laws with unit mean variance: mean at most sqrt(2/N) = 0.01, variance about 0.01.
    assert np.abs(source.x.mean(axis=0)).max() < 0.05
    assert abs(source.x.var(axis=0).mean() - 1) < 0.04
    assert 0.6 < source.x.std(axis=0).min() and source.x.std(axis=0).max() < 1.4
    if source.num_classes:
        frequencies = np.bincount(source.labels, minlength=source.num_classes) / N
        assert np.abs(frequencies * source.num_classes - 1).max() < 0.1  # 5 standard errors for eight classes


@pytest.mark.parametrize("toy", TOYS)
def test_seed(toy):
    np.testing.assert_array_equal(toy(100, seed=1).x, toy(100, seed=1).x)
    assert not np.isin(toy(100, seed=1).x, toy(100, seed=2).x).any()


@pytest.mark.parametrize("toy", TOYS)
def test_no_points(toy):
    with pytest.raises(ValueError, match="at least one example"):
        toy(0, seed=0)


def test_swiss_roll_is_a_spiral():
    x = swiss_roll(N, seed=0).x.astype(float)
    scale = np.sqrt((9.75 * np.pi**2 - 4 - 4 / (9 * np.pi**2)) / 2 + 0.25)
    raw = x * scale + [2.0, 2 / (3 * np.pi)]
    radius, angle = np.hypot(*raw.T), np.arctan2(raw[:, 1], raw[:, 0])
    off = (radius - angle + np.pi) % (2 * np.pi) - np.pi  # r = angle up to whole turns, which are 2 pi apart
    assert abs(off.std() - 0.5) < 0.05 and np.abs(off).max() < 3
    assert abs(np.mean(radius) - 3 * np.pi) < 0.1  # 3 standard errors of uniform on [3 pi/2, 9 pi/2] are 0.06


def test_two_moons_are_half_circles():
    source = two_moons(N, seed=0)
    raw = source.x * np.sqrt((1 - 1 / np.pi + 0.3125) / 2 + 0.01) + [0.5, 0.25]
    upper, lower = raw[source.labels == 0], raw[source.labels == 1]
    for moon, side in ((upper, 1), (lower - [1.0, 0.5], -1)):
        assert abs(np.hypot(*moon.T).std() - 0.1) < 0.01
        assert np.mean(side * moon[:, 1] > -0.35) > 0.999


def test_checkerboard_fills_every_other_square():
    square = np.floor(checkerboard(N, seed=0).x * np.sqrt(4 / 3) + 2).astype(int)
    square = square.clip(0, 3)  # float32 may round a point of the edge across it
    assert np.mean(square.sum(axis=1) % 2 == 0) > 0.9999
    counts = np.bincount(4 * square[:, 0] + square[:, 1], minlength=16)
    assert np.sum(counts > N / 100) == 8 and np.abs(counts[counts > N / 100] * 8 / N - 1).max() < 0.1


def test_eight_gaussians_lie_on_a_circle():
    source = eight_gaussians(N, seed=0)
    angle = source.labels * np.pi / 4
    centre = np.sqrt(1.98) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    residual = source.x - centre
    assert abs(residual.std() - 0.1) < 0.003 and np.abs(residual).max() < 0.6
