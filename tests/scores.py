"""Exact scores that tests share."""

import jax
from jax import Array

import score_sde as ss
from score_sde.arrays import expand
from score_sde.predictions import Prediction
from tests.catalogue import PREDICTIONS, name

WAYS = ["score", *map(name, PREDICTIONS)]


def exact_network(target: ss.analytic.Target, sde: ss.AffineSDE, kind: Prediction):
    """The perfect network of a kind: its training target at the posterior means of data and noise (Tweedie)."""
    score = target.score(sde)

    def predict(x, t):
        alpha, sigma, s = expand(sde.alpha(t), x), expand(sde.sigma(t), x), score(x, t)
        return kind.target(sde, (x + sigma**2 * s) / alpha, -sigma * s, t)

    return predict


class ExactScore(ss.Frozen):
    """The score of a target in one of several `WAYS`: itself, or through the perfect network of a prediction kind.

    `way` is a traced number, so that all ways share one compiled program.
    """

    target: ss.analytic.Target
    sde: ss.AffineSDE
    way: Array

    def __call__(self, x, t):
        networks = [ss.PredictedScore(exact_network(self.target, self.sde, k), self.sde, k) for k in PREDICTIONS]
        scores = [self.target.score(self.sde), *networks]
        return jax.lax.switch(self.way, [score.__call__ for score in scores], x, t)  # records of tracers do not hash
