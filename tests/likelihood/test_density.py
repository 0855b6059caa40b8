"""Densities by the probability flow against closed forms.

Both end terms are exact where a solve is measured: it starts in the marginal at t_min and ends in the one at t_max, so
that what is left is the error of the solve alone.

Mutations that were planted and turned a test here red: the integral's sign, the direction of time, g^2 without its
half, a sum over probes that is not divided by their number, probes that are drawn anew at each time, the mean over the
batch in place of the largest norm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import score_sde as ss
from score_sde.likelihood import density
from tests.catalogue import SDES, name
from tests.scores import WAYS, ExactScore

KEY = jax.random.key(0)
EXACT = ss.ExactDivergence()


def log_prob_of(target):
    """The target's density as a function whose numbers are traced."""
    return jax.tree_util.Partial(type(target).log_prob, target)


def bits_apart(a, b, size):
    """Differences of log-densities in bits per dimension."""
    return np.abs(np.asarray(a) - np.asarray(b)) / (size * np.log(2))


# --- 64 dimensions, exact divergence, default tolerance --------------------------------------------------------------


def mixture_of_six():
    """Six components in 64 dimensions: means of spread 0.7 in each, standard deviations from 0.05 to 0.4."""
    return ss.GaussianMixture(0.7 * jax.random.normal(KEY, (6, 64)), jnp.linspace(0.05, 0.4, 6))


def solve_is_exact_enough(sde, score, samples):
    target = mixture_of_six()
    start, end = (target.marginal(sde, t) for t in (sde.t_min, sde.t_max))
    x = start.sample(jax.random.key(1), samples)
    lp = ss.log_prob(None, sde, score, x, divergence=EXACT, terminal_log_prob=log_prob_of(end))
    errors = bits_apart(lp.nats, start.log_prob(x), 64)
    assert lp.converged.all()
    # Measured over SDEs and prediction kinds: mean at most 7.5e-5, largest 7.6e-4 (CosineVP), mean NFE 87 to 118.
    assert errors.mean() < 1e-4 and errors.max() < 1.5e-3
    assert lp.nfe.mean() < 130


def published_first(sdes):
    """VE, VP and sub-VP, and the others as slow tests."""
    published = (ss.VE, ss.VP)  # sub-VP is a VP
    return [s if isinstance(s, published) else pytest.param(s, marks=pytest.mark.slow) for s in sdes]


@pytest.mark.parametrize("sde", published_first(SDES), ids=name)
def test_density_of_a_mixture_is_met_to_1e_4_bits_per_dim(sde):
    solve_is_exact_enough(sde, mixture_of_six().score(sde), samples=256)


@pytest.mark.slow
@pytest.mark.parametrize("i, sde", list(enumerate(SDES)), ids=[name(sde) for sde in SDES])
@pytest.mark.parametrize("more", [0, 2])
def test_density_is_as_exact_through_a_network_of_any_kind(i, sde, more):
    """Two kinds on each SDE; over the SDEs every kind has its turn."""
    way = WAYS[1 + (i + more) % len(WAYS[1:])]
    solve_is_exact_enough(sde, ExactScore(mixture_of_six(), sde, jnp.array(WAYS.index(way))), samples=64)


# --- a rotated Gaussian: every number of the solve in closed form ----------------------------------------------------


