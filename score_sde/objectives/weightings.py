"""Weightings: how much the squared score error counts at each noise level.

The loss of a sample at time t is lambda(t) * mean over dimensions of |s_predicted - s|^2.  A weighting is that lambda,
`weighting(sde, prediction, t)`; `prediction` lets it refer to the error of the network's own output.
"""

from abc import abstractmethod

import jax.numpy as jnp

from score_sde.predictions import Prediction
from score_sde.sdes import AffineSDE, Times
from score_sde.trees import Frozen, Number


class Weighting(Frozen):
    """lambda(t) on the squared score error."""

    @abstractmethod
    def __call__(self, sde: AffineSDE, prediction: Prediction, t: Times) -> Times:
        """lambda at times t."""
        raise TypeError(f"{type(self).__name__} must define __call__(sde, prediction, t)")


class SigmaSquared(Weighting):
    """lambda = sigma^2: the squared error of the noise (Song et al. 2021, section 3.3; DDPM's simple loss)."""

    def __call__(self, sde, prediction, t):
        return jnp.square(sde.sigma(t))


class Likelihood(Weighting):
    """lambda = g^2: half the loss bounds the negative log-likelihood (Song et al. 2021b, theorem 1)."""

    def __call__(self, sde, prediction, t):
        return jnp.square(sde.diffusion(t))


class EDM(Weighting):
    """(s^2 + sd^2)/(s sd)^2 on the squared data error, s = sigma/alpha (Karras et al. 2022, table 1).

    With predictions.EDM and the same sigma_data this is the plain squared error of the network's output.
    """

    sigma_data: Number = 0.5

    def check(self):
        if not self.sigma_data > 0:
            raise ValueError(f"weightings.EDM: sigma_data must be positive, got {self.sigma_data}.")

    def __call__(self, sde, prediction, t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        # The data error is sigma^2/alpha times the score error.
        return jnp.square(sigma / (alpha * self.sigma_data)) * (sigma**2 + (alpha * self.sigma_data) ** 2)


class Output(Weighting):
    """The plain squared error of the network's output, whatever it predicts (flow matching, with Velocity)."""

    def __call__(self, sde, prediction, t):
        return jnp.square(1 / prediction.score_gain(sde, t))
