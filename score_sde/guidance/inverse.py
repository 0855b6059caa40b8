"""Scores of the posterior of a measurement, p(x_0 | y) with y = A x_0 + noise z.

The likelihood of x_t is p(y | x_t) = E[N(y; A x_0, noise^2 I) | x_t].  The score gives the posterior mean of the data
D(x) = E[x_0 | x_t = x] = (x + sigma^2 s)/alpha, and its Jacobian J their covariance, V = (sigma^2/alpha) J (Tweedie's
second order).  The methods differ in the V that they believe in,

    grad log p(y | x_t) ~ J^T A^T (A V A^T + noise^2 I)^-1 (y - A D(x)):

    method            V                       exact for                      networks per call (a backward pass is one)
    dps               0                       nothing, as t > 0              2
    pigdm             r_t^2 I                 an isotropic Gaussian          2
    moment_matching   (sigma^2/alpha) J       every Gaussian                 2 + iterations

Measured bias (tests/guidance/test_inverse.py), for the prior N(0, diag(1, 0.25)), y = x_1 + x_2 + 0.5 z at y = 1.5, by
the probability flow of VP(0.1, 40), solved to 1e-5.  The exact posterior has mean (1, 0.25) and standard deviations
(0.577, 0.456):

    method                  mean              standard deviations
    dps(noise=0.5)          (1.785, 0.095)    (0.362, 0.448)
    pigdm (variance 0.5)    (1.052, 0.245)    (0.568, 0.456)
    moment_matching         (1.000, 0.250)    (0.577, 0.456)

Linear systems are solved per sample by conjugate gradients; no norm is taken over the batch.  Derivatives of these
scores, of which `log_prob` takes some, want systems that are solved to rounding: they are nan where `iterations` do not
reach that, and then a likelihood does not converge.  `moment_matching` divides the rounding of the score by alpha(t)^2:
where that comes near the rounding (1e-7 in float32; VP(0.1, 20) ends at 4e-5), take float64.

Sources: Chung et al. 2023 (DPS), Song et al. 2023 (PiGDM), Boys et al. 2023 and Rozet et al. 2024 (moment matching).
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.arrays import PerSample, expand, rows, sum_event
from score_sde.guidance.guided import (
    State,
    Tilted,
    Times,
    check_finite,
    network_evaluations,
    numbers,
)
from score_sde.guidance.linear import solve
from score_sde.guidance.operators import Operator
from score_sde.sdes import AffineSDE, Score, evaluate
from score_sde.trees import Number, is_concrete, static


class Measured(Tilted):
    """A score and a measurement.  A subclass states `weigh`, how a residual counts."""

    sde: AffineSDE
    measure: Callable[[State], State]  # of the data (B, *event)
    y: Array | PerSample
    noise: Array | PerSample

    @abstractmethod
    def weigh(self, residual: State, covariance: Callable, noise: State, t: Times) -> tuple[Times, State]:
        """(l, u): the log-likelihood of a residual, up to constants, and the cotangent u of A D(x)."""
        raise TypeError(f"{type(self).__name__} must define weigh")

    def parts(self, x, t):
        alpha, variance = expand(self.sde.alpha(t), x), expand(jnp.square(self.sde.sigma(t)), x)

        def denoise(x):
            s = evaluate(self.score, x, t)
            return (x + variance * s) / alpha, s

        data, pull, s = jax.vjp(denoise, x, has_aux=True)
        predicted, adjoint = jax.vjp(self.measure, data)
        residual = rows(self.y, len(x)).astype(x.dtype) - predicted
        noise = expand(rows(self.noise, len(x)).astype(x.dtype), residual)

        def covariance(u):  # A V A^T u, V by Tweedie
            return self.measure(variance / alpha * pull(adjoint(u)[0])[0])

        def gram(u):  # A A^T u
            return self.measure(adjoint(u)[0])

        value, u = self.weigh(residual, covariance if self.tweedie else gram, noise, t)
        return s, value, pull(adjoint(u)[0])[0]

    tweedie = False  # whether `weigh` is given A V A^T instead of A A^T

    def log_normal(self, quadratic: Times, noise: State, residual: State) -> Times:
        """-quadratic/2 with the constants of N(0, noise^2 I) at as many numbers as are measured."""
        count = self.measure.rank if isinstance(self.measure, Operator) else residual[0].size
        per_number = jnp.log(jnp.square(noise)) + float(np.log(2 * np.pi))
        return -0.5 * quadratic - 0.5 * jnp.asarray(count, residual.dtype) * per_number.reshape(-1)

    def evaluations(self, t):
        return 2 * network_evaluations(self.score, t)

    def check_inputs(self, x):
        super().check_inputs(x)
        if isinstance(self.measure, Operator) and x.shape[1:] != self.measure.event:
            raise ValueError(
                f"{type(self.measure).__name__} is for samples of shape {self.measure.event}, got {x.shape[1:]}. "
                "Make it for the shape of the data."
            )
        got = self.y.values.shape[1:] if isinstance(self.y, PerSample) else self.y.shape
        wanted = jax.eval_shape(self.measure, x).shape[1:]
        if got != wanted:
            raise ValueError(f"expected y of shape (B, *{wanted}), as the measurement of x gives, got (B, *{got}).")


class DPS(Measured):
    """See `dps`."""

    step: Any

    def weigh(self, residual, covariance, noise, t):
        squared = sum_event(jnp.square(residual))
        if self.step is None:
            return self.log_normal(squared / jnp.square(noise).reshape(-1), noise, residual), residual / jnp.square(
                noise
            )
        norm = jnp.sqrt(jnp.maximum(squared, jnp.finfo(squared.dtype).tiny))
        rate = rows(self.step, len(t)).astype(norm.dtype) * (1000 / self.sde.T) / jnp.square(self.sde.diffusion(t))
        return -rate * norm, residual * expand(rate / norm, residual)


class PiGDM(Measured):
    """See `pigdm`."""

    prior_variance: Number
    iterations: int = static()

    def weigh(self, residual, gram, noise, t):
        sigma2, alpha2 = jnp.square(self.sde.sigma(t)), jnp.square(self.sde.alpha(t))
        prior = jnp.asarray(self.prior_variance, t.dtype)
        r2 = expand(sigma2 * prior / (alpha2 * prior + sigma2), residual)
        u = solve(lambda u: r2 * gram(u) + jnp.square(noise) * u, residual, self.iterations)
        return self.log_normal(sum_event(residual * u), noise, residual), u


class MomentMatching(Measured):
    """See `moment_matching`."""

    iterations: int = static()
    tweedie = True

    def weigh(self, residual, covariance, noise, t):
        # a learned Jacobian is not the covariance that it stands for, and not symmetric
        u = solve(lambda u: covariance(u) + jnp.square(noise) * u, residual, self.iterations, symmetric=False)
        return self.log_normal(sum_event(residual * u), noise, residual), u

    def evaluations(self, t):
        return (2 + self.iterations) * network_evaluations(self.score, t)


def dps(
    score: Score,
    sde: AffineSDE,
    measure: Callable[[State], State],
    y: State,
    noise: Number | None = None,
    *,
    step: Number | None = None,
) -> DPS:
    """Diffusion posterior sampling: the likelihood of the predicted data, for any differentiable measurement.

    With `noise`, s - grad |y - A D(x)|^2 / (2 noise^2) (Chung et al. 2023, eq. 16).  It is stiff where the noise is
    small; then with `step`, their algorithm 1: a step of length `step` down the gradient of the sample's own norm
    |y - A D(x)|, a thousand times in the SDE's time, as the score s - step (1000/T) / g^2 grad |y - A D(x)|, of which a
    sampler of the reverse SDE with n steps makes 1000/n of the published step in each.

    Never exact: see the table of this module.

    Args:
        score: `score(x, t)`.
        sde: the forward process that the score belongs to.
        measure: an operator of `score_sde.operators`, or any function of the data (B, *event) -> (B, *m).
        y: (B, *m), or (1, *m): the same for all.
        noise: standard deviation of the measurement, a number or one for each sample (B,).
        step: the published step length, about 0.3 to 1.

    Raises:
        ValueError: not one of noise and step; nan in y, or, before a solve, shapes that do not fit.
    """
    if (noise is None) == (step is None):
        raise ValueError(
            "dps: expected either noise or step. Give the standard deviation of the measurement, or a step."
        )
    level = numbers("noise", 1.0 if noise is None else noise)
    _check_noise(level, positive=True)
    return DPS(score, sde, measure, measurement(measure, y), level, None if step is None else numbers("step", step))


def pigdm(
    score: Score,
    sde: AffineSDE,
    operator: Operator,
    y: State,
    noise: Number,
    *,
    prior_variance: Number = 1.0,
    iterations: int = 20,
) -> PiGDM:
    """Pseudo-inverse guidance: the data given x_t taken as N(D(x), r_t^2 I).

    r_t^2 = v sigma^2/(alpha^2 v + sigma^2), the variance that x_t leaves of an isotropic prior of variance v =
    `prior_variance` (Song et al. 2023 take v = 1): exact for the prior N(m, v I).

    Args: as `dps`, with a linear operator, and
        noise: may be 0.
        iterations: of the conjugate gradients; one will do where A A^T is a multiple of a projection (mask, grey-scale,
            pooling), and they cost no network evaluation.  Derivatives, and so likelihoods, are nan where they are too
            few to solve the systems.

    Raises: as `dps`; ValueError also for a measurement that is not an operator.
    """
    if not (np.ndim(prior_variance) == 0 and (not is_concrete(prior_variance) or float(prior_variance) > 0)):
        raise ValueError(f"pigdm: prior_variance must be a positive number, got {prior_variance}.")
    return PiGDM(*_linear(score, sde, operator, y, noise, iterations), prior_variance, iterations)


def moment_matching(
    score: Score, sde: AffineSDE, operator: Operator, y: State, noise: Number, *, iterations: int = 10
) -> MomentMatching:
    """The data given x_t taken as Gaussian with mean D(x) and the full covariance (sigma^2/alpha) dD/dx.

    Exact for Gaussian priors, once `iterations` is at least the number of distinct eigenvalues of A V A^T.

    Args: as `pigdm`, and
        iterations: of the conjugate gradients, each a backward pass of the network; more may run under differentiation.

    Raises: as `pigdm`.
    """
    return MomentMatching(*_linear(score, sde, operator, y, noise, iterations), iterations)


def measurement(measure: Callable, y: State) -> Array | PerSample:
    """Checked measurements (B, *m), or one for all (1, *m), as scores keep them.

    Raises:
        ValueError: no axis of samples, nan, or the wrong shape for an operator.
    """
    y = jnp.asarray(y)
    if y.ndim < 1 or not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(f"expected measurements y (B, *m) in floating point, got shape {y.shape} of {y.dtype}.")
    if isinstance(measure, Operator):
        if y.shape[1:] != measure.output.shape:
            raise ValueError(
                f"{type(measure).__name__}: expected y of shape (B, *{measure.output.shape}), got {y.shape}. "
                "A measurement of one sample needs a first axis of 1."
            )
        y = measure.restrict(y)
    check_finite("y", y)
    return y[0] if y.shape[0] == 1 else PerSample(y)


def _linear(score, sde, operator, y, noise, iterations):
    if not isinstance(operator, Operator):
        raise ValueError(
            f"expected an operator of score_sde.operators, got {type(operator).__name__}. "
            "Wrap a linear function as operators.Function(event, fn); dps takes any."
        )
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}.")
    noise = numbers("noise", noise)
    _check_noise(noise, positive=False)
    return score, sde, operator, measurement(operator, y), noise


def _check_noise(noise: Array | PerSample, positive: bool) -> None:
    if is_concrete(noise):
        values = np.asarray(jax.tree.leaves(noise)[0])
        if not ((values > 0) if positive else (values >= 0)).all():
            raise ValueError(
                f"noise must be {'positive' if positive else 'at least 0'}, got {values.min()}. "
                "It is the standard deviation of the measurement."
            )
