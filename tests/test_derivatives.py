"""Derivatives are those of the values: every public name against finite differences; what has none says so."""

import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.guidance.linear import solve
from tests.catalogue import SDES, name

sys.path.append(str(Path(__file__).parents[1] / "experiments"))  # scripts, whose list of cases is the contract's
from derivative_cases import KEY, USERS, WAY, X, cases, sampled  # noqa: E402
from derivatives import worst_error  # noqa: E402

CASES = cases()
ABSTRACT = "states an interface"
RESULT = "holds what functions return, which are cases"
NOT_A_FUNCTION = {
    **dict.fromkeys(("AffineSDE", "Sampler", "LinearSampler", "Corrector", "Frozen", "operators.Operator"), ABSTRACT),
    **dict.fromkeys(("predictions.Prediction", "times.TimeSampler", "weightings.Weighting"), ABSTRACT),
    **dict.fromkeys(("Samples", "LogProb", "Bound", "BitsPerDim", "Particles"), RESULT),
    "static": "marks a field",
    "network_evaluations": "counts",
    "ExactDivergence": "is what the case of log_prob solves with",
    "bits_per_dim": "is in the cases of the bounds",
    "operators.random_projection": "draws a Matrix, which is a case, from a key",
}
# What has no derivative, and the test that says why.
HAS_NONE = {
    "quantise": "test_grey_levels_have_no_derivative",
    "dequantise": "test_grey_levels_have_no_derivative",
    "importance_weighted": "test_grey_levels_have_no_derivative",
    "sample_smc": "test_resampling_is_refused",
    "operators.gaussian_kernel": "test_a_kernel_is_made_of_concrete_numbers",
}


def public() -> list[str]:
    """The names that users may call: of the package, and of the modules among its names."""
    found = []
    for key, value in vars(ss).items():
        if key.startswith("_"):
            continue
        if not isinstance(value, ModuleType):
            found.append(key)
        elif key in ("discrete", "predictions", "times", "weightings", "grids", "operators"):
            own = [k for k, v in vars(value).items() if getattr(v, "__module__", None) == value.__name__]
            found += [f"{key}.{k}" for k in own if not k.startswith("_") and callable(getattr(value, k))]
    return found


def test_no_public_name_stays_out():
    covered = {n for case in CASES for n in (case.name, *case.covers)} | set(NOT_A_FUNCTION) | set(HAS_NONE)
    doubles = {f"predictions.{n}" for n in ("Network", "PredictedScore")}  # names of the package too
    missing = [n for n in public() if n not in covered and n not in doubles]
    assert not missing, f"without a case in experiments/derivative_cases.py: {missing}"
    assert not {t for t in HAS_NONE.values()} - set(globals())
    assert {name(sde) for sde in SDES} - {"OrnsteinUhlenbeck"} <= {case.name for case in CASES}


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[pytest.mark.slow] * c.slow) for c in CASES]
)  # fmt: skip
def test_gradients_are_those_of_the_values(case, x64):
    assert worst_error(case) <= case.bound


@pytest.mark.parametrize("method", [ss.pigdm, pytest.param(ss.moment_matching, marks=pytest.mark.slow)])
def test_density_of_a_measured_gaussian(method, x64):
    """Where a residual lies in fewer directions than its derivative: 5.59 with derivatives of the solver's steps."""
    sde, operator = ss.VP(), ss.operators.Matrix((2,), jnp.diag(jnp.array([1.0, 3.0])))
    guided = method(ss.Gaussian(jnp.zeros(2)).score(sde), sde, operator, jnp.array([[1.0, 0.0]]), 0.5)
    law = ss.Gaussian(jnp.array([0.8, 0.0]), jnp.array([1 / 5, 1 / 37]))
    ends = dict(terminal_log_prob=law.marginal(sde, sde.t_max).log_prob, divergence=ss.ExactDivergence())
    got = ss.log_prob(None, sde, guided, jnp.array([[0.3, 0.0]]), **ends, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(got.nats, law.marginal(sde, sde.t_min).log_prob(jnp.array([[0.3, 0.0]])), rtol=1e-5)
    np.testing.assert_allclose(got.nats, 0.147, atol=5e-4)


@pytest.mark.slow
def test_a_density_by_unfinished_systems_does_not_converge():
    sde, operator = ss.VP(), ss.operators.Matrix((2,), jnp.diag(jnp.array([1.0, 3.0])))
    guided = ss.pigdm(ss.Gaussian(jnp.zeros(2)).score(sde), sde, operator, jnp.ones((1, 2)), 0.5, iterations=1)
    assert np.isfinite(guided(jnp.ones((1, 2)), jnp.ones(1))).all()
    got = ss.log_prob(None, sde, guided, jnp.ones((1, 2)), divergence=ss.ExactDivergence(), max_steps=64)
    assert not got.converged[0] and np.isnan(got.nats[0])


@pytest.mark.parametrize("symmetric", [True, False])
def test_solutions_have_derivatives_of_all_orders_or_none(symmetric, x64):
    skew = jnp.array([[0, 0.02, 0], [-0.02, 0, 0], [0, 0, 0]]) * float(not symmetric)
    base = jnp.array([[2, 0.3, 0], [0.3, 1, 0.2], [0, 0.2, 3.0]]) + skew
    b = jnp.array([[1.0, 0, 0], [0.3, 0.2, 0.1]])

    def total(way, p, b):
        return jnp.sum(jnp.sin(way(p * base + p**2 * skew, b)))

    def ours(matrix, b):
        return solve(lambda u: u @ matrix.T, b, 60, symmetric=symmetric)

    def exact(matrix, b):
        return jnp.linalg.solve(matrix, b.T).T

    def few(matrix, b):
        return solve(lambda u: u @ matrix.T, b, 1, symmetric=symmetric)

    for derivative in (jax.grad, jax.hessian):
        got, wanted = (jax.jit(derivative(total, (1, 2)), static_argnums=0)(way, 0.7, b) for way in (ours, exact))
        for a, c in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, c, rtol=1e-6, atol=1e-8)
    assert np.isnan(jax.grad(total, 1)(few, 0.7, b)) and np.isfinite(total(few, 0.7, b))


