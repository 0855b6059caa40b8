"""What all guided scores share: numbers per sample, scales in time, the count of networks, checks before a solve.

The score of the conditional law is grad log p_t(x) + grad log p_t(y | x).  A guided score adds some form of the second
term to the first, and is a score again: it goes with every sampler, with the probability flow and with `log_prob`.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from score_sde.arrays import PerSample, expand, rows
from score_sde.sdes import AffineSDE, Score, check_score, evaluate
from score_sde.trees import Frozen, Number, is_concrete

State = Float[Array, "b ..."]
Times = Float[Array, " b"]
Scale = Number | Callable[[Array], Array]  # a number, one for each sample (B,), or a function of the times (B,)


class NoiseInterval(Frozen):
    """The times t at which the log-SNR of an SDE is in [low, high]: where guidance acts (Kynkaanniemi et al. 2024)."""

    sde: AffineSDE
    low: Number = -jnp.inf
    high: Number = jnp.inf

    def check(self):
        if not np.all(np.asarray(self.low) < np.asarray(self.high)):
            raise ValueError(f"expected an interval low < high of log-SNR, got [{self.low}, {self.high}].")

    def __call__(self, t: Times) -> Array:
        log_snr = self.sde.log_snr(t)
        return (log_snr >= self.low) & (log_snr <= self.high)


class Guided(Frozen):
    """A score made of another one, `score`, and of what is known besides."""

    score: Score

    def evaluations(self, t: Times) -> Int[Array, " b"]:
        """How many network evaluations one call at times t costs each sample; a backward pass counts as one."""
        return network_evaluations(self.score, t)

    def check_inputs(self, x: Any) -> None:
        """Raise ValueError where states like x (a shape and a dtype) are not what this score is for."""
        check_score(self.score, x.shape, x.dtype)
        for name, value in vars(self).items():
            if isinstance(value, PerSample) and value.values.shape[0] != x.shape[0]:
                raise ValueError(
                    f"{type(self).__name__}: expected {name} for a batch of {x.shape[0]}, one for each sample or one "
                    f"for all; got {value.values.shape[0]}."
                )


class Tilted(Guided):
    """The score of p_t(x) exp(l(x, t)): s + grad l, where l is (close to) the log-likelihood of what is known."""

    @abstractmethod
    def parts(self, x: State, t: Times) -> tuple[State, Float[Array, " b"], State]:
        """(s, l, grad l) at x, at the cost of one call."""
        raise TypeError(f"{type(self).__name__} must define parts")

    def __call__(self, x: State, t: Times) -> State:
        s, _, gradient = self.parts(x, t)
        return s + gradient


def network_evaluations(score: Score, t: Times) -> Int[Array, " b"]:
    """How many networks a call of any score at times t (B,) evaluates, per sample: 1 unless it is a guided score.

    A solve's `nfe` counts calls of the score; the networks of a solve on a grid are the sum of this over its times.
    """
    count = getattr(score, "evaluations", None)
    return jnp.ones(t.shape, int) if count is None else count(t)


def numbers(name: str, value: Number, dtype: Any = None) -> Array | PerSample:
    """A number, or one for each sample (B,), finite."""
    value = jnp.asarray(value, dtype)
    if value.ndim > 1:
        raise ValueError(f"expected {name} to be one number or one for each sample (B,), got shape {value.shape}.")
    check_finite(name, value)
    return PerSample(value) if value.ndim else value


def check_finite(name: str, value: Array) -> None:
    """Raise ValueError where values, if concrete, are nan or infinite."""
    if is_concrete(value) and not np.isfinite(np.asarray(value)).all():
        raise ValueError(f"expected finite values of {name}, got nan or infinite ones.")


def scales(scale: Scale) -> Array | PerSample | Callable:
    """A scale as guided scores keep it."""
    return scale if callable(scale) else numbers("scale", scale)


def scale_at(scale: Any, interval: NoiseInterval | None, neutral: float, x: State, t: Times) -> Times:
    """Each sample's scale at its time, `neutral` outside of the interval."""
    value = jnp.broadcast_to(scale(t), t.shape) if callable(scale) else rows(scale, len(x))
    value = value.astype(x.dtype)
    return value if interval is None else jnp.where(interval(t), value, jnp.asarray(neutral, x.dtype))


@jax.custom_batching.custom_vmap
def anywhere(flags: Array) -> Array:
    """Whether any flag of the batch is set: one answer, also where solvers map over samples.

    `lax.cond` needs it: mapped over a predicate per sample, it would run both of its branches.
    """
    return jnp.any(flags)


@anywhere.def_vmap
def _anywhere(axis_size, in_batched, flags):
    return anywhere(flags), False


def combine(weights: Times, a: State, b: State) -> State:
    """a + weights (b - a), one weight per sample."""
    return a + expand(weights, a) * (b - a)


def score_of(score: Score, x: State, t: Times) -> Callable[[], State]:
    """The evaluation of a score, for branches of `lax.cond`."""
    return lambda: evaluate(score, x, t)
