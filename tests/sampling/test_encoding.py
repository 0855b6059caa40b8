"""Encoding: the exact flow map of a Gaussian, round trips, latents halfway, and great circles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.sampling import loop
from tests.catalogue import SDES, describe

KEY = jax.random.key(0)
# Bounds of the errors of the latent (relative) and of the way back, for 60 steps over log-SNR 5 to -5: 1.5 to 3 times
# what was measured on the worst SDE.
DETERMINISTIC = [
    (ss.DDIM(), 0.035, 0.08),
    (ss.Heun(), 1.5e-3, 1e-4),
    (ss.RungeKutta(), 1.5e-6, 3e-7),
    (ss.SDEDPMSolverPP(2, eta=0.0), 1e-3, 2e-4),
    (ss.DPMSolver(3), 1.5e-6, 4e-6),
    (ss.UniPC(), 3e-6, 3e-6),
    (ss.DPMSolverPP(3), 3e-6, 2e-5),
    (ss.DPMSolverPP2S(), 1e-3, 3e-5),
    (ss.DEIS(3), 1.2e-3, 2.5e-3),
    (ss.ProbabilityFlowEuler(), 0.2, 0.5),  # measured on VE; a tenth of it elsewhere
]
CASES = [
    pytest.param(sampler, sde, bounds, marks=[] if m == n < 4 else pytest.mark.slow)
    for n, (sampler, *bounds) in enumerate(DETERMINISTIC)
    for m, sde in enumerate(SDES)
    if (m - n) % len(SDES) in (0, 2, 4) or isinstance(sampler, ss.UniPC)
]


def gaussian():
    return ss.Gaussian(jnp.array([1.0, -0.5]), jnp.array([[0.5, 0.2], [0.2, 0.3]]))


def times_at(sde, *log_snrs):
    return tuple(float(t) for t in sde.inverse_log_snr(jnp.array(log_snrs)))


@pytest.mark.parametrize("sampler, sde, bounds", CASES, ids=describe)
def test_the_latent_is_that_of_the_exact_flow_and_decodes_to_the_data(sampler, sde, bounds, x64):
    target, (early, late) = gaussian(), times_at(sde, 5.0, -5.0)
    score, options = target.score(sde), dict(sampler=sampler, steps=60, grid=ss.grids.log_snr)
    x = target.marginal(sde, early).sample(KEY, 5)
    latent = ss.encode(sde, score, x, t_start=early, t_end=late, **options)
    compiled = loop._solve.cache_size()
    back = ss.sample(KEY, sde, score, x.shape, x_init=latent.x, t_start=late, t_end=early, **options)
    assert loop._solve.cache_size() == compiled  # the same program, the other way
    np.testing.assert_array_equal(latent.nfe, back.nfe)
    exact = target.flow_map(sde, x, early, late)
    errors = np.abs(latent.x - exact).max() / np.abs(exact).max(), np.abs(back.x - x).max()
    assert np.all(np.array(errors) < bounds), errors


@pytest.mark.parametrize(
    "sde", [ss.VP(), *(pytest.param(sde, marks=pytest.mark.slow) for sde in SDES[:5])], ids=describe
)
def test_an_adaptive_solve_meets_the_exact_flow_and_its_way_back_the_data(sde, x64):
    target, tolerances = gaussian(), dict(rtol=1e-7, atol=1e-7)
    x = target.marginal(sde, sde.t_sampling).sample(KEY, 5)
    latent = ss.encode_adaptive(sde, target.score(sde), x, **tolerances)  # from t_sampling to t_max
    exact = target.flow_map(sde, x, sde.t_sampling, sde.t_max)
    assert np.abs(latent.x - exact).max() < 30 * 1e-7 * np.abs(exact).max()  # the tolerance of each of some 50 steps
    back = ss.sample_adaptive(KEY, sde, target.score(sde), x.shape, x_init=latent.x, **tolerances)
    assert np.abs(back.x - x).max() < 60 * 1e-7  # twice over; measured at most 2e-7


def test_defaults_lead_from_t_sampling_to_t_max_and_a_latent_may_be_halfway(x64):
    sde, target = ss.VP(), gaussian()
    score, (middle,) = target.score(sde), times_at(sde, 0.0)
    x = target.marginal(sde, sde.t_sampling).sample(KEY, 5)
    # 50 steps of order 2: measured 0.0085 for the whole, of numbers near 2; 0.0008 and 0.006 for its halves
    whole = ss.encode(sde, score, x, sampler=ss.Heun()).x
    np.testing.assert_allclose(whole, target.flow_map(sde, x, sde.t_sampling, sde.t_max), atol=0.02)
    half = ss.encode(sde, score, x, sampler=ss.Heun(), t_end=middle).x
    np.testing.assert_allclose(half, target.flow_map(sde, x, sde.t_sampling, middle), atol=0.02)
    onward = ss.encode(sde, score, half, sampler=ss.Heun(), t_start=middle).x
    np.testing.assert_allclose(onward, whole, atol=0.02)


@pytest.mark.parametrize(
    "sampler",
    [
        ss.EulerMaruyama(),
        ss.DDIM(0.5),
        ss.SDEDPMSolverPP(),
        ss.EDMStochastic(),
        ss.Ancestral(),
        ss.PredictorCorrector(ss.Heun(), ss.AnnealedLangevin()),
    ],
    ids=describe,
)
def test_a_sampler_that_draws_noise_is_refused(sampler):
    with pytest.raises(ValueError, match=f"needs a deterministic sampler, got {type(sampler).__name__}, which draws"):
        ss.encode(ss.VP(), lambda x, t: -x, jnp.ones((2, 3)), sampler=sampler)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(t_start=0.5, t_end=0.5), "strictly falling"),
        (dict(t_start=0.5, t_end=0.1), "strictly falling"),
        (dict(t_end=2.0), r"must be in \[t_min, t_max\] = \[1e-05, 1\] of VP, got 2"),
        (dict(t_start=0.0), r"must be in \[t_min, t_max\] = \[1e-05, 1\] of VP, got 0"),
        (dict(steps=0), "steps must be at least 1"),
    ],
    ids=str,
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ss.encode(ss.VP(), lambda x, t: -x, jnp.ones((2, 3)), **options)


# --- great circles ---------------------------------------------------------------------------------------------------


def great_circle(a, b, w):
    """By an orthonormal frame: another formula than that of the package."""
    norms = np.linalg.norm(a), np.linalg.norm(b)
    u, v = a / norms[0], b / norms[1]
    angle = np.arccos(u @ v)
    side = v - (u @ v) * u
    side /= np.linalg.norm(side)
    return ((1 - w) * norms[0] + w * norms[1]) * (np.cos(w * angle) * u + np.sin(w * angle) * side)


def latents(seed=0, batch=3, event=(4, 5, 2)):
    return 2.0 * jax.random.normal(jax.random.key(seed), (batch, *event))


def test_interpolation_follows_the_great_circle_of_each_pair():
    a, b, weights = latents(0), 1.5 * latents(1), np.linspace(0, 1, 7).astype(np.float32)
    path = ss.interpolate(a, b, jnp.asarray(weights))
    assert path.shape == (7, *a.shape) and path.dtype == a.dtype
    flat = [np.asarray(v, np.float64).reshape(3, -1) for v in (a, b)]
    expected = [[great_circle(*pair, w) for pair in zip(*flat, strict=True)] for w in weights.astype(np.float64)]
    # float32; the norms, the angle and 40 numbers' sums are right to some 1e-7 each
    np.testing.assert_allclose(np.asarray(path).reshape(7, 3, -1), expected, rtol=2e-6, atol=5e-6)
    np.testing.assert_allclose(path[0], a, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(path[-1], b, rtol=2e-6, atol=1e-6)


def test_speed_is_constant_and_norms_go_over_evenly(x64):
    a, b, weights = latents(2), 3 * latents(3), jnp.linspace(0.0, 1.0, 11)
    path = np.asarray(ss.interpolate(a, b, weights)).reshape(11, 3, -1)
    norms = np.linalg.norm(path, axis=-1)
    np.testing.assert_allclose(
        np.diff(norms, axis=0), np.broadcast_to((norms[-1] - norms[0]) / 10, (10, 3)), rtol=1e-10
    )
    units = path / norms[..., None]
    angles = 2 * np.arcsin(0.5 * np.linalg.norm(np.diff(units, axis=0), axis=-1))
    np.testing.assert_allclose(angles, np.broadcast_to(angles.mean(0), angles.shape), rtol=1e-10)


@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-7, 1e-4])
def test_nearly_parallel_latents_are_joined_by_a_straight_line(distance):
    a = latents()
    b = a + distance * latents(1)
    weights = jnp.linspace(0.0, 1.0, 5)
    line = a[None] + weights[:, None, None, None, None] * (b - a)[None]
    np.testing.assert_allclose(ss.interpolate(a, b, weights), line, rtol=2e-6, atol=2e-6)  # rounding of float32


def test_opposite_latents_have_their_ends(x64):
    # Any great circle joins them, so what lies between is not determined, but it is on the sphere or finite.
    a = latents()
    path = ss.interpolate(a, -a, jnp.linspace(0.0, 1.0, 5))
    assert np.all(np.isfinite(path))
    np.testing.assert_allclose(path[0], a, rtol=1e-12)
    np.testing.assert_allclose(path[-1], -a, rtol=1e-12)
    off = -a + 1e-4 * latents(1)
    flat = [np.asarray(v).reshape(3, -1) for v in (a, off)]
    expected = [great_circle(*pair, 0.5) for pair in zip(*flat, strict=True)]
    path = ss.interpolate(a, off, jnp.array([0.5]))
    np.testing.assert_allclose(path.reshape(3, -1), expected, atol=1e-6)  # arccos near -1 keeps half of the digits
