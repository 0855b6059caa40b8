"""Stochastic samplers against closed forms: weak order, strong order, and the law of their samples.

With the exact score of a Gaussian a whole solve is affine, x_end = A x_start + b + sum_k C_k z_k over the noises z_k of
its rows, so the law of its result follows without any sampling.  A, b and C_k are read off the sampler's own loop:
one batch whose members start from, or draw, one unit vector each.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde import trees
from score_sde.sampling.loop import march
from score_sde.sampling.sampler import LinearRow
from tests.catalogue import SDES, OrnsteinUhlenbeck, describe, name
from tests.scores import WAYS, ExactScore

GAUSSIANS = [  # means and rotated covariances, of different widths and correlations
    (np.array([1.0, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]])),
    (np.array([-2.0, 0.7]), np.array([[1.5, -0.9], [-0.9, 0.8]])),
    (np.array([0.3, 1.6]), np.array([[0.2, 0.05], [0.05, 0.1]])),
]
RANGES = [(-4.0, 4.0), (-6.0, 0.0), (-1.0, 5.0)]  # of the log-SNR; every SDE has them
SIZES = (20, 40, 80, 160)
ROWS = 2 * SIZES[-1]


class Tabulated(ss.LinearSampler):
    """The rows of another sampler's plan, made `ROWS` with rows that do nothing: all samplers share a program."""

    rows: LinearRow
    stages: int = trees.static(1)

    def plan(self, sde, times):
        number = np.arange(self.rows.t.shape[0])
        first, last = number % self.stages == 0, number % self.stages == self.stages - 1
        return dataclasses.replace(self.rows, step=number // self.stages, first=first, last=last, remember=first)


def tabulated(sampler, sde, times):
    plan = sampler.plan(sde, times)
    stages, missing = plan.t.size // (times.size - 1), ROWS - plan.t.size

    def pad(values, fill):
        values = np.asarray(values)
        return jnp.asarray(np.concatenate([values, np.full((missing, *values.shape[1:]), fill, values.dtype)]))

    rows = jax.tree.map(lambda values: pad(values, 0), plan)
    table = Tabulated(dataclasses.replace(rows, t=pad(plan.t, float(times[-1])), decay=pad(plan.decay, 1)), stages)
    ours = table.plan(sde, times)
    for flag in ("step", "first", "last", "remember"):  # those are numpy's in a plan, and not traced here
        np.testing.assert_array_equal(getattr(ours, flag)[: plan.t.size], getattr(plan, flag))
    return table


class TabulatedScore(ss.Frozen):
    """The exact score of a Gaussian at the times of some rows."""

    target: ss.Gaussian
    t: jax.Array
    alpha: jax.Array
    sigma: jax.Array

    def __call__(self, x, t):
        i = jnp.argmin(jnp.abs(self.t - t[0]))
        return jax.vmap(self.target.noised(self.alpha[i], self.sigma[i]).score_at)(x)


@trees.jit
def _responses(table, score, x, row, unit):
    def draw(n, k, like):
        return jnp.where((row == n)[:, None], unit, 0.0)

    return march(ss.VP(), score, table, jnp.linspace(1.0, 0.5, ROWS // table.stages + 1), x, draw)[0]


def law_after(sampler, sde, times, target, mean, covariance):
    """Mean and covariance of the result, started from a mean and a covariance at times[0]."""
    size = mean.size
    table = tabulated(sampler, sde, times)
    score = TabulatedScore(target, table.rows.t, sde.alpha(table.rows.t), sde.sigma(table.rows.t))
    x, unit = np.zeros((1 + size + ROWS * size, size)), np.zeros((1 + size + ROWS * size, size))
    x[1 : 1 + size], unit[1 + size :] = np.eye(size), np.tile(np.eye(size), (ROWS, 1))
    row = np.concatenate([np.full(1 + size, -1), np.repeat(np.arange(ROWS), size)])
    ends = np.asarray(_responses(table, score, *map(jnp.asarray, (x, row, unit))))
    offset, slopes = ends[0], ends[1:] - ends[0]
    a, c = slopes[:size].T, slopes[size:].T
    return a @ mean + offset, a @ covariance @ a.T + c @ c.T


@functools.cache
def _at_log_snr(index, start, end, fractions):
    return SDES[index].inverse_log_snr(start + (end - start) * jnp.asarray(fractions))


def log_snr_grid(sde, n, ends=None):
    """n steps in log-SNR, in which no solver is stiff: equal ones over the SDE's own range; or long and short ones in
    turns between `ends`, which finds formulas that are right for equal steps alone.
    """
    fractions, index = np.arange(n + 1.0), [name(s) for s in SDES].index(name(sde))
    if ends is None:
        ends = map(float, sde.log_snr(jnp.asarray([sde.t_max, sde.t_sampling], jnp.result_type(float))))
    else:
        fractions[1::2] += 0.25
    times = np.asarray(_at_log_snr(index, *ends, tuple(fractions / n)))
    return jnp.asarray(np.clip(times, float(sde.t_sampling), float(sde.t_max)))


# --- weak order ------------------------------------------------------------------------------------------------------

WEAK_ORDERS = [
    (ss.EulerMaruyama(), 1),
    (ss.ReverseDiffusion(), 1),
    (ss.Ancestral(), 1),
    (ss.Ancestral(forward_variance=True), 1),
    (ss.ReverseDiffusion(published=True), 1),
    (ss.Ancestral(published=True), 1),
    (ss.DDIM(0.5), 1),
    (ss.SDEDPMSolverPP(1), 1),
    (ss.SDEDPMSolverPP(2), 2),
    (ss.SDEDPMSolverPP(2, eta=0.5), 2),
    (ss.EDMStochastic(s_churn=2.0), 2),
]


def check_weak_order(sampler, order, sde, ends, mean, covariance):
    target, errors = ss.Gaussian(jnp.asarray(mean), jnp.asarray(covariance)), []
    for n in SIZES:
        times = log_snr_grid(sde, n, ends)
        start, end = (target.marginal(sde, times[i]) for i in (0, -1))
        law = law_after(sampler, sde, times, target, np.asarray(start.mean), np.asarray(start.covariance))
        exact = end.mean, end.covariance
        errors.append([np.linalg.norm(got - np.asarray(right)) for got, right in zip(law, exact, strict=True)])
    of_mean, of_covariance = np.transpose(errors)
    for error in (of_mean, of_covariance):
        # The window is the last three sizes.  Measured over all cases: 0.72 (Euler-Maruyama on VE, whose error there
        # passes through zero; 0.9 otherwise) to 1.6 for order 1, 1.73 to 2.1 for order 2.  The mean is exact, to
        # rounding, for the exponential solvers, and for Euler-Maruyama where its path is straight.
        if error.max() > 1e-11:
            slope = -np.polyfit(np.log(SIZES[1:]), np.log(error[1:]), 1)[0]
            assert slope >= order - 0.3, (slope, error)
    # At 160 steps, relative, measured: at most 0.038 for order 1 (ReverseDiffusion), 4e-4 for order 2.
    for error, exact in zip((of_mean, of_covariance), (end.mean, end.covariance), strict=True):
        assert error[-1] < (0.05 if order == 1 else 5e-4) * np.linalg.norm(exact), errors
    return errors


@pytest.mark.parametrize(
    "number, sampler, order, sde",
    [  # two SDEs for each sampler, so that each SDE has its turn; elsewhere (slow) all of them
        (n, *entry, SDES[(2 * n + shift) % len(SDES)]) for n, entry in enumerate(WEAK_ORDERS) for shift in (0, 3)
    ],
    ids=describe,
)
def test_weak_order(number, sampler, order, sde, x64):
    check_weak_order(sampler, order, sde, RANGES[number % 3], *GAUSSIANS[number // 3 % len(GAUSSIANS)])


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("sampler, order", WEAK_ORDERS, ids=describe)
def test_weak_order_on_every_gaussian_and_range(sampler, order, sde, x64):
    for ends in RANGES:
        for gaussian in GAUSSIANS:
            check_weak_order(sampler, order, sde, ends, *gaussian)


# --- strong order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [ss.VP(), pytest.param(OrnsteinUhlenbeck(), marks=pytest.mark.slow)], ids=name)
def test_strong_order_of_euler_maruyama_is_one_on_shared_brownian_paths(sde, x64):
    paths, fine, start, end = 64, 2048, float(sde.t_max), float(sde.t_sampling)
    target = ss.GaussianMixture(jnp.array([[1.0, -0.5], [-0.8, 0.6]]), jnp.array([[0.5, 0.6], [0.6, 0.4]]))
    increments = jax.random.normal(jax.random.key(0), (fine, paths, 2))
    x_init = sde.prior_sample(jax.random.key(1), (paths, 2))

    @jax.jit
    def solve(times, z):
        def draw(n, k, like):
            return z[n]

        return march(sde, target.score(sde), ss.EulerMaruyama(), times, x_init, draw)[0]

    def result(n):  # padded with steps of no length: all sizes share a program
        times = jnp.concatenate([jnp.linspace(start, end, n + 1), jnp.full(fine - n, end)])
        z = increments.reshape(n, fine // n, paths, 2).sum(1) / (fine / n) ** 0.5
        return solve(times, jnp.concatenate([z, jnp.zeros((fine - n, paths, 2))]))

    reference, sizes = result(fine), (32, 64, 128, 256)
    errors = [float(jnp.sqrt(jnp.mean(jnp.square(result(n) - reference)))) for n in sizes]
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope >= 0.7, errors  # theory 1, for additive noise (1/2 otherwise)


# --- the law of samples ----------------------------------------------------------------------------------------------

# Two identical components are a Gaussian: it runs in the mixture's program.
MEAN, STDS = np.array([1.0, -0.5]), np.array([0.6, 0.3])
GAUSSIAN = ss.GaussianMixture(np.tile(MEAN, (2, 1)), np.tile(STDS, (2, 1)))
MIXTURE = ss.GaussianMixture([[1.0, -0.5], [-0.8, 0.6]], [[0.3, 0.5], [0.4, 0.2]], [0.7, 0.3])
SAMPLES, STEPS = 1000, 150
SAMPLERS = [*(sampler for sampler, _ in WEAK_ORDERS[:-1]), ss.EDMStochastic(s_churn=20.0)]
DEFAULT = [
    ("Ancestral", "RectifiedFlow"),
    ("SDEDPMSolverPP", "OrnsteinUhlenbeck"),
    ("EDMStochastic(s_churn=20.0)", "EDM"),
]
PAIRS = [  # by default one of a kind: one F, two F's, two stages; the slow ones are each sampler on every second SDE
    pytest.param(sampler, sde, marks=[] if (describe(sampler), name(sde)) in DEFAULT else pytest.mark.slow)
    for n, sampler in enumerate(SAMPLERS)
    for m, sde in enumerate(SDES)
    if (n + m) % 2 == 0 or (describe(sampler), name(sde)) in DEFAULT
]


def draw_samples(sampler, sde, target, way=None, samples=SAMPLES):
    target = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), target)
    score = target.score(sde) if way is None else ExactScore(target, sde, jnp.array(WAYS.index(way)))
    seed = [name(s) for s in SDES].index(name(sde)) + 100 * (0 if way is None else WAYS.index(way))
    grid = jnp.asarray(log_snr_grid(sde, STEPS), jnp.float32)
    out = ss.sample(jax.random.key(seed), sde, score, (samples, 2), sampler=sampler, grid=grid)
    return np.asarray(out.x, np.float64)


def z_scores(x, mean, variance, fourth, mean_bias=0.0, variance_bias=0.0):
    """Of the sample mean and variance, in standard errors, after allowing for biases."""
    deviations = (
        np.maximum(np.abs(x.mean(0) - mean) - mean_bias, 0),
        np.maximum(np.abs(np.square(x - mean).mean(0) - variance) - variance_bias * variance, 0),
    )
    errors = np.sqrt(variance / len(x)), np.sqrt((fourth - variance**2) / len(x))
    return np.concatenate([d / e for d, e in zip(deviations, errors, strict=True)])


def law_of_the_chain(sampler, sde):
    """Mean and variance of the samples of the Gaussian, exactly."""
    with jax.enable_x64(True):
        target = ss.Gaussian(jnp.asarray(MEAN), jnp.asarray(STDS**2))
        start = float(sde.prior_std()) ** 2 * np.eye(2)
        mean, covariance = law_after(sampler, sde, log_snr_grid(sde, STEPS), target, np.zeros(2), start)
        return mean, np.diag(covariance)


def mixture_moments(sde):
    marginal = MIXTURE.marginal(sde, sde.t_sampling)
    means, stds, weights = (np.asarray(a, np.float64) for a in (marginal.means, marginal.stds, marginal.weights))
    mean = weights @ means
    offset = means - mean
    variance = weights @ (offset**2 + stds**2)
    return mean, variance, weights @ (offset**4 + 6 * offset**2 * stds**2 + 3 * stds**4)


def order_of(sampler):
    return 2 if name(sampler) == "EDMStochastic" or getattr(sampler, "order", 1) == 2 else 1


def check_law(sampler, sde, way=None):
    mean, variance = law_of_the_chain(sampler, sde)
    z = z_scores(draw_samples(sampler, sde, GAUSSIAN, way), mean, variance, 3 * variance**2)
    assert z.max() < 4.7, (way, z)  # 4 statistics in each of 126 cases, slow ones too: chance of one beyond is 1.4e-3
    # Bias of 150 steps, from 1e5 samples (standard error 0.003): at most 0.017 in the mean and 0.059 relative in the
    # variance for order 1 (SDEDPMSolverPP on RectifiedFlow), 0.007 and 0.009 for order 2.
    mean_bias, variance_bias = (0.007, 0.01) if order_of(sampler) == 2 else (0.02, 0.06)
    z = z_scores(
        draw_samples(sampler, sde, MIXTURE, way),
        *mixture_moments(sde),
        mean_bias=mean_bias,
        variance_bias=variance_bias,
    )
    assert z.max() < 4.7, (way, z)


@pytest.mark.slow
@pytest.mark.parametrize("sampler, sde", PAIRS, ids=describe)
def test_samples_have_the_exact_law_of_the_chain_and_the_moments_of_a_mixture(sampler, sde):
    check_law(sampler, sde)


@pytest.mark.slow  # by default test_contracts.py runs every kind
@pytest.mark.parametrize("sde", SDES[::2], ids=name)
def test_samples_have_the_same_law_whatever_the_network_predicts(sde):
    for way in WAYS:
        check_law(ss.EulerMaruyama(), sde, way)
