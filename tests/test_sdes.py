"""Every SDE against the mathematics that all affine SDEs share, its closed forms, and its published constants.

Every test of a property runs over the catalogue: whatever the package exports and a process of two methods.
"""

import inspect
import math
from functools import partial
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde import sdes, trees
from score_sde.sdes import AffineSDE, check_time, evaluate
from tests.catalogue import SDES, OrnsteinUhlenbeck, instances, name, times_of

KEY = jax.random.key(0)
OF_TIME = ["alpha", "sigma", "log_alpha", "drift_factor", "diffusion", "log_snr", "label"]
DERIVED = ["log_alpha", "drift_factor", "diffusion", "log_snr", "inverse_log_snr"]
OVERRIDES = [
    pytest.param(sde, method, id=f"{name(sde)}-{method}")
    for sde in [*SDES, ss.VP(3.0, 3.0), ss.CosineVP(s=0.1), ss.VE(0.3, 2.0), ss.EDM(0.1, 5.0)]
    for method in DERIVED
    if getattr(type(sde), method) is not getattr(AffineSDE, method)
]
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)


def close(value, expected, rtol=1e-12):  # 5e3 roundings of float64; measured where it is the default: at most 100
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e-300)


def slope(f, t):
    """f'(t) for f that acts on each time alone."""
    return jax.vmap(jax.grad(f))(t)


def test_the_catalogue_holds_every_sde_of_the_module():
    assert {name(sde) for sde in SDES} == {name(sde) for sde in instances(sdes, AffineSDE)} | {"OrnsteinUhlenbeck"}


# ---- what the closed forms must agree with


@pytest.mark.parametrize("sde, method", OVERRIDES)
def test_closed_forms_are_the_derived_ones(sde, method, x64):
    t = jnp.asarray(times_of(sde))
    argument = sde.log_snr(t) if method == "inverse_log_snr" else t
    closed, derived = getattr(sde, method)(argument), getattr(AffineSDE, method)(sde, argument)
    # The derived log alpha carries the rounding of alpha = 1 - 5e-7 at t = 1e-5, 2e-10 relative; VE's derived inverse
    # one of bisection on [0, 1], 1e-11 at t = 1e-5; all others agree to 1e-14.
    close(closed, derived, rtol=1e-9 if method in ("log_alpha", "inverse_log_snr") else 1e-12)


@every_sde
def test_moments_follow_the_forward_equation(sde, x64):
    t = jnp.asarray(times_of(sde))
    a, g_squared = sde.drift_factor(t), sde.diffusion(t) ** 2
    alpha, variance = sde.alpha(t), sde.sigma(t) ** 2
    close(slope(sde.alpha, t), a * alpha)  # dm/dt = a m
    growth = slope(lambda t: sde.sigma(t) ** 2, t)  # dv/dt = 2 a v + g^2
    scale = np.abs(2 * a * variance) + g_squared  # the two terms cancel where the variance is stationary
    np.testing.assert_allclose((growth - 2 * a * variance - g_squared) / scale, 0, rtol=0, atol=1e-12)


