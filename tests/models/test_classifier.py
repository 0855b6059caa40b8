"""Classifiers: what they take, that they are told the noise level, that they start out undecided."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.models import Classifier, MLPClassifier

CASES = [
    pytest.param(
        Classifier(num_classes=3, nf=8, ch_mult=(1, 2), attn_resolutions=(4,)), (4, 4, 1), marks=pytest.mark.slow
    ),
    (MLPClassifier(num_classes=3, features=(8, 8)), (2,)),
]


@pytest.mark.parametrize("network, shape", CASES)
def test_logits_start_even_and_depend_on_image_and_noise_level_alone(network, shape):
    x = jax.random.normal(jax.random.key(0), (4, *shape))
    label = jnp.array([0.0, 1.0, 500.0, 999.0])
    apply = jax.jit(network.apply)
    params = jax.jit(network.init)(jax.random.key(1), x, label)
    logits = apply(params, x, label)
    assert logits.shape == (4, 3)
    np.testing.assert_allclose(logits, 0, atol=1e-3)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    params = tree.unflatten([0.2 * jax.random.normal(k, v.shape) for k, v in zip(keys, leaves, strict=True)])
    logits = apply(params, x, label)
    np.testing.assert_allclose(apply(params, x.at[0].set(9.0), label)[1:], logits[1:], rtol=2e-4, atol=1e-5)
    assert jnp.abs(apply(params, x, label[::-1]) - logits).max() > 1e-3  # told the noise level
    assert jnp.abs(apply(params, x[::-1], label) - logits).max() > 1e-3


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        Classifier(ch_mult=(1, 2, 4)).init(jax.random.key(0), jnp.zeros((1, 6, 8, 1)), jnp.zeros(1))
