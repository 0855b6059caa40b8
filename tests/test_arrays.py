"""Shapes, sums over events, and one key per sample."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import arrays

KEY = jax.random.key(3)
EVENTS = [(), (5,), (2, 3), (4, 4, 3)]


@pytest.mark.parametrize("event", EVENTS)
def test_expanded_times_broadcast_along_the_batch(event):
    t, x = jnp.arange(1.0, 5.0), jnp.ones((4, *event))
    product = arrays.expand(t, x) * x  # under strict rank promotion
    assert product.shape == x.shape
    for i in range(4):
        assert (product[i] == i + 1).all()


@pytest.mark.parametrize("event", EVENTS)
def test_sums_and_means_are_those_of_each_event(event):
    x = np.random.default_rng(0).integers(-8, 8, (4, *event)).astype(np.float32)  # whole numbers: sums are exact
    size = math.prod(event)
    sums = np.array([math.fsum(row.ravel()) for row in x])
    np.testing.assert_array_equal(arrays.sum_event(jnp.asarray(x)), sums)
    np.testing.assert_allclose(arrays.mean_event(jnp.asarray(x)) * size, sums, rtol=1e-6)  # one division in float32


def test_sample_keys_are_folded_from_one_key():
    keys = arrays.sample_keys(KEY, 3)
    assert all(keys[i] == jax.random.fold_in(KEY, i) for i in range(3))
    assert (arrays.sample_keys(KEY, 64)[:3] == keys).all()


def test_keys_that_are_given_are_kept():
    keys = jax.random.split(KEY, 3)
    assert (arrays.sample_keys(keys, 3) == keys).all()


@pytest.mark.parametrize("key", [KEY, jax.random.split(KEY, 3)], ids=["one key", "one per sample"])
def test_raw_threefry_keys_are_the_typed_ones(key):
    assert (arrays.sample_keys(jax.random.key_data(key), 3) == arrays.sample_keys(key, 3)).all()


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1)])
def test_a_wrong_number_of_keys_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected one key or 3 keys .* got an array of shape \("):
        arrays.sample_keys(jax.random.split(KEY, shape), 3)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_generators_whose_draws_depend_on_the_batch_are_refused(impl):
    with pytest.raises(ValueError, match="expected a threefry key, got .*rbg.*Use jax.random.key"):
        arrays.sample_keys(jax.random.key(0, impl=impl), 3)


def test_fold_in_acts_on_each_key():
    keys = jax.random.split(KEY, 3)
    folded = arrays.fold_in(keys, 7)
    assert all(folded[i] == jax.random.fold_in(keys[i], 7) for i in range(3))
    assert (jax.jit(arrays.fold_in)(keys, jnp.array(7)) == folded).all()


@pytest.mark.parametrize("event", EVENTS)
def test_a_samples_noise_depends_on_its_key_alone(event):
    keys = arrays.sample_keys(KEY, 64)
    noise = arrays.normal(keys, jnp.zeros((64, *event)))
    assert noise.shape == (64, *event)
    for i in (0, 41):  # to rounding: compilers vectorise other lengths in other ways
        np.testing.assert_allclose(arrays.normal(keys[i : i + 1], jnp.zeros((1, *event)))[0], noise[i], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_noise_has_the_dtype_of_the_state(dtype, x64):
    assert arrays.normal(arrays.sample_keys(KEY, 2), jnp.zeros((2, 3), dtype)).dtype == dtype


def test_noise_is_standard_normal_within_and_across_samples():
    x = np.asarray(arrays.normal(arrays.sample_keys(KEY, 200), jnp.zeros((200, 100))), np.float64)
    sorted_x = np.sort(x.ravel())
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in sorted_x])
    distance = np.abs(cdf - (np.arange(x.size) + 0.5) / x.size).max()
    assert math.sqrt(x.size) * distance < 2.7  # Kolmogorov-Smirnov: false alarm 2 exp(-2 * 2.7^2) = 1e-6
    # Means of rows and columns are N(0, 1/100) and N(0, 1/200): chi-square sums within 5 standard deviations.
    for axis, n in ((1, 200), (0, 100)):
        assert abs((x.mean(axis) ** 2).sum() * x.shape[axis] - n) < 5 * math.sqrt(2 * n)