@every_sde
def test_forward_flow_and_reverse_processes_have_the_same_marginals(sde, x64):
    """d/dt log p + div v + v.s + c g^2 (div s + |s|^2) = 0 at every point: Fokker-Planck, divided by p.

    c is -1/2 for the forward SDE, 0 for the probability flow, and 1/2 for the reverse SDE (noise run backwards).
    """
    target = ss.Gaussian([1.0, -0.5], [[0.5, 0.3], [0.3, 0.8]])

    def log_p(x, t):
        return target.marginal(sde, t).log_prob_at(x)

    def score(x, t):
        return jax.vmap(jax.grad(log_p))(x, t)

    def terms(c, drift, x, t):
        s, ds_dx = jax.grad(log_p)(x, t), jax.hessian(log_p)(x, t)
        v, dv_dx = drift(x[None], t[None])[0], jax.jacfwd(lambda x: drift(x[None], t[None])[0])(x)
        noise = c * sde.diffusion(t) ** 2 * (jnp.trace(ds_dx) + s @ s)
        return jnp.stack([jax.grad(log_p, 1)(x, t), jnp.trace(dv_dx), v @ s, noise])

    @jax.jit
    def all_terms(x, t):
        drifts = [(-0.5, sde.drift), (0.0, partial(sde.flow_drift, score)), (0.5, partial(sde.reverse_drift, score))]
        return jnp.stack([jax.vmap(partial(terms, c, drift))(x, t) for c, drift in drifts])

    t = jnp.asarray(times_of(sde, 7))
    x = sde.perturb(target.sample(KEY, 7), jax.random.normal(KEY, (7, 2)), t)
    parts = all_terms(x, t)
    # float64; v itself cancels near the prior, where the marginals are nearly at rest. Measured: 4e-11.
    assert (np.abs(parts.sum(-1)) <= 1e-9 * np.abs(parts).sum(-1)).all()


@every_sde
def test_log_snr_falls_strictly(sde, x64):
    log_snr = sde.log_snr(jnp.asarray(times_of(sde, 500)))
    assert np.isfinite(log_snr).all() and (np.diff(log_snr) < 0).all()


@every_sde
def test_log_snr_is_that_of_alpha_and_sigma(sde, x64):
    t = jnp.asarray(times_of(sde))
    close(jnp.exp(sde.log_snr(t)), (sde.alpha(t) / sde.sigma(t)) ** 2)


# Measured: 1.6 roundings in float32, and 21 in float64, whose exp and log XLA computes less closely.
@pytest.mark.parametrize("dtype, roundings", [("float32", 4), ("float64", 32)])
@pytest.mark.parametrize("sde", [*SDES, ss.VP(3.0, 3.0), ss.SubVP(0.5, 0.5)], ids=name)
def test_inverse_log_snr_gives_the_time_back(sde, dtype, roundings, x64):
    t = jnp.asarray(times_of(sde), dtype)
    log_snr = sde.log_snr(t)
    back = sde.inverse_log_snr(log_snr)
    # A rounding of the log-SNR moves the time by eps |log-SNR / slope|, one of the time by eps t.
    rounding = np.finfo(dtype).eps * (np.abs(log_snr / slope(sde.log_snr, t)) + t)
    assert back.dtype == dtype
    assert (np.abs(back - t) <= roundings * rounding).all()


@pytest.mark.parametrize("method", ["alpha", "sigma", "drift_factor", "diffusion", "log_snr"])
@every_sde
def test_float32_is_right_to_1e_4_at_the_ends(sde, method, x64):
    """The contract of the design: relative 1e-4 at t = 1e-5 and at the ends of the range."""
    t = np.array([1e-5, float(sde.t_min), float(sde.t_max)], np.float32)
    single, double = (np.asarray(getattr(sde, method)(jnp.asarray(t, dtype))) for dtype in ("float32", "float64"))
    assert single.dtype == np.float32 and np.isfinite(double).all()
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_sde
def test_the_dtype_is_that_of_the_argument(sde, dtype, x64):
    x, t = jnp.ones((3, 2), dtype), jnp.asarray(times_of(sde, 3), dtype)

    def everything(sde, x, t):
        of_time = [getattr(sde, method)(t) for method in OF_TIME] + [sde.inverse_log_snr(sde.log_snr(t))]
        drifts = [sde.drift(x, t), sde.flow_drift(lambda x, t: -x, x, t), sde.reverse_drift(lambda x, t: -x, x, t)]
        prior = [sde.prior_log_prob(x), sde.prior_std(x.dtype), sde.prior_sample(KEY, (3, 2), x.dtype)]
        return of_time + drifts + [sde.perturb(x, x, t)] + prior

    results = jax.eval_shape(everything, sde, x, t)  # what a caller's jit would see, the SDE's numbers traced
    assert [r.dtype for r in results] == [dtype] * len(results)
    assert [r.shape for r in results] == [(3,)] * 8 + [(3, 2)] * 4 + [(3,), (), (3, 2)]


