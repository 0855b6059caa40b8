"""Divergences against traces: exact ones to rounding, random ones in mean, variance and standard error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss

KEY = jax.random.key(0)
EVENT = (2, 3)
POINT = np.random.default_rng(0).normal(size=EVENT)
MATRIX = np.random.default_rng(1).normal(size=(6, 6))
SYMMETRIC = MATRIX + MATRIX.T


def swirl(x):
    """A nonlinear field with a full Jacobian."""
    flat = x.ravel()
    return (jnp.sin(jnp.asarray(MATRIX, x.dtype) @ flat) * jnp.sum(jnp.square(flat))).reshape(x.shape)


def linear(matrix):
    return lambda x: (jnp.asarray(matrix, x.dtype) @ x.ravel()).reshape(x.shape)


def estimate(divergence, field, x, key=KEY):
    return divergence(field, x, divergence.draw(key, x))


@pytest.mark.parametrize("chunk", [1, 4, 6, 64])
def test_exact_divergence_is_the_trace_of_the_jacobian(chunk, x64):
    x = jnp.asarray(POINT)
    value, divergence = estimate(ss.ExactDivergence(chunk=chunk), swirl, x)
    jacobian = jax.jacrev(swirl)(x).reshape(6, 6)
    np.testing.assert_allclose(divergence, [np.trace(jacobian)], rtol=1e-12)  # float64 rounding
    np.testing.assert_allclose(value, swirl(x), rtol=1e-14)


@pytest.mark.parametrize("divergence", [ss.ExactDivergence(), ss.ExactDivergence(chunk=2)], ids=["one go", "chunks"])
def test_exact_divergence_of_an_event_without_axes_is_the_derivative(divergence, x64):
    value, derivative = estimate(divergence, jnp.sin, jnp.asarray(0.3))
    np.testing.assert_allclose([value, derivative[0]], [np.sin(0.3), np.cos(0.3)], rtol=1e-14)


def test_exact_divergence_has_no_error():
    divergence = ss.ExactDivergence()
    assert float(divergence.standard_error(estimate(divergence, swirl, jnp.ones(EVENT))[1])) == 0


def test_one_random_sign_per_dimension_is_exact_on_a_diagonal_jacobian(x64):
    x = jnp.asarray(POINT)
    value, estimates = estimate(ss.Hutchinson(probes=3), lambda x: x**3, x)
    np.testing.assert_allclose(estimates, np.full(3, 3 * np.sum(POINT**2)), rtol=1e-14)
    np.testing.assert_allclose(value, POINT**3, rtol=1e-14)
    normal = estimate(ss.Hutchinson(probes=3, gaussian=True), lambda x: x**3, x)[1]
    assert np.ptp(normal) > 0.1  # normal probes are not


def variance(gaussian, matrix):
    """Of v'Av, for symmetric A: twice the sum of A_ij^2, without the diagonal for signs (Hutchinson 1990)."""
    return 2 * np.sum(matrix**2) - (0 if gaussian else 2 * np.sum(np.diag(matrix) ** 2))


@pytest.mark.parametrize("gaussian", [False, True], ids=["signs", "normal"])
def test_estimates_are_unbiased_with_the_known_variance(gaussian, x64):
    probes = 20000
    _, estimates = estimate(ss.Hutchinson(probes, gaussian), linear(SYMMETRIC), jnp.asarray(POINT))
    assert estimates.shape == (probes,)
    expected = variance(gaussian, SYMMETRIC)
    z = (np.mean(estimates) - np.trace(SYMMETRIC)) / np.sqrt(expected / probes)
    assert abs(z) < 4
    # The standard error of a sample variance, from the fourth moment of the estimates.
    spread = np.std(np.square(estimates - np.trace(SYMMETRIC))) / np.sqrt(probes)
    assert abs(np.var(estimates) - expected) < 4 * spread


@pytest.mark.parametrize("gaussian", [False, True], ids=["signs", "normal"])
def test_only_the_symmetric_part_of_the_jacobian_matters(gaussian, x64):
    divergence, x = ss.Hutchinson(50, gaussian), jnp.asarray(POINT)
    whole, part = (estimate(divergence, linear(m), x)[1] for m in (MATRIX, SYMMETRIC / 2))
    np.testing.assert_allclose(whole, part, rtol=1e-10, atol=1e-12)


def test_standard_error_is_calibrated(x64):
    divergence, keys = ss.Hutchinson(probes=8), jax.random.split(KEY, 2000)
    estimates = jax.vmap(lambda key: estimate(divergence, linear(SYMMETRIC), jnp.asarray(POINT), key)[1])(keys)
    squared = np.square(jax.vmap(divergence.standard_error)(estimates))
    # E[se^2] is the variance of the mean of 8; the means' own spread is the second witness.
    expected = variance(False, SYMMETRIC) / 8
    assert abs(squared.mean() - expected) < 4 * squared.std() / np.sqrt(2000)
    errors = np.square(estimates.mean(1) - np.trace(SYMMETRIC))
    assert abs(errors.mean() - expected) < 4 * errors.std() / np.sqrt(2000)


def test_standard_error_of_one_probe_cannot_be_known():
    assert np.isnan(ss.Hutchinson(probes=1).standard_error(jnp.ones(1)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("gaussian", [False, True], ids=["signs", "normal"])
def test_probes_are_white_and_have_the_dtype_of_the_state(gaussian, dtype, x64):
    probes = ss.Hutchinson(10000, gaussian).draw(KEY, jnp.zeros(EVENT, dtype))
    assert probes.shape == (10000, *EVENT) and probes.dtype == dtype
    assert gaussian or set(np.unique(probes)) == {-1, 1}
    flat = np.asarray(probes).reshape(-1, 6)
    np.testing.assert_allclose(flat.mean(0), 0, atol=0.04)  # 4 / sqrt(10000)
    np.testing.assert_allclose(flat.T @ flat / 10000, np.eye(6), atol=0.06)  # 4 sqrt(2 / 10000)


@pytest.mark.parametrize(
    "divergence",
    [ss.Hutchinson(probes=5), ss.ExactDivergence(), ss.ExactDivergence(chunk=2)],
    ids=["Hutchinson", "exact", "exact, in chunks"],
)
def test_the_field_is_evaluated_once_for_all_probes(divergence):
    calls = []

    def field(x):
        jax.debug.callback(lambda _: calls.append(None), x)
        return jnp.sin(x)

    jax.jit(lambda x: estimate(divergence, field, x))(jnp.ones(EVENT))
    jax.effects_barrier()
    assert len(calls) == 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ss.Hutchinson(probes=0), "probes must be at least 1, got 0"),
        (lambda: ss.ExactDivergence(chunk=0), "chunk must be at least 1, got 0"),
    ],
    ids=["probes", "chunk"],
)
def test_counts_below_one_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
