"""Variational bounds with exact scores, where every term has a closed form.

Data N(m, c I) under a chain: D(x_i) is affine in x_i, so E|x - D(x_i)|^2 given x is known, and with it the whole bound.
Mutations that were planted and turned a test red, here or in test_discrete: the KL's variances swapped, its 1/2
dropped, c_i without alpha_{i-1}, the prior's term dropped, the decoder at sigma_1^2 instead of sigma_1, the integral's
1/2 as 1/4, the reconstruction's sign.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from tests.catalogue import SDES, OrnsteinUhlenbeck, name

KEY = jax.random.key(0)
MEAN, C, SIZE = np.array([0.5, -0.3, 0.1]), 0.25, 3
TARGET = ss.Gaussian(np.float32(MEAN), np.float32(C))
X = TARGET.sample(jax.random.key(1), 400)
EULER = 0.5772156649


def errors_of(alpha, sigma, x):
    """E|x - D(alpha x + sigma eps)|^2 per sample, D = m + alpha c (y - alpha m)/(alpha^2 c + sigma^2)."""
    gain = alpha * C / (alpha**2 * C + sigma**2)
    bias = (1 - gain * alpha) * (np.asarray(x, float) - MEAN)
    return np.square(bias).sum(1) + SIZE * (gain * sigma) ** 2


def kl(mean_distance, p, q):
    """KL(N(0, p) || N(d, q)) with |d|^2 = mean_distance, in SIZE dimensions."""
    return 0.5 * (SIZE * (p / q - 1 - np.log(p / q)) + mean_distance / q)


def closed_form(chain, variance, prior_std, x):
    """(prior, diffusion, reconstruction) of the chain's bound, per sample."""
    alpha, sigma = (np.asarray(v, float) for v in (chain.alpha, chain.sigma))
    prior = kl(alpha[-1] ** 2 * np.square(x).sum(1), sigma[-1] ** 2, prior_std**2)
    diffusion = 0.0
    for i in range(1, chain.steps):
        m = alpha[i] / alpha[i - 1]
        v = sigma[i] ** 2 - m**2 * sigma[i - 1] ** 2
        w = v * sigma[i - 1] ** 2 / sigma[i] ** 2
        weight = alpha[i - 1] * v / sigma[i] ** 2
        diffusion = diffusion + kl(weight**2 * errors_of(alpha[i], sigma[i], x), w, variance[i])
    decoder = -0.5 * (errors_of(alpha[0], sigma[0], x) / variance[0] + SIZE * np.log(2 * np.pi * variance[0]))
    return prior, diffusion, decoder


def agrees(values, exact, spread):
    """The mean over samples, within 4.5 standard errors (false alarm 7e-6)."""
    return abs(np.mean(np.asarray(values) - exact)) < 4.5 * np.std(spread) / len(values) ** 0.5


@pytest.mark.parametrize("variance", ["forward", "posterior"])
@pytest.mark.parametrize("chain, sde", [
    (ss.discrete.ddpm(60), ss.VP()),
    (ss.discrete.ncsn(40), ss.VE()),
    (ss.discrete.of_sde(ss.EDM(0.05, 20.0), 30), ss.VP()),
], ids=["ddpm", "ncsn", "of another sde"])  # fmt: skip
def test_every_term_of_the_discrete_bound_is_that_of_the_latent_variable_model(chain, sde, variance):
    bound = ss.discrete_bound(
        KEY, sde, TARGET.score(sde), X, chain=chain, variance=variance, repeats=2, prior_std=1.1 * chain.sigma[-1]
    )
    given = chain.variance_forward if variance == "forward" else chain.variance_posterior.at[0].set(chain.sigma[0] ** 2)
    prior, diffusion, decoder = closed_form(
        chain, np.asarray(given, float), 1.1 * float(chain.sigma[-1]), np.asarray(X, float)
    )
    np.testing.assert_allclose(bound.prior, prior, rtol=1e-3, atol=1e-4)
    noise = np.asarray(bound.nats) + prior + diffusion - decoder
    assert agrees(bound.diffusion, diffusion, bound.diffusion - diffusion)
    assert agrees(bound.reconstruction, decoder, bound.reconstruction - decoder)
    assert np.std(bound.diffusion - diffusion) < 0.5 * diffusion.mean()  # the test would see a factor
    np.testing.assert_allclose(bound.nats, bound.reconstruction - bound.diffusion - bound.prior, rtol=1e-4, atol=1e-3)
    # Two repetitions: the error's square, averaged over 400 samples, is that of the noise within a fifth.
    assert np.mean(np.square(bound.standard_error)) == pytest.approx(np.mean(np.square(noise)), rel=0.35)
    assert bound.nfe.tolist() == [2 * chain.steps] * 400