class Rotated:
    """256 samples of a rotated Gaussian on (2, 3), solved with 8 probes each.

    The Jacobian of its flow is the same at all x, and symmetric with fixed axes, so its integral along a path is a
    matrix M = log(C_T C_0^-1)/2, and a probe v must give v'Mv.
    """

    sde, probes = ss.SubVP(), 8

    def __init__(self):
        rng = np.random.default_rng(0)
        factor = rng.normal(size=(6, 6))
        self.covariance = factor @ factor.T / 6 + 0.1 * np.eye(6)
        self.mean = rng.normal(size=(2, 3))
        self.target = ss.Gaussian(jnp.float32(self.mean), jnp.float32(self.covariance))
        self.x = self.target.sample(jax.random.key(1), 256)
        self.keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(256))
        self.solved = self.solve()

    def solve(self, key=KEY, sde=None, x=None, t_start=1e-5, terminal=True, tolerance=3e-5):
        sde, x = sde or self.sde, self.x if x is None else x
        end = log_prob_of(self.target.marginal(sde, sde.t_max)) if terminal else None
        return ss.log_prob(
            key, sde, self.target.score(sde), x, divergence=ss.Hutchinson(self.probes), t_start=t_start,
            terminal_log_prob=end, rtol=tolerance, atol=tolerance,
        )  # fmt: skip

    def jacobian_integral(self, t_start=1e-5):
        """M, in float64."""
        stretches = []
        for t in (t_start, 1.0):
            alpha = np.exp(-0.25 * t**2 * 19.9 - 0.05 * t)  # Song et al. 2021, eq. 33, with betas of 0.1 and 20
            stretches.append(alpha**2 * self.covariance + (1 - alpha**2) ** 2 * np.eye(6))
        values, axes = np.linalg.eigh(self.covariance)
        logs = [np.log(np.einsum("ij,ik,kj->j", axes, c, axes)) for c in stretches]
        return axes @ np.diag(0.5 * (logs[1] - logs[0])) @ axes.T

    def probe_values(self, t_start=1e-5):
        """v'Mv of each sample's probes, (256, 8)."""
        divergence = ss.Hutchinson(self.probes)
        v = np.asarray(jax.vmap(divergence.draw)(self.keys, self.x), np.float64).reshape(256, self.probes, 6)
        return np.einsum("bki,ij,bkj->bk", v, self.jacobian_integral(t_start), v)


@pytest.fixture(scope="module")
def rotated():
    return Rotated()


# 3e-5 a step in the density of some 15 steps, and float32 sums of 20 nats; measured: 3e-4 at most.
SOLVE_ERROR = 1e-3


def test_latent_is_where_the_exact_flow_map_carries_x(rotated):
    exact = rotated.target.flow_map(rotated.sde, rotated.x, 1e-5, 1.0)
    np.testing.assert_allclose(rotated.solved.latent, exact, atol=SOLVE_ERROR)


def test_each_probe_is_kept_for_the_whole_solve_and_integrated_exactly(rotated):
    end = rotated.target.marginal(rotated.sde, 1.0)
    expected = end.log_prob(rotated.solved.latent) + rotated.probe_values().mean(1)
    np.testing.assert_allclose(rotated.solved.nats, expected, atol=SOLVE_ERROR)


def test_density_by_random_probes_is_unbiased_with_a_calibrated_error(rotated):
    exact = rotated.target.marginal(rotated.sde, 1e-5).log_prob(rotated.x)
    errors = np.asarray(rotated.solved.nats - exact, np.float64)
    m = rotated.jacobian_integral()
    variance = 2 * (np.sum(m**2) - np.sum(np.diag(m) ** 2)) / rotated.probes  # of v'Mv for signs, over 8 probes
    assert variance > 0.05  # the solve's own error is nothing beside it
    assert abs(errors.mean()) < 4 * np.sqrt(variance / 256)
    for squared in (errors**2, np.asarray(rotated.solved.standard_error, np.float64) ** 2):
        assert abs(squared.mean() - variance) < 4 * squared.std() / np.sqrt(256)


def test_other_numbers_do_not_compile_again_and_t_start_sets_whose_density_it_is(rotated):
    compiled = density._log_prob.cache_size()
    later = rotated.solve(t_start=0.3)
    end = rotated.target.marginal(rotated.sde, 1.0)
    expected = end.log_prob(later.latent) + rotated.probe_values(t_start=0.3).mean(1)
    np.testing.assert_allclose(later.nats, expected, atol=SOLVE_ERROR)
    for other in (
        rotated.solve(key=jax.random.key(7)),
        rotated.solve(sde=ss.SubVP(0.2, 15.0)),
        rotated.solve(x=rotated.x + 1),
        rotated.solve(tolerance=1e-3),
    ):
        assert np.mean(other.nats != rotated.solved.nats) > 0.9
    assert density._log_prob.cache_size() == compiled


