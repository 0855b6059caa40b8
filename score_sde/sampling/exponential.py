"""Steps that solve the linear part of the probability flow exactly.

With rho = sigma/alpha and lambda = -log rho (half the log-SNR), the flow from a level (alpha, sigma) to a level
(alpha', sigma'), h = lambda' - lambda, is for every AffineSDE

    x' = (alpha'/alpha) x + alpha' * integral of eps(x, rho) d rho                           eps: predicted noise
    x' = (sigma'/sigma) x + alpha' * integral over u in [0, h] of e^(u - h) D(x, lambda + u) D: predicted data

(Lu et al. 2022, DPM-Solver, prop. 3.1; DPM-Solver++, eq. 8).  Solvers differ in how they replace eps or D by a
polynomial through known values: their weights are integrals of Lagrange polynomials against the exponential, which
Gauss-Legendre quadrature gives to rounding for any spacing of the nodes.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_sde.sampling.sampler import LinearRow
from score_sde.sdes import AffineSDE
from score_sde.trees import Frozen, Number

Values = Float[Array, " n"]

_NODES, _WEIGHTS = (0.5 * part for part in np.polynomial.legendre.leggauss(32))
_NODES = _NODES + 0.5  # on [0, 1]


class Levels(Frozen):
    """Noise levels at some times."""

    t: Values
    alpha: Values
    sigma: Values
    log_alpha: Values

    @property
    def rho(self) -> Values:
        """sigma/alpha, the noise level of x/alpha (EDM's sigma)."""
        return self.sigma / self.alpha

    def __getitem__(self, index) -> "Levels":
        return Levels(self.t[index], self.alpha[index], self.sigma[index], self.log_alpha[index])


def levels(sde: AffineSDE, t: Values) -> Levels:
    """The noise levels of an SDE at times t."""
    return Levels(t, sde.alpha(t), sde.sigma(t), sde.log_alpha(t))


def steps_of(sde: AffineSDE, times: Values) -> tuple[Levels, Levels, np.ndarray]:
    """The levels at the start and at the end of each step of a grid, and the steps' numbers."""
    at = levels(sde, times)
    return at[:-1], at[1:], np.arange(times.size - 1)


def gap(now: Levels, then: Levels) -> Values:
    """h = lambda' - lambda, from ratios: the difference of two logarithms loses digits where levels are close."""
    return jnp.log(now.sigma / then.sigma) + (then.log_alpha - now.log_alpha)


def finite(h: Values) -> Values:
    """h, and 1 in place of an infinite one, where the step ends without noise: there sigma' = 0 is all that counts."""
    return jnp.where(jnp.isfinite(h), h, 1)


def noise_over_root(strength: Number, h: Values) -> Values:
    """sqrt((1 - e^(-2 s h))/s), s the strength of a step's noise: smooth at 0, as its product with sqrt(s) is not.

    Steps up the flow (h < 0) are for strength 0 alone; what stands here is multiplied by that.
    """
    h = jnp.where(h > 0, finite(h), 1)
    u = 2 * strength * h
    some = jnp.where(u == 0, 1, u)
    share = jnp.where(u == 0, 1 - u / 2 + u**2 / 6, -jnp.expm1(-some) / some)
    return jnp.sqrt(2 * h * share)


def noisy(now: Levels, then: Levels) -> Levels:
    """`then`, or `now` where `then` has no noise, so that no score can be asked for."""
    return jax.tree.map(lambda a, b: jnp.where(then.sigma > 0, b, a), now, then)


def between(sde: AffineSDE, now: Levels, then: Levels, fraction: float) -> Levels:
    """The level at this fraction of the way in log-SNR (`now` itself where `then` has no noise)."""
    h = gap(now, then)
    t = sde.inverse_log_snr(2 * (now.log_alpha - jnp.log(now.sigma) + fraction * h))
    t = jnp.clip(t, jnp.minimum(now.t, then.t), jnp.maximum(now.t, then.t))  # rounding
    return levels(sde, jnp.where(jnp.isfinite(h), t, now.t))


class Form(Frozen):
    """How a solver writes the flow: with predicted noise, or with predicted data."""

    def gains(self, at: Levels) -> tuple[Values, Values]:
        """(p, r) that make F = p x + r score the quantity predicted."""
        raise TypeError

    def decay(self, now: Levels, then: Levels) -> Values:
        """The factor of x."""
        raise TypeError

    def total(self, now: Levels, then: Levels) -> Values:
        """The weight of a constant F: the integral of the kernel."""
        raise TypeError

    def kernel(self, now: Levels, then: Levels) -> Float[Array, "n k"]:
        """The kernel at the quadrature nodes, times the quadrature weights."""
        raise TypeError


class NoiseForm(Form):
    def gains(self, at):
        return jnp.zeros_like(at.t), -at.sigma

    def decay(self, now, then):
        return then.alpha / now.alpha

    def total(self, now, then):
        return then.alpha * (then.rho - now.rho)

    def kernel(self, now, then):
        h, u, weights = quadrature(now, then)
        return -(then.alpha * now.rho * h)[:, None] * jnp.exp(-h[:, None] * u) * weights


class DataForm(Form):
    """With noise of strength `tau`: the exact step of the reverse SDE whose marginals are the flow's (Xue et al. 2023).

    x' = (sigma'/sigma) e^(-tau^2 h) x + (1 + tau^2) alpha' * integral of e^((1 + tau^2)(u - h)) D
         + sigma' sqrt(1 - e^(-2 tau^2 h)) z
    """

    tau: Number = 0.0

    def _noise_h(self, h):
        return self.tau**2 * finite(h)

    def gains(self, at):
        return 1 / at.alpha, at.sigma**2 / at.alpha

    def decay(self, now, then):
        return then.sigma / now.sigma * jnp.exp(-self._noise_h(gap(now, then)))

    def total(self, now, then):
        h = gap(now, then)
        return -then.alpha * jnp.expm1(-h - self._noise_h(h))

    def kernel(self, now, then):
        h, u, weights = quadrature(now, then)
        rate = (1 + self.tau**2) * h
        return (then.alpha * rate)[:, None] * jnp.exp(-rate[:, None] * (1 - u)) * weights

    def noise(self, now: Levels, then: Levels) -> Values:
        """The standard deviation of the noise drawn."""
        return then.sigma * self.tau * noise_over_root(self.tau**2, gap(now, then))


def quadrature(now: Levels, then: Levels) -> tuple[Values, Array, Array]:
    """h (0 where it is infinite), the nodes on [0, 1] and their weights."""
    h = gap(now, then)
    u, weights = (jnp.asarray(part, h.dtype)[None] for part in (_NODES, _WEIGHTS))
    return jnp.where(jnp.isfinite(h), h, 0), u, weights


# The variables in which Lagrange polynomials may be taken: value at a level, relative to `now`, and on the way.
Variable = Callable[[AffineSDE, Levels, Levels | Array], Array]


def log_snr(sde: AffineSDE, now: Levels, at: Levels | Array) -> Array:
    """lambda."""
    return gap(now, at) if isinstance(at, Levels) else at


def rho(sde: AffineSDE, now: Levels, at: Levels | Array) -> Array:
    """sigma/alpha, in units of its value now."""
    return at.rho / now.rho - 1 if isinstance(at, Levels) else jnp.expm1(-at)


def time(sde: AffineSDE, now: Levels, at: Levels | Array) -> Array:
    """t."""
    if isinstance(at, Levels):
        return at.t - now.t
    start = (now.log_alpha - jnp.log(now.sigma))[:, None]
    return sde.inverse_log_snr(2 * (start + at)) - now.t[:, None]


def lagrange(
    form: Form, sde: AffineSDE, now: Levels, then: Levels, nodes: Sequence[Levels], variable: Variable = log_snr
) -> list[Values]:
    """The weights of F at `nodes`: integrals of the kernel times each Lagrange polynomial in `variable`.

    Where `then` has no noise at all (h infinite) all weight is on the first node.
    """
    if len(nodes) == 1:
        return [form.total(now, then)]
    h, u, _ = quadrature(now, then)
    kernel, on_the_way = form.kernel(now, then), variable(sde, now, h[:, None] * u)
    at = [variable(sde, now, node) for node in nodes]
    weights = []
    for j, here in enumerate(at):
        product = kernel
        for k, other in enumerate(at):
            if k != j:
                product = product * (on_the_way - other[:, None]) / (here - other)[:, None]
        weights.append(product.sum(1))
    whole = form.total(now, then)
    proper = (then.sigma > 0) & (h != 0)
    return [jnp.where(proper, w, whole if j == 0 else jnp.zeros_like(w)) for j, w in enumerate(weights)]


NOISE, DATA = NoiseForm(), DataForm()
VARIABLES = {"t": time, "rho": rho, "log_snr": log_snr}


def row(
    form: Form,
    at: Levels,
    then: Levels,
    steps: np.ndarray,
    decay: Values,
    weights: Sequence[Values],
    *,
    first: bool = True,
    last: bool = True,
    noise: Values | None = None,
) -> LinearRow:
    """Rows of equal kind, one per step in `steps`: F at `at`, the new state at `then`.

    F is remembered where the row begins a step: stages use what their step began with.
    """
    flag = np.ones(steps.size, bool)
    return LinearRow(
        at.t, then.t, steps, flag & first, flag & last, form.gains(at), decay, jnp.stack(weights, 1), noise,
        flag & first,
    )  # fmt: skip


def singlestep(form: Form, sde: AffineSDE, now: Levels, then: Levels, steps: np.ndarray, order: int) -> LinearRow:
    """Steps with `order` stages of their own (DPM-Solver-1, -2, -3 and DPM-Solver++ 1S, 2S, 3S).

    Stages stand at 1/2 (order 2), and at 1/3 and 2/3 (order 3) of the step in log-SNR.  Order 2 gives the whole weight
    to the midpoint; order 3 takes the line through the start and the last stage.
    """
    if order == 1:
        return row(form, now, then, steps, form.decay(now, then), [form.total(now, then)])
    fractions = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}[order]
    stages = [between(sde, now, then, fraction) for fraction in fractions]
    rows = [row(form, now, stages[0], steps, form.decay(now, stages[0]), [form.total(now, stages[0])], last=False)]
    for at, goal in zip(stages, [*stages[1:], then], strict=True):
        if order == 2:
            start, stage = jnp.zeros_like(at.t), form.total(now, goal)
        else:
            start, stage = lagrange(form, sde, now, goal, [now, at])
        rows.append(row(form, at, goal, steps, form.decay(now, goal), [stage, start], first=False, last=goal is then))
    return interleave(rows)


def interleave(rows: Sequence[LinearRow]) -> LinearRow:
    """The rows of each step's stages, step after step."""
    return _join(rows, lambda xp, parts: xp.stack(parts, 1).reshape(-1, *parts[0].shape[1:]))


def chain(rows: Sequence[LinearRow]) -> LinearRow:
    """Rows after one another."""
    return _join(rows, lambda xp, parts: xp.concatenate(parts))


def _join(rows: Sequence[LinearRow], join: Callable) -> LinearRow:
    width = max(row.weights.shape[1] for row in rows)
    rows = [
        dataclasses.replace(row, weights=jnp.pad(row.weights, ((0, 0), (0, width - row.weights.shape[1]))))
        for row in rows
    ]
    return jax.tree.map(lambda *parts: join(np if isinstance(parts[0], np.ndarray) else jnp, parts), *rows)
