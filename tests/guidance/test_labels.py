"""Guidance by labels on a mixture whose components are the classes: exact conditional laws, counts, checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from tests.guidance.exact import MEANS, SDE, STDS, Classifier, Counted, Labelled, affine_law, at, component, mixture


def exact_score():  # in the precision of the test
    return mixture().score(SDE)


KINDS = ["classifier", "free"]
SLOWLY = ["classifier", pytest.param("free", marks=pytest.mark.slow)]


def guide(kind, label, scale=1.0, **options):
    if kind == "classifier":
        return ss.classifier_guidance(exact_score(), Classifier(), label, scale, **options)
    return ss.classifier_free_guidance(Labelled(), label, scale, num_classes=3, **options)


def states(n):
    t = SDE.inverse_log_snr(jnp.linspace(-4.0, 5.0, n))
    return jax.random.normal(jax.random.key(0), (n, 2)), t


@pytest.mark.parametrize("kind", KINDS)
def test_scale_is_linear_from_the_mixture_to_the_component(kind, x64):
    """s + w (s_c - s) with the exact score s_c of the class; each sample has its own label and scale."""
    x, t = states(12)
    label, scale = jnp.arange(12) % 3, jnp.linspace(0.0, 3.0, 12).at[5].set(1.0)
    s = at(exact_score(), x, t)
    alpha, sigma = (np.asarray(v)[:, None] for v in (SDE.alpha(t), SDE.sigma(t)))
    own = (alpha * MEANS[label] - x) / ((alpha * STDS[label][:, None]) ** 2 + sigma**2)
    expected = s + scale[:, None] * (own - s)
    np.testing.assert_allclose(at(guide(kind, label, scale), x, t), expected, rtol=1e-9, atol=1e-9)
    one = at(guide(kind, 1, 2.0), x, t)  # one for all
    np.testing.assert_allclose(one[1::3], (s + 2 * (own - s))[1::3], rtol=1e-9, atol=1e-9)


def test_a_scale_may_be_a_function_of_time_within_an_interval():
    t = SDE.inverse_log_snr(jnp.array([-3.0, -1.0, 1.0, 3.0]))
    guided = ss.classifier_free_guidance(
        lambda x, t, label: jnp.zeros_like(x) + label.astype(x.dtype)[:, None],
        0, lambda t: SDE.log_snr(t), num_classes=5, interval=ss.NoiseInterval(SDE, -2.0, 2.0),
    )  # fmt: skip
    scale = np.array([1.0, -1.0, 1.0, 1.0])  # outside of the interval the score of the label
    np.testing.assert_allclose(at(guided, jnp.zeros((4, 1)), t)[:, 0], 5 * (1 - scale), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_schedules_and_intervals_are_in_noise_level(kind, x64):
    x, t = states(12)
    log_snr = np.asarray(SDE.log_snr(t))
    inside = (log_snr >= -2.0) & (log_snr <= 2.0)
    interval = ss.NoiseInterval(SDE, -2.0, 2.0)
    outside = {"classifier": 0.0, "free": 1.0}[kind]  # neither changes what is sampled without guidance there
    got = at(guide(kind, 1, 2.5, interval=interval), x, t)
    expected = at(guide(kind, 1, jnp.where(inside, 2.5, outside)), x, t)
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    schedule = at(guide(kind, 1, lambda t: jnp.exp(-jnp.abs(SDE.log_snr(t)))), x, t)
    np.testing.assert_allclose(schedule, at(guide(kind, 1, np.exp(-np.abs(log_snr))), x, t), rtol=1e-9)


def within(draws, mean, covariance):
    """Whether draws have these moments, to five standard errors."""
    n = len(draws)
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * np.sqrt(np.diag(covariance) / n))
    spread = np.cov(draws.T)
    assert np.all(np.abs(spread - covariance) < 5 * np.sqrt(2 / n) * np.diag(covariance).max())


@pytest.mark.parametrize("kind", SLOWLY)
def test_samples_at_scale_one_follow_the_conditional_law(kind):
    n = 3000
    label = jnp.arange(n) % 3
    guided = guide(kind, label)
    x = ss.sample(
        jax.random.key(1), SDE, guided, (n, 2), sampler=ss.SDEDPMSolverPP(2), steps=60, grid=ss.grids.log_snr
    ).x
    for k in range(3):
        draws = np.asarray(x[label == k])
        within(draws, MEANS[k], STDS[k] ** 2 * np.eye(2))
        exact = np.asarray(component(k).sample(jax.random.key(2), 1000))
        wrong = np.asarray(component((k + 1) % 3).sample(jax.random.key(2), 1000))
        assert energy(draws, exact) < 0.01 < 0.1 < energy(wrong, exact)  # some 4/n by chance


def energy(a, b):
    """2 E|a - b| - E|a - a'| - E|b - b'|, by all pairs."""

    def mean(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1).mean()

    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SLOWLY)
def test_labels_per_sample_go_through_solvers_with_a_clock_for_each(kind):
    """Likelihoods of the asked components, each sample's own."""
    label = jnp.array([0, 2])
    guided = guide(kind, label, jnp.ones(2))
    x = jnp.stack([component(int(k)).sample(jax.random.key(i), 1)[0] for i, k in enumerate(label)])
    got = ss.log_prob(None, SDE, guided, x, divergence=ss.ExactDivergence(), t_start=1e-3, rtol=1e-4, atol=1e-4)
    for i, k in enumerate(label.tolist()):
        np.testing.assert_allclose(got.nats[i], component(k).marginal(SDE, 1e-3).log_prob(x[i : i + 1])[0], atol=2e-2)