@pytest.mark.parametrize("shape", [(), (2, 3)])
@every_sde
def test_times_of_any_shape_are_mapped(sde, shape):
    for method in [*OF_TIME, "inverse_log_snr"]:
        assert jax.eval_shape(getattr(sde, method), jnp.full(shape, 0.5)).shape == shape


# ---- published constants (float64 by hand, math and quadrature)


def test_ve_runs_from_sigma_min_to_sigma_max_geometrically(x64):
    close(ss.VE().sigma(jnp.array([0.0, 0.5, 1.0])), [0.01, math.sqrt(0.01 * 50), 50])
    assert (ss.VE().alpha(jnp.linspace(0, 1, 5)) == 1).all()


def test_vp_is_the_limit_of_ddpm(x64):
    n = 100_000
    betas = np.linspace(0.1, 20, n) / n  # DDPM's betas of 1e-4..0.02 for 1000 steps, rescaled to n
    log_alpha_bar = np.log1p(-betas).sum()
    # log(1 - b) = -b - b^2/2 - ..., so the chain differs from the limit by the sum of b^2/2 to leading order.
    excess = (betas**2).sum() / 2
    difference = 2 * float(ss.VP().log_alpha(jnp.array(1.0))) - log_alpha_bar
    assert abs(difference - excess) < 0.01 * excess
    close(ss.VP().alpha(jnp.array(1.0)), math.exp(-5.025))


def test_vp_preserves_variance_and_sub_vp_squares_the_noise(x64):
    t = jnp.linspace(0.0, 1.0, 11)
    vp, sub = ss.VP(), ss.SubVP()
    close(vp.alpha(t) ** 2 + vp.sigma(t) ** 2, np.ones(11))
    close(sub.sigma(t), vp.sigma(t) ** 2)
    assert (sub.alpha(t) == vp.alpha(t)).all()
    assert issubclass(ss.SubVP, ss.VP) and (sub.diffusion(t) <= vp.diffusion(t)).all()


@pytest.mark.parametrize("s", [0.008, 0.05])
def test_cosine_is_the_published_schedule(s, x64):
    t = np.linspace(0.01, 0.99, 13)

    def f(t):  # Nichol & Dhariwal, eq. 17; alpha_bar = f(t)/f(0) is our alpha^2
        return np.cos((t + s) / (1 + s) * np.pi / 2) ** 2

    sde = ss.CosineVP(s)
    close(sde.alpha(jnp.asarray(t)) ** 2, f(t) / f(0), rtol=1e-11)  # f(0.99) = 2e-4 has lost 4 digits
    close(sde.sigma(jnp.asarray(t)) ** 2, 1 - f(t) / f(0), rtol=1e-11)
    close(sde.log_snr(jnp.asarray(float(sde.t_min))), 14.0, rtol=1e-9)
    close(sde.log_snr(jnp.asarray(float(sde.t_max))), -12.0, rtol=1e-9)


def test_edm_and_rectified_flow(x64):
    t = jnp.array([0.002, 0.3, 0.9])
    edm, straight = ss.EDM(), ss.RectifiedFlow()
    close(edm.diffusion(t) ** 2, 2 * t)
    assert (edm.t_min, edm.t_max, edm.T, edm.t_sampling) == (0.002, 80.0, 80.0, 0.002)
    assert (edm.sigma(t) == t).all()
    x0, noise = jnp.full((3, 1), 2.0), jnp.full((3, 1), -1.0)
    close(straight.perturb(x0, noise, t), x0 + t[:, None] * (noise - x0))


