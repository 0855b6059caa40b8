"""The adaptive solve against equations with known solutions, and its count of evaluations against a real count."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import flow, trees
from tests.catalogue import SDES, name


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


SOLVERS = [
    flow.cash_karp(),
    diffrax.Tsit5(),
    diffrax.Dopri5(),
    diffrax.Dopri8(),
    diffrax.Bosh3(),
    diffrax.Heun(),
    diffrax.Ralston(),
]


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


def test_cash_karp_satisfies_the_order_conditions_of_order_5_and_its_companion_those_of_order_4():
    """Butcher's rooted trees up to order 5: sum b_i phi_i(tree) = 1 / density(tree)."""
    tableau = flow.cash_karp().tableau
    s = tableau.num_stages
    a, c = np.zeros((s, s)), np.concatenate([[0], tableau.c])
    for i, row in enumerate(tableau.a_lower):
        a[i + 1, : i + 1] = row
    np.testing.assert_allclose(a.sum(axis=1), c, atol=1e-15)
    ac = a @ c
    trees_of_order = {
        1: [(np.ones(s), 1)],
        2: [(c, 2)],
        3: [(c**2, 3), (ac, 6)],
        4: [(c**3, 4), (c * ac, 8), (a @ c**2, 12), (a @ ac, 24)],
        5: [
            (c**4, 5), (c**2 * ac, 10), (ac**2, 20), (c * (a @ c**2), 15), (c * (a @ ac), 30), (a @ c**3, 20),
            (a @ (c * ac), 40), (a @ (a @ c**2), 60), (a @ (a @ ac), 120),
        ],
    }  # fmt: skip
    b, embedded = tableau.b_sol, tableau.b_sol - tableau.b_error
    for order, conditions in trees_of_order.items():
        for phi, density in conditions:
            np.testing.assert_allclose(b @ phi, 1 / density, atol=1e-14)
            if order < 5:
                np.testing.assert_allclose(embedded @ phi, 1 / density, atol=1e-14)


def test_weights_of_cash_karp_are_the_evenest():
    """The claim of its docstring: the variance of evaluations with independent errors, at one number of them."""

    def gain(solver):
        tableau = solver.tableau
        return (tableau.num_stages - bool(tableau.fsal)) * np.sum(np.square(tableau.b_sol))

    found = [gain(s) for s in (flow.cash_karp(), diffrax.Dopri5(), diffrax.Tsit5())]
    np.testing.assert_allclose(found, [1.8, 4.5, 108], rtol=0.03)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_first_step_changes_the_log_snr_by_one_in_both_directions(sde):
    ends = jnp.float32(sde.t_min), jnp.float32(sde.t_max)
    for t0, t1 in (ends, ends[::-1]):
        step = float(flow.first_step(sde, t0, t1))
        assert np.sign(step) == np.sign(float(t1 - t0)) and abs(step) <= abs(float(t1 - t0))
        change = float(sde.log_snr(t0 + step) - sde.log_snr(t0))
        assert abs(change + np.sign(step)) < 0.02  # float32 times near 1 have eight digits, of log-SNR some fewer