@pytest.mark.slow
def test_values_are_the_same_spread_over_devices(rotated):
    spread = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    solved = rotated.solve(key=jax.device_put(rotated.keys, spread), x=jax.device_put(rotated.x, spread))
    assert len(solved.nats.sharding.device_set) == jax.device_count()
    # In float32, rounding differs with the layout and moves some step sizes (none in float64): measured 7e-5.
    np.testing.assert_allclose(solved.nats, rotated.solved.nats, atol=SOLVE_ERROR)


# --- per-sample solves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, part",
    [(jnp.float32, slice(8, 16)), pytest.param(jnp.float64, slice(63, 64), marks=pytest.mark.slow)],
    ids=["float32, batch of 8", "float64, batch of 1"],
)
def test_the_value_of_a_sample_does_not_depend_on_its_batch(dtype, part, x64):
    sde, rng = ss.VP(), np.random.default_rng(0)
    means, stds = rng.normal(size=(4, 16)), np.array([0.05, 0.1, 0.2, 0.4])
    x = jnp.asarray(np.repeat(means, 16, axis=0) + np.repeat(stds, 16)[:, None] * rng.normal(size=(64, 16)), dtype)
    target = ss.GaussianMixture(jnp.asarray(means, dtype), jnp.asarray(stds, dtype))
    keys = jax.random.split(KEY, 64)
    whole, alone = (ss.log_prob(keys[p], sde, target.score(sde), x[p]) for p in (slice(64), part))
    apart = bits_apart(alone.nats, whole.nats[part], 16)
    if dtype == jnp.float64:
        assert apart.max() < 1e-6  # measured: 1e-14
    else:  # rounding differs with the batch and can flip the fate of a step, which the tolerance then bounds
        assert apart.max() < 1e-3 and apart.mean() < 1e-4


def treacherous(x, t):
    """-x/2; but where x > 100, a field that needs very small steps, and where x < -100, no number from t = 0.5 on."""
    x0 = x[:, :1]
    lost = (x0 < -100) & (t[:, None] > 0.5)
    return -0.5 * x + jnp.where(x0 > 100, 100 * jnp.sin(10 * x), 0.0) + jnp.where(lost, jnp.nan, 0.0)


def test_a_solve_that_fails_is_nan_and_leaves_the_others_alone():
    sde, x = ss.VP(), jnp.array([[1e4, 0.0], [0.3, -0.5], [-1e4, 0.0], [1.5, 3.0]])
    lp = ss.log_prob(None, sde, treacherous, x, divergence=EXACT, max_steps=40)
    assert lp.converged.tolist() == [False, True, False, True]
    assert np.isnan(lp.nats).tolist() == [True, False, True, False]
    # With the score -x/2 the flow is dx/dt = x (log alpha)'/2, which shrinks all by sqrt(alpha(1)) and ends in the
    # prior: a normal of variance 1 - alpha(1)^2 = 1 - 4e-5.
    alpha = np.exp(-0.25 * 19.9 - 0.05)
    z = np.sqrt(alpha) * np.asarray(x)[[1, 3]]
    expected = -0.5 * np.square(z).sum(1) / (1 - alpha**2) - np.log(2 * np.pi * (1 - alpha**2)) + np.log(alpha)
    np.testing.assert_allclose(lp.nats[jnp.array([1, 3])], expected, atol=SOLVE_ERROR)
    np.testing.assert_allclose(lp.latent[jnp.array([1, 3])], z, atol=SOLVE_ERROR)
    assert lp.standard_error.tolist() == [0] * 4