def test_the_inverse_log_snr_of_a_users_sde_has_derivatives_of_all_orders(x64):
    level = jnp.array([0.4, -2.0])

    def ours(rate, level):
        return type(USERS)(rate).inverse_log_snr(level)

    def exact(rate, level):
        return -0.5 * jnp.log(jax.nn.sigmoid(level)) / rate

    def all_of(f):
        return jax.jit(jax.vmap(lambda r: (f(r, level), jax.jacrev(f, (0, 1))(r, level), jax.hessian(f)(r, level))))

    for got, wanted in zip(*(jax.tree.leaves(all_of(f)(jnp.array([2.0, 3.0]))) for f in (ours, exact)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)
    beyond = jax.grad(lambda rate: jnp.sum(ours(rate, jnp.array([100.0, -100.0]))))(2.0)
    assert beyond == 0  # t_min and t_max


@pytest.mark.parametrize("sampler, setting", [(ss.SDEDPMSolverPP(2, 0.0), "eta"), (ss.EDMStochastic(0.0), "s_churn")])
def test_noise_that_grows_like_a_root_has_an_infinite_slope_at_0(sampler, setting, x64):
    """Its variance is proportional to the setting; the gradient says so instead of 0."""

    way = WAY | dict(x=jnp.asarray(X), target=ss.Gaussian(jnp.zeros(2)))

    def end(value):
        return sampled(**way | dict(sampler=type(sampler)(**{setting: value}))).x[0, 0]

    value, slope = jax.jit(jax.value_and_grad(end))(0.0)
    rises = [float(abs(end(jnp.asarray(h)) - value)) for h in (1e-8, 4e-8)]
    assert rises[1] / rises[0] == pytest.approx(2, rel=1e-2)
    assert not np.isfinite(slope)
    others = jax.jit(jax.grad(lambda sde: sampled(**way | dict(sampler=sampler, sde=sde)).x.sum()))(WAY["sde"])
    assert np.isfinite(others.beta_max)  # the slope in another number is what it is


def test_grey_levels_have_no_derivative(x64):
    """They are whole numbers: refused as what is differentiated, and constant about almost every x."""
    x = jnp.asarray(X)
    level = lambda x: ss.quantise(x, levels=8)  # noqa: E731
    with pytest.raises(TypeError, match="int32"):
        jax.grad(lambda x: level(x)[0, 0])(x)
    assert (level(x + 1e-6) == level(x)).all() and (level(x - 1e-6) == level(x)).all()
    with pytest.raises(TypeError, match="int"):
        jax.grad(lambda k: ss.dequantise(KEY, k, levels=8).sum())(level(x))
    score = ss.Gaussian(jnp.zeros(2)).score(USERS)
    with pytest.raises(TypeError, match="int"):
        jax.grad(lambda k: ss.importance_weighted(KEY, USERS, score, k, levels=8, draws=1).value.sum())(level(x))


def test_resampling_is_refused():
    """A particle that is drawn anew jumps: the gradient of a mean leaves out how the draw changes."""
    sde, operator = ss.VP(), ss.operators.Matrix((2,), jnp.eye(2))

    def evidence(noise):
        guided = ss.dps(ss.Gaussian(jnp.zeros(2)).score(sde), sde, operator, jnp.asarray(X[:1], jnp.float32), noise)
        return ss.sample_smc(KEY, sde, guided, (1, 2), particles=4, steps=2).log_evidence[0]

    assert np.isfinite(evidence(0.5))
    with pytest.raises(TypeError, match="drawn anew"):
        jax.grad(evidence)(0.5)


def test_a_kernel_is_made_of_concrete_numbers():
    with pytest.raises(TypeError):
        jax.grad(lambda std: ss.operators.gaussian_kernel(std, 1).sum())(1.0)


def test_a_mask_has_no_numbers_in_between():
    with pytest.raises(ValueError, match="1 where pixels are known and 0 elsewhere"):
        ss.operators.Mask((2,), jnp.array([1.0, 0.5]))


def test_tolerances_move_a_solve_within_themselves(x64):
    """What they bound does not depend on them; it jumps where a step is rejected, so there is no derivative."""
    x, score = jnp.asarray(X), ss.Gaussian(jnp.ones(2), 0.25).score(USERS)
    ends = [
        ss.sample_adaptive(KEY, USERS, score, x.shape, x_init=x, rtol=rtol, atol=rtol, t_end=0.05).x
        for rtol in (1e-6, 2e-6, 4e-6)
    ]
    assert np.ptp(np.asarray(ends), axis=0).max() < 4e-5
