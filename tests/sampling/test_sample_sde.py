"""Reverse SDEs by solvers of diffrax: one path per sample, whatever the steps, the tolerance and the solver."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.arrays import sample_keys
from score_sde.sampling import adaptive

KEY = jax.random.key(0)
EVALUATIONS = {"ShARK": 2, "SRA1": 2, "SEA": 1, "Euler": 1}  # per step
MEAN, BATCH, STEPS, T_END = np.array([1.0, -0.5], np.float32), 512, 50, 0.02


def solve(keys=sample_keys(KEY, BATCH), sde=ss.VP(), mean=MEAN, variance=0.25, steps=STEPS, **options):  # noqa: B008
    score = ss.Gaussian(jnp.asarray(mean), jnp.asarray(variance, mean.dtype)).score(sde)
    return ss.sample_sde(keys, sde, score, (keys.size, 2), steps=steps, **dict(t_end=T_END) | options)


def counted():
    """A score, and a list that grows at each evaluation on the device."""
    calls = []

    def score(x, t):
        jax.debug.callback(lambda _: calls.append(None), t[0])
        return -x

    return score, calls


# --- a fixed grid: all but the slow ones share a program -------------------------------------------------------------


@pytest.fixture(scope="module")
def samples():
    return solve()


def test_samples_have_the_law_of_a_gaussian(samples):
    x, alpha = np.asarray(samples.x, np.float64), float(ss.VP().alpha(jnp.float32(T_END)))
    variance = 0.25 * alpha**2 + 1 - alpha**2
    # Bias of 50 steps, from 1e5 samples: at most 0.004 in the mean and relative in the variance.
    z = np.abs(x.mean(0) - alpha * MEAN) / np.sqrt(variance / BATCH)
    z_variance = np.abs(np.square(x - alpha * MEAN).mean(0) / variance - 1) / np.sqrt(2 / BATCH)
    assert max(*z, *z_variance) < 4, (z, z_variance)  # chance of one beyond: 3e-4
    assert samples.nfe.tolist() == [2 * STEPS] * BATCH and samples.first_bad_step.tolist() == [-1] * BATCH


def test_a_sample_depends_on_its_key_alone_and_other_numbers_do_not_compile_again(samples):
    compiled, order = adaptive._solve_sde.cache_size(), jnp.arange(BATCH)[::-1]
    np.testing.assert_allclose(solve(sample_keys(KEY, BATCH)[order]).x, samples.x[order], rtol=1e-5, atol=1e-6)
    changes = [
        dict(keys=sample_keys(jax.random.key(1), BATCH)),
        dict(sde=ss.VP(0.2, 15.0)),
        dict(variance=0.5),
        dict(temperature=0.5),
    ]
    changes += [dict(resolution=2.0**-9), dict(t_start=0.9), dict(rtol=0.1)]
    for change in changes:
        other = solve(**change).x
        assert np.mean(other != samples.x) > 0.99 or "rtol" in change, change  # the new numbers were used
    assert adaptive._solve_sde.cache_size() == compiled


def test_without_noise_the_solve_is_that_of_the_drift():
    # Variance 1: y = x - alpha m has dy/dt = beta y/2, so that y alpha is constant; x starts at 0.
    start, end = (float(ss.VP().alpha(jnp.float32(t))) for t in (1.0, T_END))
    x = solve(temperature=0.0, variance=1.0).x
    np.testing.assert_allclose(
        x, np.broadcast_to(end * MEAN - start**2 / end * MEAN, x.shape), atol=5e-4
    )  # measured 1.4e-4


def test_a_failing_solve_is_reported():
    with pytest.raises(FloatingPointError, match=f"{BATCH} of {BATCH} samples stopped being finite"):
        solve(mean=np.nan * MEAN)


# --- steps chosen by the error ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nfe_of_an_adaptive_solve_is_the_number_of_evaluations():
    score, calls = counted()
    for tolerance in (3e-2, 1e-2):
        compiled = adaptive._solve_sde.cache_size()
        calls.clear()
        out = ss.sample_sde(KEY, ss.VP(), score, (1, 2), t_start=0.8, rtol=tolerance, atol=tolerance)
        jax.effects_barrier()
        assert out.nfe.tolist() == [len(calls)] and len(calls) > 20
    assert adaptive._solve_sde.cache_size() == compiled  # other tolerances: the same program


@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.ShARK(), diffrax.SRA1()], ids=lambda s: type(s).__name__)
def test_adaptive_solves_find_the_path_s_own_result(solver, x64):
    errors, options = [], dict(keys=sample_keys(KEY, 16), mean=MEAN.astype(float), t_start=0.6)
    reference = solve(steps=1024, **options).x
    for tolerance in (1e-2, 1e-4):
        x = solve(steps=None, rtol=tolerance, atol=tolerance, solver=solver, **options).x
        errors.append(float(jnp.sqrt(jnp.mean(jnp.square(x - reference)))))
    # Errors of single steps, some 100 of them, of either sign; measured 0.003 and 3e-5 on a mixture.
    assert errors[0] < 1e-2 and errors[1] < 3e-4, errors


@pytest.mark.slow
def test_a_solve_out_of_steps_is_reported_and_the_others_are_right():
    def solve(batch, **options):
        return ss.sample_sde(KEY, ss.VP(), lambda x, t: -x, (batch, 2), t_start=0.8, **options)

    with pytest.raises(FloatingPointError, match="3 of 3 samples .* at step 10"):
        solve(3, max_steps=10)
    few = jax.jit(lambda: solve(3, max_steps=10))()
    assert few.first_bad_step.tolist() == [10, 10, 10] and few.nfe.tolist() == [20, 20, 20]


# --- one path --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def overlapping():
    with jax.enable_x64(True):
        sde = ss.VP()
        means, stds = jnp.array([[1.0, -0.5], [-0.8, 0.6]]), jnp.array([[0.5, 0.6], [0.6, 0.4]])
        score = ss.GaussianMixture(means, stds).score(sde)

        def solve(solver, steps):
            with jax.enable_x64(True):
                out = ss.sample_sde(KEY, sde, score, (64, 2), solver=solver, steps=steps, t_start=0.6, t_end=0.02)
                return np.asarray(out.x)

        return solve, solve(diffrax.ShARK(), 512)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver, order",  # strong orders for additive noise: theory 1.5, and 1 for Euler; measured 1.63, 1.39, 1.02, 1.01
    [(diffrax.ShARK(), 1.2), (diffrax.SRA1(), 1.2), (diffrax.SEA(), 0.7), (diffrax.Euler(), 0.7)],
    ids=lambda value: type(value).__name__,
)
def test_all_solvers_converge_to_the_same_samples_at_their_strong_order(overlapping, solver, order):
    solve, reference = overlapping
    sizes = (16, 64)
    errors = [np.sqrt(np.mean((solve(solver, n) - reference) ** 2)) for n in sizes]
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope >= order, (slope, errors)
    assert errors[-1] < 0.05  # of samples that spread over 2


@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.ShARK(), diffrax.SRA1(), diffrax.SEA(), diffrax.Euler()])
def test_nfe_is_the_number_of_evaluations(solver):
    score, calls = counted()
    out = ss.sample_sde(KEY, ss.VP(), score, (1, 2), solver=solver, steps=6)
    jax.effects_barrier()
    assert out.nfe.tolist() == [len(calls)] == [6 * EVALUATIONS[type(solver).__name__]]


@pytest.mark.slow
def test_a_sample_is_the_same_in_a_batch_of_1(samples):
    alone = solve(jax.random.fold_in(KEY, 5)[None])
    np.testing.assert_allclose(alone.x, samples.x[5:6], rtol=1e-5, atol=1e-6)  # rounding of 50 steps


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(solver=diffrax.Heun()), "solver of diffrax for additive noise, got Heun"),
        (dict(solver=diffrax.Tsit5()), "solver of diffrax for additive noise, got Tsit5"),
        (dict(solver=diffrax.SPaRK()), "solver of diffrax for additive noise, got SPaRK"),
        (dict(steps=50, resolution=0.1), "the shortest step, 0.02, is below the resolution .* 0.0999"),
        (dict(steps=0), "steps must be at least 1, got 0"),
        (dict(t_start=1.5), r"t_start must be in \[t_min, t_max\]"),
        (dict(t_end=0.0), r"t_end must be in \[t_min, t_max\]"),
        (dict(steps=5, t_start=0.1, t_end=0.5), "strictly falling"),
        (dict(x_init=jnp.ones((4, 3))), r"x_init of shape \(4, 2\), got \(4, 3\)"),
        (dict(key=jax.random.split(KEY, 3)), "one key or 4 keys"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ss.sample_sde(**dict(key=KEY, sde=ss.VP(), score=lambda x, t: -x, shape=(4, 2)) | options)
