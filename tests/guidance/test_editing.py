"""Editing on a mixture: how much of x is kept, and flows between two laws in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from tests.guidance.exact import SDE

SOURCE = ss.Gaussian(jnp.array([1.0, -1.0]), 0.25)
TARGET = ss.Gaussian(jnp.array([-2.0, 0.5]), 0.01)


@pytest.mark.slow
def test_sdedit_is_a_draw_given_the_noised_data():
    """x_t = alpha x + sigma z, then x_0 | x_t of a Gaussian: mean and variance of the whole, given x."""
    x, t = jnp.broadcast_to(jnp.array([[2.0, -2.0]]), (4000, 2)), 0.3
    out = ss.sdedit(jax.random.key(0), SDE, SOURCE.score(SDE), x, t, sampler=ss.Ancestral(), steps=100)
    alpha, sigma = float(SDE.alpha(jnp.array(t))), float(SDE.sigma(jnp.array(t)))
    gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
    mean = np.array([1.0, -1.0]) + gain * alpha * np.array([1.0, -1.0])
    variance = gain**2 * sigma**2 + 0.25 * (1 - gain * alpha)
    np.testing.assert_allclose(out.x.mean(0), mean, atol=5 * np.sqrt(variance / 4000) + 0.01)
    np.testing.assert_allclose(out.x.std(0), np.sqrt(variance), rtol=0.06)
    assert out.nfe[0] == 100


@pytest.mark.slow
def test_sdedit_does_not_know_its_batch():
    keys = jax.random.split(jax.random.key(0), 64)
    x = SOURCE.sample(jax.random.key(1), 64)
    run = dict(t_start=0.5, sampler=ss.Ancestral(), steps=20)
    every = ss.sdedit(keys, SDE, SOURCE.score(SDE), x, **run).x
    one = ss.sdedit(keys[3:4], SDE, SOURCE.score(SDE), x[3:4], **run).x
    np.testing.assert_allclose(one[0], every[3], atol=1e-5)


def flowed(law, x, start, end):
    """Where the flow of an isotropic Gaussian carries x between the ends of the sampler's time: an affine map."""
    t = jnp.array([SDE.t_sampling, SDE.t_max])
    alpha, sigma = np.asarray(SDE.alpha(t)), np.asarray(SDE.sigma(t))
    std = np.sqrt(alpha**2 * np.asarray(law.variances)[0] + sigma**2)
    mean = np.asarray(law.mean)
    return alpha[end] * mean + std[end] / std[start] * (np.asarray(x) - alpha[start] * mean)


def test_translation_is_the_two_flow_maps():
    """Gaussian to Gaussian: affine maps in closed form, with a shift of the latent in between."""
    x = SOURCE.sample(jax.random.key(1), 4)
    out = ss.translate(
        SDE, SOURCE.score(SDE), TARGET.score(SDE), x, change=lambda z: z + 0.5, sampler=ss.RungeKutta(2), steps=30
    )
    np.testing.assert_allclose(out.x, flowed(TARGET, flowed(SOURCE, x, 0, 1) + 0.5, 1, 0), atol=2e-3)
    assert out.nfe.tolist() == [120] * 4
    back = ss.translate(SDE, SOURCE.score(SDE), SOURCE.score(SDE), x, steps=30, t_end=0.6)
    np.testing.assert_allclose(back.x, x, atol=2e-3)


def test_labels_are_checked_on_the_way():
    guided = ss.classifier_free_guidance(lambda x, t, label: -x, jnp.zeros(3, int), num_classes=2)
    with pytest.raises(ValueError, match="expected label for a batch of 4, one for each sample"):
        ss.translate(SDE, guided, guided, jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="t_start must be in"):
        ss.sdedit(jax.random.key(0), SDE, SOURCE.score(SDE), jnp.zeros((4, 2)), 1.5)
