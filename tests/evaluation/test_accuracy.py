"""Accuracy by noise level against the Bayes classifier's closed form."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

import score_sde as ss
from score_sde.data import ArraySource
from score_sde.evaluation.levels import accuracy_by_level
from score_sde.training.experiment import Classification

SDE, MEAN, STD = ss.VP(), 0.8, 0.3
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 4000)
DATA = ((2 * LABELS - 1) * MEAN + STD * RNG.standard_normal(4000)).astype(np.float32)[:, None]


class Bayes(nn.Module):
    """The exact logits of two Gaussians at -MEAN and MEAN, noised to t = label / 999."""

    @nn.compact
    def __call__(self, x, label, *, train=False):
        t, scale = label / 999, self.param("scale", nn.initializers.ones, ())
        alpha, sigma = SDE.alpha(t), SDE.sigma(t)
        x = x * jnp.sqrt(alpha**2 + sigma**2)[:, None]  # undoes the scale that a Classification gives its network
        log_odds = 2 * alpha[:, None] * MEAN * x / (alpha**2 * STD**2 + sigma**2)[:, None]
        return scale * jnp.concatenate([-log_odds / 2, log_odds / 2], axis=1)


def classification():
    source = ArraySource(DATA, labels=LABELS, num_classes=2)
    return Classification(
        sde=SDE, network=Bayes(), times=ss.times.Uniform(), load={"test": source}.__getitem__, shape=(1,),
        levels=None, data_range=(-1.0, 1.0), num_classes=2,
    )  # fmt: skip


def test_the_accuracy_of_the_exact_classifier_is_that_of_bayes():
    e = classification()
    found = accuracy_by_level(
        e, e.init(jax.random.key(0)), split="test", batch_size=500, seed=0, examples=4000, bins=12
    )  # fmt: skip
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-found.log_snr))), np.sqrt(1 / (1 + np.exp(found.log_snr)))
    expected = norm.cdf(alpha * MEAN / np.sqrt(alpha**2 * STD**2 + sigma**2))
    # standard errors up to 0.008; a bin is 2 wide in log-SNR, over which the curve bends by at most 0.01
    np.testing.assert_allclose(found.values["accuracy"], expected, atol=0.035)
    assert np.ptp(expected) > 0.4 and found.examples == 4000


def test_the_loss_of_training_is_least_at_the_exact_classifier():
    e = classification()
    params, batch = e.init(jax.random.key(0)), {"x": jnp.asarray(DATA), "label": jnp.asarray(LABELS)}
    loss = jax.jit(e.loss)
    at = {scale: float(loss({"scale": scale * params["scale"]}, batch, jax.random.key(1))) for scale in (0.6, 1.0, 1.6)}
    assert at[1.0] < at[0.6] - 0.005 and at[1.0] < at[1.6] - 0.005, at
    assert abs(float(loss({"scale": 0 * params["scale"]}, batch, jax.random.key(1))) - np.log(2)) < 1e-5
