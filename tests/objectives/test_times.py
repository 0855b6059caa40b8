"""Training times: their range, and their law by Kolmogorov-Smirnov tests."""

import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.objectives.times import TimeSampler
from tests.catalogue import SDES, TIMES, name

KEY = jax.random.key(0)
N = 4096
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
every_law = pytest.mark.parametrize("law", TIMES, ids=name)


def follows(values, cdf):
    """Whether the Kolmogorov-Smirnov distance is below 2.7/sqrt(n): false alarm 2 exp(-2 * 2.7^2) = 1e-6."""
    values = np.sort(np.asarray(values, np.float64))
    n = len(values)
    exact = np.array([cdf(v) for v in values])
    below, above = np.arange(n) / n, np.arange(1, n + 1) / n
    return math.sqrt(n) * max((exact - below).max(), (above - exact).max()) < 2.7


def fraction(sde, t):
    """Where in [t_min, t_max] the times lie, in float64."""
    low, high = float(sde.t_min), float(sde.t_max)
    return (np.asarray(t, np.float64) - low) / (high - low)


def test_the_statistic_tells_laws_apart():
    u = np.random.default_rng(0).uniform(size=N)
    assert follows(u, lambda v: v)
    assert not follows(u, lambda v: v**1.2)  # farthest apart by 0.067, 4.3 / sqrt(4096)
    assert not follows(1 - u / 1.1, lambda v: v)


@every_law
@every_sde
def test_times_are_in_the_range_of_the_sde(law, sde):
    t = law(KEY, sde, N)
    assert (t.shape, t.dtype) == ((N,), jnp.float32)
    ends = np.float32([sde.t_min, sde.t_max])
    assert (t >= ends[0]).all() and (t <= ends[1]).all()
    assert np.unique(t).size > 0.9 * N  # spread, not stuck at an end; float32 has few equal draws


@pytest.mark.parametrize("mean", [-40.0, 40.0])
@every_sde
def test_noise_levels_beyond_the_range_are_drawn_at_its_end(mean, sde):
    t = ss.times.LogNormal(mean, 1e-3)(KEY, sde, 8)
    np.testing.assert_allclose(t, sde.t_min if mean < 0 else sde.t_max, rtol=2e-7)  # 2 roundings of float32


@every_sde
def test_uniform_times_are_uniform(sde, x64):
    assert follows(fraction(sde, ss.times.Uniform()(KEY, sde, N)), lambda v: v)


@pytest.mark.parametrize("n", [1, 7, 64])
@every_sde
def test_each_stratum_has_one_time(sde, n, x64):
    strata = np.floor(n * fraction(sde, ss.times.Stratified()(KEY, sde, n)))
    np.testing.assert_array_equal(np.sort(strata), np.arange(n))


def test_strata_are_shifted_together(x64):
    u = np.sort(fraction(ss.VP(), ss.times.Stratified()(KEY, ss.VP(), 16)))
    np.testing.assert_allclose(np.diff(u), 1 / 16, rtol=1e-12)


def test_each_stratified_time_is_uniform(x64):
    t = jax.vmap(lambda key: ss.times.Stratified()(key, ss.VP(), 3))(jax.random.split(KEY, N))
    for column in t.T:
        assert follows(fraction(ss.VP(), column), lambda v: v)


@every_sde
def test_noise_levels_are_log_normal(sde, x64):
    """log(sigma/alpha) ~ N(mean, std^2), with all but 1e-10 of the mass inside every range."""
    t = ss.times.LogNormal(-1.0, 0.5)(KEY, sde, N)
    log_ratio = np.log(np.asarray(sde.sigma(t) / sde.alpha(t)))
    assert follows(log_ratio, NormalDist(-1.0, 0.5).cdf)
    assert abs(log_ratio.mean() + 1.0) < 5 * 0.5 / math.sqrt(N)  # 5 standard errors: false alarm 6e-7
    assert abs(log_ratio.var() / 0.25 - 1) < 5 * math.sqrt(2 / N)


def test_default_noise_levels_are_those_of_karras(x64):
    assert follows(np.log(ss.times.LogNormal()(KEY, ss.EDM(), N)), NormalDist(-1.2, 1.2).cdf)


@every_sde
def test_log_snr_times_have_the_density_g2_over_sigma2(sde, x64):
    """Its distribution function is the integral of g^2/sigma^2, here by quadrature rather than through the log-SNR."""
    t = np.sort(np.asarray(ss.times.LogSNR()(KEY, sde, N)))
    grid = np.geomspace(float(sde.t_min), float(sde.t_max), 20001)
    if isinstance(sde, (ss.CosineVP, ss.RectifiedFlow)):  # the density rises again towards T
        grid = np.unique(np.concatenate([grid, 1 - np.geomspace(1 - grid[-1], 1 - grid[0], 20001)]))
        grid = grid[(grid >= float(sde.t_min)) & (grid <= float(sde.t_max))]
    density = np.asarray(sde.diffusion(jnp.asarray(grid)) ** 2 / sde.sigma(jnp.asarray(grid)) ** 2)
    mass = np.concatenate([[0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(grid))])
    u = np.interp(t, grid, mass / mass[-1])
    # One time in each of N strata, so the k-th is within 1/N of k/N; 1e-3 for the quadrature.
    assert np.abs(u - (np.arange(N) + 0.5) / N).max() < 1 / N + 1e-3


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (-0.5, 1.5)])
@every_sde
def test_logits_of_times_are_normal(sde, mean, std, x64):
    u = fraction(sde, ss.times.LogitNormal(mean, std)(KEY, sde, N))
    assert follows(np.log(u / (1 - u)), NormalDist(mean, std).cdf)


@every_law
def test_times_depend_on_the_key_alone(law):
    sde = ss.VP()
    np.testing.assert_array_equal(law(KEY, sde, 8), law(KEY, sde, 8))
    assert (law(KEY, sde, 8) != law(jax.random.key(1), sde, 8)).any()


@pytest.mark.parametrize("law", [ss.times.LogNormal, ss.times.LogitNormal], ids=lambda law: law.__name__)
def test_a_law_without_spread_is_refused(law):
    with pytest.raises(ValueError, match=f"times.{law.__name__}: std must be positive, got 0.0"):
        law(std=0.0)


def test_a_missing_method_is_named():
    class Empty(TimeSampler):
        pass

    with pytest.raises(TypeError, match=r"Empty must define __call__\(key, sde, n\)"):
        Empty()(KEY, ss.VP(), 3)