def test_nfe_is_the_number_of_evaluations_and_the_error_of_a_single_probe_cannot_be_known():
    calls = []

    def score(x, t):
        jax.debug.callback(lambda _: calls.append(None), t[0])
        return -0.5 * x

    lp = jax.jit(lambda key, x: ss.log_prob(key, ss.VP(), score, x))(KEY, jnp.ones((1, 3)))
    jax.effects_barrier()
    assert lp.nfe.tolist() == [len(calls)]
    assert np.isnan(lp.standard_error).all() and np.isfinite(lp.nats).all()


@pytest.mark.slow
def test_one_clock_for_the_batch_keeps_every_sample_s_error():
    sde, target = ss.VP(), mixture_of_six()
    start, end = (target.marginal(sde, t) for t in (sde.t_min, sde.t_max))
    x = start.sample(jax.random.key(1), 64)
    lp = ss.log_prob(
        None, sde, target.score(sde), x, divergence=EXACT, terminal_log_prob=log_prob_of(end), whole_batch=True
    )
    errors = bits_apart(lp.nats, start.log_prob(x), 64)
    # The largest error of any sample sets the steps: measured mean 1.1e-5, largest 3e-5, NFE 151 for all.
    assert errors.mean() < 1e-4 and errors.max() < 3e-4
    assert len(set(lp.nfe.tolist())) == 1 and lp.converged.all()


@pytest.mark.slow
def test_the_gradient_is_the_score_and_flows_to_the_weights(x64):
    sde = ss.VP()
    means, stds = jnp.array([[1.0, -0.5], [-0.8, 0.6]]), jnp.array([0.35, 0.5])
    x = jnp.array([[0.3, 0.1], [-0.5, 0.9], [1.2, -0.7]])
    options = dict(divergence=EXACT, rtol=1e-8, atol=1e-8, t_start=0.05)

    def total(x, shift):
        target = ss.GaussianMixture(means + shift, stds)
        end = log_prob_of(target.marginal(sde, sde.t_max))
        return ss.log_prob(None, sde, target.score(sde), x, terminal_log_prob=end, **options).nats.sum()

    by_x, by_weights = jax.grad(total, argnums=(0, 1))(x, jnp.float64(0.1))
    exact = ss.GaussianMixture(means + 0.1, stds).score(sde)(x, jnp.full(3, 0.05))
    np.testing.assert_allclose(by_x, exact, atol=1e-6)  # some 100 times the tolerance
    step = 1e-4
    difference = (total(x, 0.1 + step) - total(x, 0.1 - step)) / (2 * step)
    np.testing.assert_allclose(by_weights, difference, rtol=1e-4)  # 1e-8/step of error in the difference


@pytest.mark.slow
def test_memory_of_the_gradient_does_not_grow_with_the_evaluations():
    sde, target = ss.VP(), ss.Gaussian(jnp.zeros(500), 0.5)
    temporary = []
    for tolerance in (1e-2, 1e-6):

        def total(x, tolerance=tolerance):
            return ss.log_prob(KEY, sde, target.score(sde), x, rtol=tolerance, atol=tolerance, max_steps=256).nats.sum()

        compiled = jax.jit(jax.grad(total)).lower(jnp.ones((2, 500))).compile()
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    assert temporary[0] == temporary[1] < 2 * 500 * 4 * 400  # sqrt(2 * 256) = 23 states of 7 stages and the work space


@pytest.mark.slow
def test_coverage_of_the_95_percent_interval_over_probes():
    """Student's t with K - 1 degrees of freedom, over 1,000 images; the solver's error is far below the spread."""
    sde, k, n = ss.SubVP(), 6, 1000
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(12, 12))
    target = ss.Gaussian(jnp.zeros(12), jnp.float32(factor @ factor.T / 12 + 0.1 * np.eye(12)))
    x = target.marginal(sde, sde.t_min).sample(jax.random.key(1), n)
    end = log_prob_of(target.marginal(sde, sde.t_max))
    lp = ss.log_prob(KEY, sde, target.score(sde), x, divergence=ss.Hutchinson(k), terminal_log_prob=end)
    errors = np.abs(np.asarray(lp.nats - target.marginal(sde, sde.t_min).log_prob(x)))
    covered = (errors < 2.570582 * np.asarray(lp.standard_error)).mean()  # the 97.5 % point of t with 5 degrees
    assert 0.93 < covered < 0.97, covered
    assert np.median(lp.standard_error) > 20 * SOLVE_ERROR