@pytest.mark.parametrize("kind", SLOWLY)
def test_samples_do_not_know_their_batch(kind):
    keys, label = jax.random.split(jax.random.key(4), 64), jnp.arange(64) % 3
    scale = jnp.linspace(0.0, 4.0, 64)
    run = dict(sampler=ss.Ancestral(), steps=30)
    x = ss.sample(keys, SDE, guide(kind, label, scale), (64, 2), **run).x
    for i in (0, 33):  # scale 0 alone is another branch than scale 0 in company
        part = slice(i, i + 1)
        one = ss.sample(keys[part], SDE, guide(kind, label[part], scale[part]), (1, 2), **run).x
        np.testing.assert_allclose(one[0], x[i], atol=2e-5)


@pytest.mark.parametrize("kind", SLOWLY)
@pytest.mark.parametrize("each", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_other_labels_and_scales_do_not_compile_again(kind, each):
    network = Counted(exact_score() if kind == "classifier" else Labelled())

    def run(label, scale):
        if kind == "classifier":
            guided = ss.classifier_guidance(network, Classifier(), label, scale)
        else:
            guided = ss.classifier_free_guidance(network, label, scale, num_classes=3)
        return ss.sample(jax.random.key(0), SDE, guided, (4, 2), steps=3).x

    a, traces = run(jnp.arange(4) % 3, jnp.ones(4)) if each else run(0, 1.0), network.traces
    b = run(jnp.zeros(4, int), jnp.arange(4.0)) if each else run(2, 3.0)
    assert network.traces == traces and not np.allclose(a, b)


def networks_run(make, t, n=4):
    """The batch sizes that the networks of a guided score saw at time t, and what it says it costs."""
    guided = make()
    counters = [v for v in (guided.score, getattr(guided, "weak", None), getattr(guided, "classifier", None)) if v]
    times = jnp.full(n, t)
    at(guided, jnp.ones((n, 2)), times).block_until_ready()
    return [c.counted() for c in counters], ss.network_evaluations(guided, times).tolist()


def test_networks_run_only_where_a_scale_asks_for_them():
    late, early = 0.05, 0.9
    interval = ss.NoiseInterval(SDE, 0.0, 10.0)  # late times only

    def plain(x, *args):
        return -x

    def free(scale, **options):
        return lambda: ss.classifier_free_guidance(Counted(plain), 1, scale, num_classes=3, **options)

    assert networks_run(free(jnp.array([0.0, 1.0, 1.0, 0.0])), late) == ([[4]], [1] * 4)
    assert networks_run(free(jnp.array([0.0, 1.0, 1.5, 0.0])), late) == ([[8]], [2] * 4)
    assert networks_run(free(2.0, interval=interval), late) == ([[8]], [2] * 4)
    assert networks_run(free(2.0, interval=interval), early) == ([[4]], [1] * 4)

    def auto(scale):
        return lambda: ss.autoguidance(Counted(plain), Counted(plain), scale)

    assert networks_run(auto(1.0), late) == ([[4], []], [1] * 4)
    assert networks_run(auto(0.0), late) == ([[], [4]], [1] * 4)
    assert networks_run(auto(2.0), late) == ([[4], [4]], [2] * 4)

    def classifier(scale):
        return lambda: ss.classifier_guidance(Counted(plain), Counted(plain), 1, scale)

    assert networks_run(classifier(0.0), late) == ([[4], []], [1] * 4)
    assert networks_run(classifier(1.0), late) == ([[4], [4]], [3] * 4)


def test_one_network_runs_under_a_mapped_clock_too():
    """sample_adaptive maps over samples, whose scales then differ: still one branch for all of them."""
    network = Counted(lambda x, t, label: -0.25 * x * label.astype(x.dtype)[:, None])
    guided = ss.classifier_free_guidance(network, jnp.arange(3), jnp.array([0.0, 1.0, 1.0]), num_classes=3)
    out = ss.sample_adaptive(jax.random.key(0), SDE, guided, (3, 2), x_init=jnp.ones((3, 2)))
    sizes = network.counted()
    assert set(sizes) == {1} and len(sizes) >= out.nfe.max()
    # dx/dt = beta/2 (c/4 - 1) x with c = 3 (no label), 1, 2
    growth = float(SDE.log_alpha(jnp.array(SDE.t_sampling)) - SDE.log_alpha(jnp.array(SDE.t_max)))
    np.testing.assert_allclose(out.x[:, 0], np.exp(growth * (1 - np.array([3, 1, 2]) / 4)), rtol=1e-2)


def test_autoguidance_extrapolates_from_the_weak_score(x64):
    x, t = states(6)
    scale = jnp.linspace(0.0, 3.0, 6)
    guided = at(ss.autoguidance(lambda x, t: -x * t[:, None], lambda x, t: jnp.sin(x), scale), x, t)
    weak, strong = np.sin(x), -np.asarray(x * t[:, None])
    expected = weak + np.asarray(scale)[:, None] * (strong - weak)
    np.testing.assert_allclose(guided, expected, rtol=1e-12, atol=1e-12)


def test_samples_of_autoguidance_follow_the_law_of_its_scores():
    """Of one Gaussian, and a weaker one of a larger variance: along each axis the flow is

    du = (f + g^2 k / 2) u dt,  u = x - alpha m,  k = w / (alpha^2 s^2 + sigma^2) + (1 - w) / (alpha^2 S^2 + sigma^2),

    so that u shrinks by the exponential of an integral.
    """
    mean, variances, weaker, scale = np.array([0.6, -0.4]), np.array([0.25, 0.04]), np.array([0.6, 0.3]), 2.0
    strong, weak = (ss.Gaussian(jnp.array(mean.tolist()), jnp.array(v.tolist())) for v in (variances, weaker))
    guided = ss.autoguidance(strong.score(SDE), weak.score(SDE), scale)
    got_mean, got_covariance = affine_law(SDE, guided, 2, rtol=1e-5, atol=1e-5)

    t = np.geomspace(1e-3, 1.0, 20_001)[:, None]
    beta, square = 0.1 + 19.9 * t, np.exp(-0.1 * t - 9.95 * t**2)  # of VP; alpha^2
    k = scale / (square * variances + 1 - square) + (1 - scale) / (square * weaker + 1 - square)
    shrunk = np.exp(-np.trapezoid(beta / 2 * (k - 1), t, axis=0))
    end, start = np.sqrt(square[0]), np.sqrt(square[-1])
    np.testing.assert_allclose(got_mean, end * mean - shrunk * start * mean, atol=1e-4)
    np.testing.assert_allclose(got_covariance, np.diag(shrunk**2), atol=1e-4)
    assert np.all(shrunk**2 < 0.8 * variances)  # narrower than either


def test_gradient_is_in_float32():
    """A network in bfloat16 is asked in float32, its log-probabilities are selected and differentiated in it."""
    seen = []

    def classifier(x, t):
        seen.append(x.dtype)
        return (x @ jnp.eye(2, 3)).astype(jnp.bfloat16)

    guided = ss.classifier_guidance(lambda x, t: -x, classifier, 0)
    x = jnp.array([[0.3, 0.1]])
    assert guided(x.astype(jnp.bfloat16), jnp.ones(1, jnp.bfloat16)).dtype == jnp.bfloat16
    probability = jax.nn.softmax(jnp.array([0.3, 0.1, 0.0]))
    expected = -x + jnp.array([[1.0, 0.0]]) - probability[None, :2]
    np.testing.assert_allclose(guided(x, jnp.ones(1)), expected, atol=3e-3)
    assert set(seen) == {jnp.dtype(jnp.float32)}


def test_a_conditional_network_is_a_labelled_score(x64):
    """The published VP convention with a class label: score = -F/sigma at label 999 t."""
    x, t = states(3)

    def apply(x, noise_label, label):
        return x * label.astype(x.dtype)[:, None] + noise_label[:, None]

    score = ss.ConditionalScore(apply, SDE, ss.predictions.Noise())
    label = jnp.array([0, 1, 2])
    expected = -(x * jnp.array([0.0, 1.0, 2.0])[:, None] + 999 * t[:, None]) / SDE.sigma(t)[:, None]
    np.testing.assert_allclose(score(x, t, label), expected, rtol=1e-12)


def refused(message, make, shape=(4, 2)):
    with pytest.raises(ValueError, match=message):
        ss.sample(jax.random.key(0), SDE, make(), shape, steps=2)


def test_bad_guidance_is_refused_before_sampling():
    refused("labels in 0..2, got 3", lambda: guide("classifier", 3))
    refused("labels in 0..2, got 3", lambda: guide("free", jnp.array([0, 1, 3, 0])))
    refused("labels at least 0, got -1", lambda: guide("classifier", jnp.array([0, -1, 1, 0])))
    refused("labels to be integers", lambda: guide("classifier", 1.0))
    refused("finite values of scale", lambda: guide("free", 1, jnp.array([1.0, jnp.nan, 1.0, 1.0])))
    refused("finite values of scale", lambda: guide("classifier", 1, jnp.inf))
    refused("finite values of scale", lambda: ss.autoguidance(exact_score(), exact_score(), jnp.nan))
    refused("scale to be one number", lambda: guide("free", 1, jnp.ones((2, 2))))
    refused("expected label for a batch of 4", lambda: guide("classifier", jnp.zeros(3, int)))
    refused("expected scale for a batch of 4", lambda: guide("free", 0, jnp.ones(3)))
    refused("does not take x of shape", lambda: guide("classifier", 0), shape=(4, 5))
    refused("of shape .4, classes.", lambda: ss.classifier_guidance(exact_score(), lambda x, t: x[:, 0], 0))
    refused("an interval low < high", lambda: guide("free", 0, interval=ss.NoiseInterval(SDE, 2.0, 1.0)))
    inner = ss.autoguidance(guide("classifier", 5), exact_score(), 2.0)  # a guided score inside of another
    refused("labels in 0..2, got 5", lambda: ss.Clipped(inner, SDE))
    for solve in (
        lambda s: ss.sample_adaptive(jax.random.key(0), SDE, s, (4, 2)),
        lambda s: ss.encode(SDE, s, jnp.ones((4, 2))),
    ):
        with pytest.raises(ValueError, match="got 5"):
            solve(inner)
    with pytest.raises(ValueError, match="got 5"):
        ss.log_prob(jax.random.key(0), SDE, inner, jnp.ones((4, 2)))