@pytest.mark.slow
def test_with_forward_or_optimal_variances_the_bound_approaches_the_density():
    sde, entropy = ss.VP(), 0.5 * SIZE * (np.log(2 * np.pi * C) + 1)
    many = MEAN + C**0.5 * np.random.default_rng(0).standard_normal((100_000, SIZE))
    gaps = {}
    for steps in (50, 400):
        chain = ss.discrete.ddpm(steps)
        best = ss.optimal_variances(jax.random.key(5), sde, TARGET.score(sde), X, chain=chain)
        for kind, variance in (("forward", chain.variance_forward), ("optimal", best)):
            terms = closed_form(chain, np.asarray(variance, float), float(chain.sigma[-1]), np.asarray(X, float))
            found = ss.discrete_bound(KEY, sde, TARGET.score(sde), X, chain=chain, variance=variance)
            expected = terms[2] - terms[1] - terms[0]
            assert agrees(found.nats, expected, found.nats - expected)
            terms = closed_form(chain, np.asarray(variance, float), float(chain.sigma[-1]), many)
            gaps[kind, steps] = (-entropy - np.mean(terms[2] - terms[1] - terms[0])) / SIZE
    # Nats a dimension; measured 0.023 and 0.0038 (forward), 0.0030 and 0.0024 (optimal, from 400 samples: their noise).
    assert 0 < gaps["forward", 400] < gaps["forward", 50] / 3 and gaps["forward", 400] < 0.01
    assert 0 < gaps["optimal", 400] < 0.005 and 0 < gaps["optimal", 50] < gaps["forward", 50] / 3


def test_with_the_posterior_variance_it_stalls_at_half_of_eulers_constant():
    """sum over i of (i/(i - 1) - 1 - log(i/(i - 1)))/2 = gamma/2 nats a dimension, for a small and constant beta_i."""
    sde = ss.VP()
    chain = ss.discrete.ddpm(600, 0.5, 0.5)
    forward, posterior = (
        ss.discrete_bound(KEY, sde, TARGET.score(sde), X, chain=chain, variance=v) for v in ("forward", "posterior")
    )
    stall = np.asarray(forward.nats - posterior.nats, float) / SIZE  # the same noise in both
    # The sum converges as 1/T: 0.280 at this T (closed form), 0.273 at half of it; gamma/2 = 0.289.
    assert stall.mean() == pytest.approx(EULER / 2, abs=0.01 + 4.5 * stall.std() / 400**0.5)
    assert stall.std() / 400**0.5 < 0.02


