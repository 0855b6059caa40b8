"""What a network predicts and the score: each kind into each, and the published parametrisations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde import trees
from score_sde.predictions import Network, PredictedScore, Prediction, convert
from tests.catalogue import PREDICTIONS, SDES, OrnsteinUhlenbeck, name, times_of

kinds = ss.predictions
N = 16
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
every_kind = pytest.mark.parametrize("kind", PREDICTIONS, ids=name)
RNG = np.random.default_rng(0)
X0, NOISE, OTHER = RNG.normal(size=(3, N, 2))  # data, noise, and an output that belongs to neither


def states(sde):
    """(x_0, eps, x_t, t), both ends of the range among the times."""
    x0, noise, t = jnp.asarray(X0), jnp.asarray(NOISE), jnp.asarray(times_of(sde, N))
    return x0, noise, sde.perturb(x0, noise, t), t


def rounding(sde, kind, t):
    """What float64 may lose in solving (x_t, F) = M (x_0, eps): 20 roundings, times the condition of M by rows."""
    (u, w), alpha, sigma = kind.coefficients(sde, t), sde.alpha(t), sde.sigma(t)
    rows = np.stack([np.stack([alpha, sigma], -1), np.stack([u, w], -1)], -2)
    rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return 20 * np.finfo(float).eps * np.linalg.cond(rows)[:, None]


@every_kind
@every_sde
def test_an_output_gives_back_its_data_and_noise(sde, kind, x64):
    x0, noise, x, t = states(sde)
    back = kind.data_and_noise(sde, kind.target(sde, x0, noise, t), x, t)
    for value, exact in zip(back, (x0, noise), strict=True):
        assert (np.abs(value - exact) <= rounding(sde, kind, t)).all()


@every_kind
@every_sde
def test_an_output_converts_into_every_kind_and_back(sde, kind, x64):
    """Also where it is nobody's target: the output of a network is any array."""
    _, _, x, t = states(sde)
    output = jnp.asarray(OTHER)
    data, noise = kind.data_and_noise(sde, output, x, t)
    u, w = (np.abs(c)[:, None] for c in kind.coefficients(sde, t))
    for to in PREDICTIONS:
        there = convert(sde, output, x, t, kind, to)
        error = (rounding(sde, kind, t) + rounding(sde, to, t)) * (1 + np.abs(data) + np.abs(noise))
        for value, exact in zip(to.data_and_noise(sde, there, x, t), (data, noise), strict=True):
            assert (np.abs(value - exact) <= error).all()
        assert (np.abs(convert(sde, there, x, t, to, kind) - output) <= error * (u + w)).all()


@every_kind
@every_sde
def test_the_score_of_every_kind_is_the_conditional_one(sde, kind, x64):
    x0, noise, x, t = states(sde)
    alpha, sigma = (f(t)[:, None] for f in (sde.alpha, sde.sigma))
    log_normal = jax.scipy.stats.norm.logpdf
    exact = jax.grad(lambda x: log_normal(x, alpha * x0, sigma).sum())(x)  # grad log N(x; alpha x_0, sigma^2)
    score = kind.score(sde, kind.target(sde, x0, noise, t), x, t)
    # In units of 1/sigma: the rounding of the noise, and of x_t - alpha x_0, which cancels where sigma is small.
    error = rounding(sde, kind, t) + 20 * np.finfo(float).eps * (1 + alpha / sigma)
    assert (np.abs(sigma * (score - exact)) <= error).all()


@every_kind
@every_sde
def test_score_gain_is_the_slope_of_the_score(sde, kind, x64):
    _, _, x, t = states(sde)
    output = jnp.asarray(OTHER)
    slope = jax.jvp(lambda f: kind.score(sde, f, x, t), (output,), (jnp.ones_like(output),))[1]
    gain = np.broadcast_to(kind.score_gain(sde, t)[:, None], slope.shape)
    np.testing.assert_allclose(np.abs(slope), gain, rtol=1e-12)  # 5e3 roundings


@every_kind
@every_sde
def test_float32_stays_float32(sde, kind, x64):
    x, t = jnp.ones((3, 2), jnp.float32), jnp.asarray(times_of(sde, 3), jnp.float32)

    def everything(sde, kind, x, t):
        of_time = [kind.score_gain(sde, t), kind.input_scale(sde, t), *kind.coefficients(sde, t)]
        return of_time + [kind.score(sde, x, x, t), kind.target(sde, x, x, t), *kind.data_and_noise(sde, x, x, t)]

    shapes = jax.eval_shape(everything, sde, kind, x, t)
    assert [(r.dtype, r.shape) for r in shapes] == [("float32", (3,))] * 4 + [("float32", (3, 2))] * 4


@every_sde
def test_velocity_is_the_probability_flow_of_the_conditional_law(sde, x64):
    x0, noise, x, t = states(sde)
    flow = sde.flow_drift(lambda x, t: -noise / sde.sigma(t)[:, None], x, t)  # the score given x_0
    velocity = kinds.Velocity().target(sde, x0, noise, t)
    size = np.abs(sde.drift(x, t)) + np.abs(flow - sde.drift(x, t))  # the two terms of the drift cancel
    assert (np.abs(velocity - flow) <= 1e-12 * size.max(1, keepdims=True)).all()  # 5e3 roundings