@pytest.mark.parametrize("sde", [ss.VE(), ss.VP(), ss.SubVP(), ss.CosineVP()], ids=name)
def test_published_sdes_live_on_the_unit_interval(sde):
    assert sde.T == 1
    assert float(sde.t_sampling) == (1e-5 if isinstance(sde, ss.VE) else 1e-3)


def test_labels_are_the_published_ones(x64):
    t = jnp.array([0.002, 0.25, 0.9])
    for sde in (ss.VP(), ss.SubVP(), ss.CosineVP()):
        close(sde.label(t), 999 * t)
    close(OrnsteinUhlenbeck().label(jnp.array([5.0])), [999.0])
    close(jnp.exp(ss.VE().label(t)), ss.VE().sigma(t))
    close(jnp.exp(4 * ss.EDM().label(t)), t)


# ---- prior


@every_sde
def test_prior_density_is_the_normal_one(sde, x64):
    std = float(sde.sigma(jnp.asarray(float(sde.t_max))))
    z = np.random.default_rng(0).normal(0, std, (4, 3, 2))
    exact = [sum(math.log(NormalDist(0, std).pdf(v)) for v in event.ravel()) for event in z]
    close(sde.prior_log_prob(jnp.asarray(z)), exact)


@every_sde
def test_prior_samples_have_the_std_of_the_prior(sde):
    n = 20_000
    z = np.asarray(sde.prior_sample(KEY, (n // 2, 2)), np.float64) / float(sde.sigma(jnp.float32(sde.t_max)))
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / n)


def test_prior_sample_i_depends_on_key_i_alone():
    all_of_them = ss.VP().prior_sample(KEY, (64, 3))
    keys = jnp.stack([jax.random.fold_in(KEY, i) for i in (0, 41)])
    np.testing.assert_allclose(
        ss.VP().prior_sample(keys, (2, 3)), all_of_them[jnp.array([0, 41])], rtol=1e-6
    )  # float32


# ---- numbers are traced


def test_numbers_can_be_mapped():
    t, betas = jnp.linspace(0.1, 1.0, 4), jnp.array([5.0, 10.0, 20.0])
    mapped = jax.vmap(lambda beta_max: ss.VP(0.1, beta_max).diffusion(t))(betas)
    many = jax.tree.map(lambda *numbers: jnp.stack(numbers), *(ss.VP(0.1, beta_max) for beta_max in betas))
    stacked = jax.vmap(lambda sde: sde.diffusion(t))(many)
    for row, also, beta_max in zip(mapped, stacked, (5, 10, 20), strict=True):
        np.testing.assert_allclose(row, ss.VP(0.1, beta_max).diffusion(t), rtol=1e-6)  # float32, another order
        np.testing.assert_allclose(also, row, rtol=1e-6)


def test_numbers_can_be_differentiated(x64):
    t = jnp.array(0.3)
    gradient = jax.grad(lambda sigma_max: ss.VE(0.01, sigma_max).sigma(t))(50.0)
    close(gradient, 0.3 * 0.01 * 5000**0.3 / 50)  # sigma = sigma_min r^t, d sigma / d sigma_max = t sigma / sigma_max
    of_the_sde = jax.grad(lambda sde: sde.sigma(t))(ss.VE())
    close(of_the_sde.sigma_max, gradient)


@every_sde
def test_other_numbers_do_not_compile_again(sde):
    compiled = trees.jit(lambda sde, t: (sde.alpha(t), sde.diffusion(t), sde.inverse_log_snr(sde.log_snr(t))))
    other = jax.tree.map(lambda number: number * 1.0005, sde)  # keeps t_max of RectifiedFlow below 1
    first, second = (compiled(s, jnp.array([0.4])) for s in (sde, other))
    assert compiled.cache_size() == 1
    assert first[1] != second[1] or name(sde) in ("EDM", "RectifiedFlow")  # whose numbers are ends of the range only


# ---- errors


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ss.VE(sigma_min=-0.01), "VE: sigma_min must be positive, got -0.01"),
        (lambda: ss.VE(sigma_min=0), "VE: sigma_min must be positive"),
        (lambda: ss.VE(1.0, 1.0), "VE: sigma_min must be below sigma_max, got 1.0 and 1.0"),
        (lambda: ss.VE(sigma_max=math.nan), "VE: sigma_min must be below sigma_max"),
        (lambda: ss.VP(beta_min=0.0), "VP: beta_min must be positive"),
        (lambda: ss.VP(20.0, 0.1), "VP: beta_max must be at least beta_min, got 0.1 and 20.0"),
        (lambda: ss.SubVP(20.0, 0.1), "SubVP: beta_max must be at least"),
        (lambda: ss.CosineVP(s=0.0), "CosineVP: s must be positive"),
        (lambda: ss.CosineVP(log_snr_min=1.0, log_snr_max=1.0), "log_snr_min must be below log_snr_max"),
        (lambda: ss.EDM(sigma_min=-1.0), "EDM: sigma_min must be positive"),
        (lambda: ss.EDM(2.0, 1.0), "EDM: sigma_min must be below sigma_max"),
        (lambda: ss.RectifiedFlow(t_min=0.0), "RectifiedFlow: t_min must be positive"),
        (lambda: ss.RectifiedFlow(0.6, 0.5), "t_min must be below t_max"),
        (lambda: ss.RectifiedFlow(t_max=1.0), "t_max must be below 1, where alpha vanishes, got 1.0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every_sde
def test_times_outside_the_range_are_refused(sde):
    low, high = float(sde.t_min), float(sde.t_max)
    for t in (low, high, math.sqrt(low * high), np.float32(low), jnp.float32(high)):
        check_time(sde, "t_end", t)
    for t in (0.0, -low, 0.99 * low, 1.01 * high, math.nan):
        with pytest.raises(ValueError, match=rf"t_end must be in \[t_min, t_max\] = \[.*\] of {name(sde)}, got"):
            check_time(sde, "t_end", t)


@pytest.mark.parametrize(
    "score, got",
    [
        (lambda x, t: x[:, :1], r"got shape \(4, 1\)"),
        (lambda x, t: t, r"got shape \(4,\)"),
        (lambda x, t: 0.0, r"got shape \(\)"),
        (lambda x, t: x.astype(jnp.bfloat16), "dtype bfloat16"),
    ],
)
def test_a_score_of_another_form_is_refused(score, got):
    x, t = jnp.ones((4, 2)), jnp.full(4, 0.5)
    for call in (lambda: evaluate(score, x, t), lambda: ss.VP().flow_drift(score, x, t)):
        with pytest.raises(TypeError, match=r"expected score\(x, t\) of shape \(4, 2\) and dtype float32.*" + got):
            call()


# ---- a process of one's own


def test_two_methods_make_an_sde():
    own = {method for method, _ in inspect.getmembers(OrnsteinUhlenbeck, inspect.isfunction)} & set(
        vars(OrnsteinUhlenbeck)
    )
    assert {m for m in own if not m.startswith("_")} == {"alpha", "sigma"}


def test_a_process_with_constant_rate_has_constant_coefficients(x64):
    sde = OrnsteinUhlenbeck(0.7)
    t = jnp.asarray(times_of(sde))
    close(sde.drift_factor(t), np.full(25, -0.7))
    close(sde.diffusion(t), np.full(25, math.sqrt(2 * 0.7)), rtol=1e-10)  # sigma' - a sigma cancels by 1e5 at t_min
    assert (sde.t_min, sde.t_max, sde.t_sampling) == (5e-5, 5.0, 5e-5)


@pytest.mark.parametrize("method", ["alpha", "sigma"])
def test_a_method_left_out_is_named(method):
    class Empty(AffineSDE):
        pass

    with pytest.raises(TypeError, match=rf"Empty must define {method}\(t\)"):
        getattr(Empty(), method)(jnp.array(0.5))