@pytest.mark.parametrize("sde", [ss.VP(), ss.VE(), OrnsteinUhlenbeck()], ids=name)
def test_the_continuous_bound_is_its_closed_form_and_nearly_tight(sde):
    bound = ss.continuous_bound(KEY, sde, TARGET.score(sde), X, draws=60, repeats=2)
    with jax.enable_x64(True):
        ends = [sde.log_snr(jnp.asarray(t, jnp.float64)) for t in (sde.t_max, sde.t_min)]
        grid = np.linspace(float(ends[0]), float(ends[1]), 4001)
        # |eps_hat - eps|^2 = (alpha/sigma)^2 |x - D|^2, by the trapezoidal rule; alpha drops out: take 1
        rows = np.array([np.exp(l) * errors_of(1.0, np.exp(-l / 2), np.asarray(X, float)) for l in grid])  # noqa: E741
    integral = 0.5 * np.trapezoid(rows, grid, axis=0)
    first = np.exp(-grid[-1] / 2)
    decoder = -0.5 * (errors_of(1.0, first, np.asarray(X, float)) / first**2 + SIZE * np.log(2 * np.pi * first**2))
    assert agrees(bound.diffusion, integral, bound.diffusion - integral)
    assert agrees(bound.reconstruction, decoder, bound.reconstruction - decoder)
    t = jnp.asarray(sde.t_max, jnp.float32)
    np.testing.assert_allclose(
        bound.prior, 0.5 * float(sde.alpha(t) / sde.sigma(t)) ** 2 * np.square(X).sum(1), rtol=1e-4
    )
    gap = float(TARGET.log_prob(X).mean()) - np.mean(decoder - integral - np.asarray(bound.prior))
    # What the decoder and the prior lose: VE starts at sigma = 0.01 (2e-4 of c) and its prior forgets the data's width.
    assert -1e-3 < gap < 0.01
    assert bound.nfe.tolist() == [122] * 400


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_continuous_bound_does_not_depend_on_the_sde(sde):
    mixture = ss.GaussianMixture([[1.0, -0.5], [-0.8, 0.6]], [0.3, 0.5])
    x = mixture.sample(jax.random.key(1), 500)
    bound = ss.continuous_bound(KEY, sde, mixture.score(sde), x, draws=100, t_start=max(float(sde.t_min), 1e-4))
    gap = np.asarray(mixture.log_prob(x) - bound.nats, float)
    assert abs(gap.mean()) < 4.5 * gap.std() / 500**0.5 + 0.02


@pytest.mark.slow
def test_with_cells_the_bound_is_one_on_probabilities():
    sde, cells = ss.VP(), ss.Cells(8, data_range=(-2.0, 2.0))
    k = jnp.arange(8)[:, None].repeat(50, 0)
    x = -2 + 0.5 * (k.astype(jnp.float32) + 0.5)  # centres of the cells
    target = ss.Gaussian(jnp.zeros(1), 0.5)
    # The model's own law of the levels: its chain draws x_0 and takes the cell it falls in.
    samples, chain = 20_000, ss.discrete.ddpm(100)
    score, times = target.score(sde), chain.times(sde)
    state = chain.sigma[-1] * jax.random.normal(jax.random.key(7), (samples, 1))
    for i in range(chain.steps - 1, -1, -1):
        sigma = float(sde.sigma(times[i]))
        noise = -sigma * score(sigma / chain.sigma[i] * state, jnp.full(samples, times[i]))
        data = (state - chain.sigma[i] * noise) / chain.alpha[i]
        z = jax.random.normal(jax.random.fold_in(jax.random.key(8), i), state.shape)
        state = chain.posterior_noisy[i] * state + chain.posterior_data[i] * data
        state = state + jnp.sqrt(chain.variance_forward[i]) * z
    counts = np.bincount(np.asarray(ss.quantise(state, levels=8, data_range=(-2.0, 2.0))).ravel(), minlength=8)
    bound = ss.discrete_bound(KEY, sde, score, x, chain=chain, cells=cells, repeats=4)
    nats = np.asarray(bound.nats, float).reshape(8, 50)
    # log p of a cell from its count, and the bound below it, each within 4.5 standard errors.
    slack = 4.5 * (1 / counts**0.5 + nats.std(1) / 50**0.5)
    assert (nats.mean(1) < np.log(counts / samples) + slack).all()
    # The score is that of a density, which goes on inside of a cell: from the cell's width down to sigma_1 = 0.03 the
    # chain is asked for log(0.5/0.03) nats or less that no level needs.
    assert (nats.mean(1) > np.log(counts / samples) - slack - 3).all()
    bits = ss.bits_per_dim(bound, levels=8, data_range=(-2.0, 2.0))
    np.testing.assert_allclose(bits.value, -bound.nats / np.log(2), rtol=1e-6)
    decoded = ss.continuous_bound(KEY, sde, score, x, t_start=0.2, draws=50, cells=cells)
    assert decoded.of_levels and (decoded.reconstruction < 0).all()  # a probability, not a density