@every_sde
def test_velocity_is_the_derivative_of_the_path(sde, x64):
    x0, noise, _, t = states(sde)
    path = jax.jvp(lambda t: sde.perturb(x0, noise, t), (t,), (jnp.ones_like(t),))[1]
    np.testing.assert_allclose(kinds.Velocity().target(sde, x0, noise, t), path, rtol=1e-13, atol=1e-13)


def test_velocity_of_the_straight_path_is_noise_less_data(x64):
    x0, noise, _, t = states(ss.RectifiedFlow())
    np.testing.assert_array_equal(kinds.Velocity().target(ss.RectifiedFlow(), x0, noise, t), noise - x0)


# ---- EDM


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("sde", [ss.EDM(), ss.VE()], ids=name)
def test_edm_is_karras_preconditioning(sde, sigma_data, x64):
    """Table 1 of Karras et al. (2022), alpha = 1: D(x) = c_skip x + c_out F(c_in x) estimates x_0."""
    _, _, x, t = states(sde)
    sigma, f = np.asarray(sde.sigma(t))[:, None], OTHER
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / np.sqrt(sigma_data**2 + sigma**2)
    c_in = 1 / np.sqrt(sigma**2 + sigma_data**2)
    kind = kinds.EDM(sigma_data)
    denoised, _ = kind.data_and_noise(sde, jnp.asarray(f), x, t)
    np.testing.assert_allclose(denoised, c_skip * np.asarray(x) + c_out * f, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(kind.input_scale(sde, t), c_in[:, 0], rtol=1e-14)


@every_sde
def test_edm_targets_and_inputs_have_unit_variance(sde, x64):
    """For data of standard deviation sigma_data: the variances of F and of c_in x_t are sums of squares."""
    kind, t = kinds.EDM(0.7), jnp.asarray(times_of(sde, N))
    u, w = (np.asarray(c) for c in kind.coefficients(sde, t))
    np.testing.assert_allclose(0.7**2 * u**2 + w**2, 1, rtol=1e-14)
    variance = 0.7**2 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2
    np.testing.assert_allclose(kind.input_scale(sde, t) ** 2 * variance, 1, rtol=1e-14)
    np.testing.assert_allclose(0.7**2 * u * sde.alpha(t) + w * sde.sigma(t), 0, atol=1e-13 * float(sde.sigma(t).max()))


@pytest.mark.parametrize("sde", [ss.VP(), ss.CosineVP(), OrnsteinUhlenbeck()], ids=name)
def test_edm_with_unit_data_is_minus_the_v_of_salimans_and_ho(sde, x64):
    x0, noise, _, t = states(sde)
    alpha, sigma = (f(t)[:, None] for f in (sde.alpha, sde.sigma))
    v = alpha * noise - sigma * x0
    np.testing.assert_allclose(kinds.EDM(1.0).target(sde, x0, noise, t), -v, rtol=0, atol=1e-14)


def test_edm_refuses_data_without_spread():
    with pytest.raises(ValueError, match="predictions.EDM: sigma_data must be positive, got 0.0"):
        kinds.EDM(0.0)


# ---- networks


@every_kind
@every_sde
def test_a_network_sees_the_scaled_input_and_the_label(sde, kind, x64):
    _, _, x, t = states(sde)
    output, calls = jnp.asarray(OTHER), []
    network = Network(lambda *args: calls.append(args) or output, sde, kind)
    assert network(x, t) is output
    ((seen, label),) = calls
    np.testing.assert_array_equal(seen, kind.input_scale(sde, t)[:, None] * x)
    np.testing.assert_array_equal(label, sde.label(t))
    assert name(kind) == "EDM" or (seen == x).all()


@every_kind
def test_a_predicted_score_is_the_score_of_the_prediction(kind, x64):
    sde = ss.VP()
    x0, noise, x, t = states(sde)
    score = PredictedScore(lambda x, t: kind.target(sde, x0, noise, t), sde, kind)
    np.testing.assert_allclose(score(x, t), -noise / sde.sigma(t)[:, None], rtol=1e-9)  # alpha(1) = 0.007: 1e-14 / 1e-5


def test_new_parameters_do_not_compile_again():
    def apply(params, x, label):
        return params["w"] * x + params["b"]

    call = trees.jit(lambda score, x, t: score(x, t))
    x, t = jnp.ones((4, 2)), jnp.full(4, 0.5)
    for w in (1.0, 2.0):
        params = {"w": jnp.array(w), "b": jnp.array(0.5)}
        network = Network(jax.tree_util.Partial(apply, params), ss.VP(), kinds.Noise())
        expected = -(w + 0.5) / ss.VP().sigma(t)[:, None] * x
        np.testing.assert_allclose(call(PredictedScore(network, ss.VP(), kinds.Noise()), x, t), expected, rtol=1e-6)
    assert call.cache_size() == 1


def test_a_kind_of_ones_own_needs_its_coefficients_only(x64):
    class Sum(Prediction):
        """F = x_0 - eps."""

        def coefficients(self, sde, t):
            return jnp.ones_like(t), -jnp.ones_like(t)

    x0, noise, x, t = states(ss.VP())
    np.testing.assert_allclose(Sum().data_and_noise(ss.VP(), x0 - noise, x, t)[1], noise, rtol=1e-12, atol=1e-12)


def test_missing_coefficients_are_named():
    class Empty(Prediction):
        pass

    with pytest.raises(TypeError, match=r"Empty must define coefficients\(sde, t\)"):
        Empty().coefficients(ss.VP(), jnp.ones(1))
