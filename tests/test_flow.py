"""The adaptive solve against equations with known solutions, and its count of evaluations against a real count."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import flow, trees


def test_single_sample_is_the_field_without_its_batch_axis():
    field = flow.single_sample(lambda x, t: x * t[:, None])
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(field(x, jnp.float32(2.0)), 2 * np.arange(3.0))


def test_split_norm_is_the_larger_of_state_rms_and_worst_density():
    assert float(flow.split_norm((jnp.full((2, 8), 3.0), jnp.array([1.0, -7.0])))) == 7
    assert float(flow.split_norm((jnp.full((2, 8), -3.0), jnp.array([1.0, -2.0])))) == 3


@trees.jit
def grow(t0, t1, y0, tolerance):
    """dy/dt = 2 t y, whose solution is y0 exp(t1^2 - t0^2)."""
    return flow.solve(lambda t, y: 2 * t * y, y0, t0, t1, rtol=tolerance, atol=tolerance, norm=flow.rms)


def test_error_follows_the_tolerance_in_both_directions_of_time_in_one_program(x64):
    y0 = jnp.array([1.0, -2.0, 0.5])
    grow(0.0, 1.0, y0, 1e-3)
    compiled = grow.cache_size()
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        for t0, t1 in ((0.2, 1.5), (1.5, 0.2)):
            y, stats = grow(t0, t1, y0, tolerance)
            relative = np.abs(y / (y0 * np.exp(t1**2 - t0**2)) - 1).max()
            # The tolerance bounds the error of each of 5 to 100 steps, most of which are well below it.
            assert relative < 3 * tolerance, (tolerance, t0, t1)  # measured: 0.06 to 1.15 of it
            assert stats.converged
    assert grow.cache_size() == compiled


SOLVERS = [diffrax.Tsit5(), diffrax.Dopri5(), diffrax.Dopri8(), diffrax.Bosh3(), diffrax.Heun(), diffrax.Ralston()]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_nfe_is_the_number_of_evaluations(solver):
    calls = []

    def field(t, y):
        jax.debug.callback(lambda _: calls.append(None), t)
        return jnp.where(t < 1, 0.0, 30 * jnp.cos(30 * t)) + 0 * y  # steps have grown too long when it sets in

    y, stats = jax.jit(lambda y: flow.solve(field, y, 0.0, 2.0, rtol=1e-3, atol=1e-3, norm=flow.rms, solver=solver))(
        jnp.zeros(2)
    )
    jax.effects_barrier()
    assert int(stats.nfe) == len(calls)
    assert stats.converged and int(stats.steps) > 10
    np.testing.assert_allclose(y, np.sin(60) - np.sin(30), atol=0.05)  # steps were rejected, or it would have missed it


def test_a_solve_that_runs_out_of_steps_says_so(x64):
    @trees.jit
    def solve(y0):
        return flow.solve(
            lambda t, y: jnp.cos(100 * t) * y, y0, 0.0, 10.0, rtol=1e-6, atol=1e-6, norm=flow.rms, max_steps=7
        )

    _, stats = solve(jnp.ones(2))
    assert not stats.converged
    assert int(stats.steps) == 7 and int(stats.nfe) == 7 * 6 + 1  # Tsit5: six new stages a step


def test_split_norm_controls_a_density_that_one_norm_over_all_does_not(x64):
    def field(t, y):
        state, density = y
        return -state, 20 * jnp.cos(20 * t) * jnp.ones_like(density)

    def density_error(norm):
        (_, density), stats = jax.jit(
            lambda: flow.solve(field, (jnp.ones(1023), jnp.zeros(1)), 0.0, 3.0, rtol=1e-4, atol=1e-4, norm=norm)
        )()
        assert stats.converged
        return abs(float(density[0]) - np.sin(60))

    def flat(parts):
        return flow.rms(jnp.concatenate(parts))

    # In one norm the density is 1/1024 of the square: 32 times less control (measured: 5e-5 against 1.2e-2).
    assert density_error(flow.split_norm) < 1e-3 < density_error(flat)


@pytest.mark.parametrize("solver", [diffrax.Kvaerno3(), diffrax.Euler()], ids=lambda solver: type(solver).__name__)
def test_solvers_whose_evaluations_cannot_be_counted_are_refused(solver):
    with pytest.raises(ValueError, match=f"explicit Runge-Kutta .* got {type(solver).__name__}"):
        flow.solve(lambda t, y: -y, jnp.ones(2), 0.0, 1.0, rtol=1e-3, atol=1e-3, norm=flow.rms, solver=solver)
