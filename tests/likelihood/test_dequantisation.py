"""Grey levels and bits per dimension, against probabilities of discrete distributions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss

KEY = jax.random.key(0)
RANGES = [(-1.0, 1.0), (0.0, 1.0), (-3.0, 0.5)]


def log_prob(nats, event, standard_error=0.0):
    """A LogProb of such values."""
    nats = jnp.asarray(nats)
    batch = nats.shape[0]
    return ss.LogProb(
        nats=nats,
        standard_error=jnp.full(batch, standard_error, nats.dtype),
        nfe=jnp.zeros(batch, int),
        latent=jnp.zeros((batch, *event), nats.dtype),
        converged=jnp.ones(batch, bool),
    )


def grey_levels(levels, shape=(64, 4, 4), seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(levels, size=shape))


# --- bits per dimension ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "levels, data_range, offset",
    [(256, (-1.0, 1.0), 7.0), (256, (0.0, 1.0), 8.0), (17, (-1.0, 1.0), math.log2(17 / 2))],
    ids=["8 bits on [-1, 1]", "8 bits on [0, 1]", "17 levels on [-1, 1]"],
)
def test_density_one_has_the_offset_as_its_bits(levels, data_range, offset):
    bits = ss.bits_per_dim(log_prob([0.0], (2, 3)), levels=levels, data_range=data_range)
    np.testing.assert_allclose(bits.value, [offset], rtol=1e-7)


def test_a_bit_per_dimension_is_a_halved_density_in_each_and_errors_scale_alike():
    bits = ss.bits_per_dim(log_prob([0.0, -6 * math.log(2)], (2, 3), standard_error=0.5), levels=256)
    np.testing.assert_allclose(np.diff(bits.value), [1], rtol=1e-6)
    np.testing.assert_allclose(bits.standard_error, np.full(2, 0.5 / (6 * math.log(2))), rtol=1e-6)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("data_range", RANGES, ids=str)
def test_dequantised_uniform_levels_take_log2_of_their_number(levels, data_range, x64):
    low, high = data_range
    x = ss.dequantise(KEY, grey_levels(levels), levels=levels, data_range=data_range)
    inside = jnp.all((x >= low) & (x < high), axis=(1, 2))
    nats = jnp.where(inside, -16 * math.log(high - low), -jnp.inf)  # uniform density on the cube
    bits = ss.bits_per_dim(log_prob(nats, (4, 4)), levels=levels, data_range=data_range)
    np.testing.assert_allclose(bits.value, np.full(64, math.log2(levels)), rtol=1e-14)


@pytest.mark.parametrize("data_range", RANGES, ids=str)
def test_a_density_constant_on_each_cell_takes_the_bits_of_the_discrete_law(data_range, x64):
    levels, width = 5, (data_range[1] - data_range[0]) / 5
    law = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    k = grey_levels(levels)
    x = ss.dequantise(KEY, k, levels=levels, data_range=data_range)
    cells = np.floor((np.asarray(x) - data_range[0]) / width).astype(int)
    nats = np.log(law[cells] / width).sum((1, 2))
    bits = ss.bits_per_dim(log_prob(nats, (4, 4)), levels=levels, data_range=data_range)
    np.testing.assert_allclose(bits.value, -np.log2(law[np.asarray(k)]).mean((1, 2)), rtol=1e-12)


def test_bits_do_not_depend_on_the_range_that_data_are_scaled_to(x64):
    k = grey_levels(256, (8, 2))
    mean, covariance = jnp.array([0.1, -0.2]), jnp.array([[0.5, 0.1], [0.1, 0.3]])
    bits = []
    for low, high in RANGES:  # the same law of grey levels, whatever they are scaled to
        scale = (high - low) / 2
        target = ss.Gaussian(low + scale * (mean + 1), scale**2 * covariance)
        x = ss.dequantise(KEY, k, levels=256, data_range=(low, high))
        bits.append(ss.bits_per_dim(log_prob(target.log_prob(x), (2,)), levels=256, data_range=(low, high)).value)
    np.testing.assert_allclose(bits[1:], [bits[0]] * 2, rtol=1e-12)


def test_bits_bound_those_of_the_rounded_density_from_above(x64):
    levels, (low, high) = 8, (-1.0, 1.0)
    cell = (high - low) / levels

    def normal_cdf(x):
        return 0.5 * (1 + math.erf(x / 0.4 / math.sqrt(2)))

    for k in range(levels):
        x = ss.dequantise(KEY, jnp.full((20000, 1), k), levels=levels)
        nats = ss.Gaussian(jnp.zeros(1), 0.16).log_prob(x)
        bits = ss.bits_per_dim(log_prob(nats, (1,)), levels=levels).value
        true = -math.log2(normal_cdf(low + cell * (k + 1)) - normal_cdf(low + cell * k))
        # Jensen's gap is the variance of log p in the cell over 2 log 2: log p falls by up to cell/0.16 within it.
        gap = (cell / 0.16) ** 2 / 12 / (2 * math.log(2))
        error = float(bits.std()) / math.sqrt(20000)
        assert -4 * error < float(bits.mean()) - true < gap + 4 * error


# --- dequantising ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("data_range", RANGES, ids=str)
def test_quantising_undoes_dequantising(levels, data_range, x64):
    k = grey_levels(levels, (256, 100))
    x = ss.dequantise(KEY, k, levels=levels, data_range=data_range)
    assert data_range[0] <= x.min() and x.max() < data_range[1]
    np.testing.assert_array_equal(ss.quantise(x, levels=levels, data_range=data_range), k)


@pytest.mark.parametrize("levels", [2, 17, 256, 4096, 65521, 65536])
@pytest.mark.parametrize("data_range", [*RANGES, (0.0, 255.0)], ids=str)
def test_in_float32_every_level_comes_back_whatever_the_noise(levels, data_range, monkeypatch):
    """Of u in [0, 1): the ends, and draws.  Rounding used to carry k + u to the next level, at 4,096 for 1 in 1e4."""
    k = np.arange(levels, dtype=np.uint16)[None]
    draws = np.random.default_rng(0).uniform(size=(3, 1, levels))
    for u in (0.0, 2.0**-24, 0.5, 1 - 2.0**-24, *draws):
        noise = jnp.asarray(np.broadcast_to(u, k.shape), jnp.float32)
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape, noise=noise: noise[0])
        x = ss.dequantise(KEY, jnp.asarray(k), levels=levels, data_range=data_range)
        assert x.dtype == jnp.float32 and x.min() >= data_range[0] and x.max() <= data_range[1]
        np.testing.assert_array_equal(ss.quantise(x, levels=levels, data_range=data_range), k)


def test_cells_that_rounding_would_blur_are_refused():
    with pytest.raises(ValueError, match="cells that float32 resolves, got 65536 levels on"):
        ss.dequantise(KEY, jnp.zeros((2, 2), int), levels=65536, data_range=(1000.0, 1001.0))


def test_the_noise_is_uniform_on_the_cell(x64):
    u = np.sort(np.ravel(ss.dequantise(KEY, jnp.zeros((100, 100), int), levels=2, data_range=(0.0, 2.0))))
    distance = np.abs(u - (np.arange(10000) + 0.5) / 10000).max()
    assert distance < 0.0195  # Kolmogorov: 1.95 / sqrt(n) is exceeded with probability 1e-3


def test_noise_depends_on_the_samples_own_key_alone():
    k, keys = grey_levels(256, (5, 3)), jax.random.split(KEY, 5)
    x = ss.dequantise(keys, k, levels=256)
    np.testing.assert_array_equal(ss.dequantise(keys[3:4], k[3:4], levels=256), x[3:4])
    assert np.all(ss.dequantise(jax.random.split(jax.random.key(1), 5), k, levels=256) != x)


def test_one_key_is_folded_with_the_samples_number():
    k = grey_levels(256, (5, 3))
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(5))
    np.testing.assert_array_equal(ss.dequantise(KEY, k, levels=256), ss.dequantise(keys, k, levels=256))


def test_values_outside_of_the_range_go_to_its_ends():
    x = jnp.array([[-5.0, -1.0, -0.001, 0.0, 0.999, 1.0, 5.0]])
    assert ss.quantise(x, levels=4).tolist() == [[0, 0, 1, 2, 3, 3, 3]]


@pytest.mark.parametrize(
    "options", [dict(levels=1), dict(levels=4, data_range=(1.0, 1.0)), dict(levels=4, data_range=(1.0, -1.0))], ids=str
)
def test_levels_and_ranges_that_cannot_be_are_refused(options):
    calls = [
        lambda: ss.dequantise(KEY, jnp.zeros((2, 2), int), **options),
        lambda: ss.quantise(jnp.zeros((2, 2)), **options),
        lambda: ss.bits_per_dim(log_prob([0.0], (2,)), **options),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="at least 2 grey levels and a rising data_range"):
            call()


@pytest.mark.parametrize(
    "key, message",
    [(jax.random.split(KEY, 3), "one key or 2 keys"), (jax.random.key(0, impl="rbg"), "threefry")],
    ids=["number", "generator"],
)
def test_keys_that_would_not_give_each_sample_its_own_noise_are_refused(key, message):
    with pytest.raises(ValueError, match=message):
        ss.dequantise(key, jnp.zeros((2, 2), int), levels=4)
