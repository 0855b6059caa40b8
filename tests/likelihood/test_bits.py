"""Importance-weighted dequantisation: a bound that tightens, on log-densities that are good enough."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss

KEY = jax.random.key(0)
SDE, LEVELS, RANGE = ss.VP(), 4, (-1.0, 1.0)
# Narrow against the cells of width 1/2, so that one draw is a poor bound.
TARGET = ss.Gaussian(jnp.array([0.1, -0.2]), jnp.array([[0.05, 0.03], [0.03, 0.05]]))
K = jnp.array([[2, 1]]).repeat(300, 0)  # the cell of the mean


def exact_bits():
    """-log2 P(k)/D by quadrature over the cell."""
    axis = np.linspace(0, 0.5, 201)
    grid = np.stack(np.meshgrid(axis, axis - 0.5, indexing="ij"), -1).reshape(-1, 2)
    density = np.exp(np.asarray(TARGET.log_prob(jnp.asarray(grid, jnp.float32)), float)).reshape(201, 201)
    return -np.log2(np.trapezoid(np.trapezoid(density, axis), axis)) / 2


def test_more_draws_tighten_the_bound_and_never_cross_it():
    bits = {
        draws: ss.importance_weighted(
            KEY, SDE, TARGET.score(SDE), K, levels=LEVELS, draws=draws, data_range=RANGE, rtol=1e-4, atol=1e-4
        ).value
        for draws in (1, 8)
    }
    exact, error = exact_bits(), {d: float(b.std()) / len(K) ** 0.5 for d, b in bits.items()}
    assert exact - 4.5 * error[8] < bits[8].mean() < bits[1].mean() - 0.1  # Jensen's gap of one draw is 0.25 here
    assert abs(bits[8].mean() - exact) < 0.06


def test_one_draw_is_uniform_dequantisation():
    keys = jax.random.split(KEY, len(K))
    given = ss.importance_weighted(keys, SDE, TARGET.score(SDE), K, levels=LEVELS, draws=1, data_range=RANGE)
    first = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 0), 0))(keys)
    x = ss.dequantise(first, K, levels=LEVELS, data_range=RANGE)
    plain = -TARGET.log_prob(x) / (2 * np.log(2)) - np.log2(0.5)
    np.testing.assert_allclose(given.value, plain, atol=6e-3)  # the prior's mismatch


@pytest.mark.parametrize("divergence", [ss.Hutchinson(), ss.Hutchinson(2)], ids=["no error known", "too large"])
def test_noisy_log_densities_are_refused(divergence):
    with pytest.raises(ValueError, match="standard error below 0.1 nats"):
        ss.importance_weighted(
            KEY, SDE, TARGET.score(SDE), K[:20], levels=LEVELS, draws=3, divergence=divergence, rtol=1e-2, atol=1e-2
        )


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="draws must be at least 1"):
        ss.importance_weighted(KEY, SDE, TARGET.score(SDE), K, levels=LEVELS, draws=0)
    with pytest.raises(ValueError, match=r"grey levels in 0..3, got 0 to 4"):
        ss.importance_weighted(KEY, SDE, TARGET.score(SDE), jnp.array([[0, 4]]), levels=LEVELS, draws=1)
