"""Correctors: Langevin steps at one noise level, and the sampler that puts them between a predictor's steps.

x <- x + e s(x, t) + sqrt(2 e) z leaves the marginal at t as it is, to first order in e, and mends what the predictor's
step got wrong (Song et al. 2021, section 4.2).
"""

from abc import abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_sde.arrays import expand, norm
from score_sde.sampling.predictors import ReverseDiffusion
from score_sde.sampling.sampler import Draw, Row, Sampler, State, check_range, one_row_per_step
from score_sde.sdes import AffineSDE, Score, evaluate
from score_sde.trees import Frozen, Number, static


class Corrector(Frozen):
    """`steps` Langevin steps whose size a subclass states, by its `root`."""

    snr: Number = 0.16
    levels: Number | None = None
    steps: int = static(1)

    def check(self):
        check_range(self, "snr", 0, np.inf)
        if self.levels is not None:
            check_range(self, "levels", 1, np.inf)
        if self.steps < 1:
            raise ValueError(f"{type(self).__name__}: steps must be at least 1, got {self.steps}.")

    @abstractmethod
    def root(self, sigma: Array, score: State, noise: State) -> Float[Array, " b"]:
        """The square roots of the step sizes e, before the factor alpha of `levels`."""
        raise TypeError(f"{type(self).__name__} must define root")

    def correct(self, sde: AffineSDE, score: Score, x: State, t: Array, draw: Draw) -> State:
        """x after the Langevin steps at time t (a scalar); unchanged where there is no noise at t."""
        sigma = sde.sigma(t)
        safe = jnp.where(sigma > 0, t, jnp.asarray(sde.t_max, t.dtype))
        alpha = jnp.ones_like(t)
        if self.levels is not None:  # not quite 0, where a square root has no derivative
            alpha = jnp.maximum(1 + 2 * sde.drift_factor(t) / self.levels, jnp.finfo(t.dtype).tiny)

        def step(k, x):
            z, s = draw(k + 1), evaluate(score, x, jnp.full(x.shape[:1], safe))
            root = expand(jnp.sqrt(alpha) * self.root(sigma, s, z), x)  # e itself would lose the derivative at 0
            return jnp.where(sigma > 0, x + jnp.square(root) * s + 2**0.5 * root * z, x)

        return step(0, x) if self.steps == 1 else jax.lax.fori_loop(0, self.steps, step, x)


class Langevin(Corrector):
    """Langevin steps of size e = 2 alpha (snr |z|/|s|)^2, the published rule (Song et al. 2021, algorithms 4 and 5).

    Norms are over each sample; with `batch_norm` they are the means over the batch, as published: a sample then depends
    on its batch mates (those on its device).

    For images: the rule is unbounded where the score vanishes, which in few dimensions it does.  On an exact VE
    Gaussian with snr 0.16 the variance is wrong by orders of magnitude in 1 and 2 dimensions, by a factor of 1.6 in 8
    and 1.1 in 64; use AnnealedLangevin there.  In many dimensions it tends to 1 + snr^2 times what it should be: a
    fixed snr leaves a bias.

    snr: signal-to-noise ratio.
    levels: where given, alpha = 1 - beta(t)/levels for VP, the published form with that many discrete levels; for any
        SDE 1 + 2 a(t)/levels with a the drift's factor, which is 1 for VE.  Unless given, alpha = 1.
    steps: Langevin steps at each time.
    """

    batch_norm: bool = static(False)

    def root(self, sigma, score, noise):
        norms = [norm(v) for v in (noise, score)]
        if self.batch_norm:
            norms = [jnp.full_like(lengths, lengths.mean()) for lengths in norms]
        return 2**0.5 * self.snr * norms[0] / norms[1]


class AnnealedLangevin(Corrector):
    """Langevin steps of size e = 2 alpha (snr sigma(t))^2, as in NCSN (Song & Ermon 2019, algorithm 1).

    snr, levels, steps: as for Langevin.
    """

    def root(self, sigma, score, noise):
        return jnp.full(score.shape[:1], 2**0.5 * self.snr * sigma)


class PredictorCorrector(Sampler):
    """Predictor-corrector sampling: each step of any sampler, followed by a corrector at its end (Song et al., alg. 1).

    predictor: any sampler; None leaves the state as it is, so that the corrector alone samples.
    corrector: any corrector.
    corrector_first: correct at the beginning of each step instead, as the published code does (the last state is then
        not corrected).
    """

    predictor: Sampler | None = ReverseDiffusion()
    corrector: Corrector = Langevin()
    corrector_first: bool = static(False)

    def plan(self, sde, times):
        return one_row_per_step(times) if self.predictor is None else self.predictor.plan(sde, times)

    def evaluations(self, plan):
        predictor = 0 if self.predictor is None else self.predictor.evaluations(plan)
        return predictor + int(plan.last.sum()) * self.corrector.steps

    def start(self, x, plan):
        return () if self.predictor is None else self.predictor.start(x, plan)

    def advance(self, sde: AffineSDE, score: Score, x: State, memory: Any, row: Row, draw: Draw) -> tuple[State, Any]:
        def predict(x, memory):
            return (x, memory) if self.predictor is None else self.predictor.advance(sde, score, x, memory, row, draw)

        def correct(here, x, t):
            return jax.lax.cond(here, lambda x: self.corrector.correct(sde, score, x, t, draw), lambda x: x, x)

        if self.corrector_first:
            return predict(correct(row.first, x, row.t), memory)
        x, memory = predict(x, memory)
        return correct(row.last, x, row.t_next), memory
