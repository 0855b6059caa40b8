"""What an experiment's loss tells its network: the class of an example, or that it has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import score_sde as ss
from score_sde.objectives import times, weightings
from score_sde.training.experiment import Experiment

LABELS = np.arange(4000) % 3
CLASSES = 3


class SaysTheClass(nn.Module):
    """Predicts the number of the class."""

    @nn.compact
    def __call__(self, x, label, class_label=None, *, train=False):
        classes = jnp.full(len(x), CLASSES) if class_label is None else class_label
        return self.param("one", nn.initializers.ones, ()) * classes[:, None].astype(x.dtype) * jnp.ones_like(x)


def experiment(label_dropout):
    return Experiment(
        sde=ss.VP(), network=SaysTheClass(), prediction=ss.predictions.Data(), weighting=weightings.Output(),
        times=times.Uniform(), load=lambda split: None, shape=(1,), levels=None, data_range=(-1.0, 1.0),
        num_classes=CLASSES, label_dropout=label_dropout,
    )  # fmt: skip


@pytest.mark.parametrize("dropout", [0.0, 0.25, 1.0])
def test_the_network_is_told_the_class_or_with_the_rate_of_dropout_none(dropout):
    e = experiment(dropout)
    batch = {"x": jnp.zeros((len(LABELS), 1)), "label": jnp.asarray(LABELS)}
    loss = jax.jit(e.loss)(e.init(jax.random.key(0)), batch, jax.random.key(1))
    # of data 0 the loss is the mean of the squares of what the network was told; its standard deviation is below 0.06
    expected = (1 - dropout) * np.mean(LABELS**2.0) + dropout * CLASSES**2
    np.testing.assert_allclose(loss, expected, atol=1e-5 if dropout in (0, 1) else 0.25)


def test_a_score_without_labels_is_that_of_no_class():
    e = experiment(0.0)
    x, t = jnp.zeros((2, 1)), jnp.full(2, 0.5)
    score = e.score(e.init(jax.random.key(0)))
    data, _ = e.prediction.data_and_noise(e.sde, jnp.full((2, 1), 1.0 * CLASSES), x, t)
    expected = (e.sde.alpha(t)[:, None] * data - x) / e.sde.sigma(t)[:, None] ** 2
    np.testing.assert_allclose(score(x, t), expected, rtol=1e-5)