def test_masses_of_the_cells_add_up_to_one_and_keep_their_tails(x64):
    cells = ss.Cells(17, data_range=(-1.0, 1.0))
    centres = jnp.linspace(-1, 1, 35)[1::2][:, None]
    for mean, std in ((0.3, 0.2), (-5.0, 0.01), (0.0, 10.0)):
        masses = jnp.exp(cells.log_mass(centres, jnp.full_like(centres, mean), jnp.array(std)))
        assert float(masses.sum()) == pytest.approx(1, rel=1e-9)
    tail = cells.log_mass(jnp.array([[0.0], [0.0]]), jnp.array([[-0.9], [0.9]]), jnp.array(0.01))
    np.testing.assert_allclose(tail[0], tail[1], rtol=1e-9)  # mirror images, 84 standard deviations out
    assert np.isfinite(tail).all() and (tail < -3000).all()


@pytest.mark.slow
def test_a_bound_depends_on_its_own_key_and_nothing_compiles_twice():
    from score_sde.likelihood import bounds

    sde, keys, chain = ss.VP(), jax.random.split(KEY, 8), ss.discrete.ddpm(30)
    whole = ss.discrete_bound(keys, sde, TARGET.score(sde), X[:8], chain=chain)
    continuous = ss.continuous_bound(keys, sde, TARGET.score(sde), X[:8], draws=5)
    sizes = bounds._discrete_bound.cache_size(), bounds._continuous_bound.cache_size()
    other = ss.discrete_bound(jax.random.split(jax.random.key(1), 8), sde, TARGET.score(sde), X[:8], chain=chain)
    ss.discrete_bound(keys, ss.VP(0.2, 15.0), TARGET.score(ss.VP(0.2, 15.0)), X[:8], chain=chain, variance="posterior")
    ss.continuous_bound(keys, sde, TARGET.score(sde), X[8:16], draws=5, t_start=1e-3)
    assert (bounds._discrete_bound.cache_size(), bounds._continuous_bound.cache_size()) == sizes
    assert (other.nats != whole.nats).all() and np.isnan(whole.standard_error).all()
    part = slice(5, 6)
    alone = ss.discrete_bound(keys[part], sde, TARGET.score(sde), X[part], chain=chain)
    np.testing.assert_allclose(alone.nats, whole.nats[part], rtol=1e-4, atol=1e-3)
    alone = ss.continuous_bound(keys[part], sde, TARGET.score(sde), X[part], draws=5)
    np.testing.assert_allclose(alone.nats, continuous.nats[part], rtol=1e-4, atol=1e-3)  # sums of 1e3 nats


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s: ss.discrete_bound(KEY, ss.VP(), s, X, chain=ss.discrete.ddpm(30), variance="best"), "'posterior'"),
        (lambda s: ss.discrete_bound(KEY, ss.VP(), s, X, chain=ss.discrete.ddpm(30), variance=jnp.ones(3)), r"\(30,\)"),
        (lambda s: ss.discrete_bound(KEY, ss.VP(), s, X, chain=ss.discrete.ddpm(30), repeats=0), "repeats must be"),
        (lambda s: ss.continuous_bound(KEY, ss.VP(), s, X, draws=0), "draws must be at least 1"),
        (lambda s: ss.continuous_bound(KEY, ss.VP(), s, X, t_start=0.0), "t_start must be in"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(TARGET.score(ss.VP()))