@pytest.mark.slow
def test_a_mixture_in_3072_dimensions():
    sde = ss.VP()
    target = ss.GaussianMixture(0.5 * jax.random.normal(KEY, (4, 3072)), jnp.array([0.1, 0.2, 0.3, 0.4]))
    start, end = (target.marginal(sde, t) for t in (sde.t_min, sde.t_max))
    x = start.sample(jax.random.key(1), 2)
    lp = ss.log_prob(None, sde, target.score(sde), x, divergence=EXACT, terminal_log_prob=log_prob_of(end))
    assert bits_apart(lp.nats, start.log_prob(x), 3072).max() < 1e-4


def test_bits_per_dim_do_not_change_with_the_scale_of_the_data_or_the_order_of_its_dimensions(x64):
    """VE with data, sigmas and range all 3 times as large is the same process in other units."""
    means, order = np.array([[1.0, -0.5, 0.3], [-0.8, 0.6, -0.2]]), np.array([2, 0, 1])
    x, bits = jnp.array([[0.3, -0.2, 0.5], [0.9, -0.4, 0.2]]), {}
    for case, (scale, axes) in {
        "plain": (1.0, slice(None)),
        "large": (3.0, slice(None)),
        "turned": (1.0, order),
    }.items():
        target = ss.GaussianMixture(jnp.asarray(scale * means[:, axes]), scale * jnp.array([0.3, 0.5]))
        sde = ss.VE(0.01 * scale, 20.0 * scale)
        lp = ss.log_prob(
            None, sde, target.score(sde), scale * x[:, axes], divergence=EXACT, rtol=1e-8, atol=1e-8 * scale
        )
        bits[case] = ss.bits_per_dim(lp, levels=256, data_range=(-scale, scale)).value
    np.testing.assert_allclose(bits["large"], bits["plain"], atol=1e-6)
    np.testing.assert_allclose(bits["turned"], bits["plain"], atol=1e-6)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(key=None), "expected a key for Hutchinson's random probes"),
        (dict(key=jax.random.split(KEY, 3)), "one key or 2 keys"),
        (dict(key=jax.random.key(0, impl="rbg")), "threefry"),
        (dict(t_start=0.0), r"t_start must be in \[t_min, t_max\] = \[1e-05, 1\] of VP, got 0"),
        (dict(t_start=1.1), "t_start must be in"),
        (dict(x=np.array([[0.0, np.nan], [0.0, 0.0]], np.float32)), "expected finite data"),
        (dict(x=np.array([[0.0, 0.0], [np.inf, 0.0]], np.float32)), "expected finite data"),
    ],
    ids=["no key", "number of keys", "generator", "t_start early", "t_start late", "nan", "infinite"],
)
def test_bad_input_is_refused_before_anything_compiles(options, message):
    compiled = density._log_prob.cache_size()
    arguments = dict(key=KEY, x=np.zeros((2, 2), np.float32)) | options
    arguments["x"] = jnp.asarray(arguments["x"])
    with pytest.raises(ValueError, match=message):
        ss.log_prob(sde=ss.VP(), score=lambda x, t: -x, **arguments)
    assert density._log_prob.cache_size() == compiled


def test_a_score_that_is_not_like_x_is_refused():
    with pytest.raises(TypeError, match=r"got shape \(1, 1\)"):
        ss.log_prob(KEY, ss.VP(), lambda x, t: -x[:, :1], jnp.ones((4, 2)))
