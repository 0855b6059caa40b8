"""A perfect network: the exact noise prediction of a known target, as an Experiment wants it."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import score_sde as ss
from score_sde.data import ArraySource
from score_sde.training.experiment import Experiment

SDE = ss.VP()
TARGET = ss.Gaussian(np.array([0.3, -0.2], np.float32), np.array([[0.3, 0.1], [0.1, 0.2]], np.float32))
FAR = 100.0  # beyond this the network returns nan


class ExactNoise(nn.Module):
    """eps = -sigma(t) grad log p_t(x), t from the label 999 t."""

    target: Any
    broken: bool = False

    def __call__(self, x, label, *, train=False):
        t = label / 999
        noise = -SDE.sigma(t)[:, None] * self.target.score(SDE)(x, t)
        return jnp.where(self.broken | (jnp.abs(x) > FAR).any(axis=1, keepdims=True), jnp.nan, noise)


def experiment(x, *, target=TARGET, levels=None, data_range=(-1.0, 1.0), broken=False):
    """The experiment of a data set `x` (N, 2) and a perfect network of `target`, which has no parameters: {}."""
    return Experiment(
        sde=SDE, network=ExactNoise(target, broken), prediction=ss.predictions.Noise(),
        weighting=ss.weightings.SigmaSquared(), times=ss.times.Uniform(),
        load={"test": ArraySource(x, levels=levels)}.__getitem__, shape=(2,), levels=levels, data_range=data_range,
    )  # fmt: skip
