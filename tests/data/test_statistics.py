"""describe against closed forms, sources of many kinds, and its cost."""

import time

import numpy as np
import pytest

from score_sde.data import ArraySource, DataError, describe, digits


def test_real_numbers_are_described_as_they_are():
    x = np.random.default_rng(0).normal(3.0, 2.0, (400, 7)).astype(np.float32)
    found = describe(ArraySource(x), (-5.0, 5.0))  # the range is that of grey levels
    distances = np.sqrt(np.square(x[:, None].astype(np.float64) - x).sum(axis=-1))
    assert (found.examples, found.sample, found.shape, found.levels) == (400, 400, (7,), None)
    assert (found.low, found.high) == (x.min(), x.max())
    np.testing.assert_allclose([found.mean, found.std], [x.mean(), x.std()], rtol=1e-5)
    np.testing.assert_allclose(found.largest_distance, distances.max(), rtol=1e-5)


def test_distances_survive_a_large_offset():
    x = np.array([[1000.0, 0.0], [1000.0, 0.5], [1000.25, 0.0]], np.float32)
    np.testing.assert_allclose(describe(ArraySource(x)).largest_distance, np.hypot(0.25, 0.5), rtol=1e-5)


def test_grey_levels_are_scaled_and_dequantised():
    source = digits("train")
    found = describe(source, (-1.0, 1.0))
    rows = np.linspace(0, 1436, 1000).astype(int)
    x = source.x[rows].reshape(1000, -1).astype(np.float64)
    u = np.random.default_rng(0).random(x.shape)
    dequantised = -1 + 2 / 17 * (x + u)
    # 64,000 numbers: the standard error of a mean is std / 253, of u's part far less
    np.testing.assert_allclose([found.mean, found.std], [dequantised.mean(), dequantised.std()], atol=1e-3)
    distances = np.sqrt(np.square(x[:, None] - x[None, ::7]).sum(axis=-1)).max() * 2 / 17
    assert distances <= found.largest_distance * (1 + 1e-5) and found.largest_distance <= 8 * 2 * 16 / 17
    assert (found.low, found.high, found.levels, found.num_classes) == (0, 16, 17, 10)
    assert "1,437 examples of shape (8, 8, 1), 17 levels from 0 to 16, 10 classes" in str(found)
    assert len(str(found).splitlines()) == 2
    assert f"standard deviation {found.std:.3g} (objective.sigma_data)" in str(found)
    assert f"largest distance {found.largest_distance:.3g} (sde.sigma_max, for sde.name=ve)" in str(found)


def test_the_noise_of_dequantisation_counts():
    coins = ArraySource(np.arange(1000).reshape(500, 2) % 2, levels=2)
    found = describe(coins, (0.0, 1.0))  # halves of [0, 1], dequantised: uniform on [0, 1]
    np.testing.assert_allclose([found.mean, found.std], [0.5, 12**-0.5], rtol=1e-6)


def test_a_range_twice_as_wide_doubles_both():
    narrow, wide = (describe(digits("train"), (0.0, width)) for width in (1.0, 2.0))
    np.testing.assert_allclose([wide.std, wide.largest_distance], [2 * narrow.std, 2 * narrow.largest_distance], 1e-5)


def test_the_sample_is_spread_over_the_set():
    x = np.arange(100_000, dtype=np.float32)[:, None]
    found = describe(ArraySource(x))
    assert found.sample == 1000 and abs(found.largest_distance / 99_999 - 1) < 1e-6


def test_it_is_quick_and_small_for_large_images():
    class Large:
        shape, levels, num_classes, asked = (512, 512, 3), 256, None, 0

        def __len__(self):
            return 10_000

        def __getitem__(self, indices):
            self.asked += len(indices)
            return {"x": np.broadcast_to(np.arange(len(indices), dtype=np.uint8)[:, None, None, None],
                                         (len(indices), *self.shape))}  # fmt: skip

    source = Large()
    began = time.monotonic()
    found = describe(source)
    assert time.monotonic() - began < 10  # well under 1 s on a free core
    assert source.asked == found.sample == 2**23 // (512 * 512 * 3)


@pytest.mark.parametrize(
    "x, levels, message",
    [
        (np.zeros((3, 2), np.float32), None, r"expected x of shape \(4, 2\)"),
        (np.full((4, 2), np.nan), None, "expected finite numbers"),
        (np.full((4, 2), 9), 9, r"expected numbers in 0..8 from the data source, got 9 to 9"),
    ],
)
def test_a_source_that_gives_something_else_than_it_says(x, levels, message):
    class Liar:
        shape, num_classes = (2,), None

        def __len__(self):
            return 4

        def __getitem__(self, indices):
            return {"x": x}

    source = Liar()
    source.levels = levels
    with pytest.raises(DataError, match=message):
        describe(source)
