"""Multistep solvers of the probability flow: one evaluation per step, earlier ones used again.

A formula of order q uses q evaluations, and its starting values must have a local error of order q.  So the first steps
here are single-step ones of order q - 1, with stages of their own.  The published solvers start with order 1 and raise
it step by step, which caps the order of the whole solve at 2; `published=True` does as they do.  It saves 1 to 4
evaluations, which up to some 30 of them is worth more than the order (experiments/samplers.md).
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.sampling import exponential
from score_sde.sampling.exponential import (
    DATA,
    NOISE,
    DataForm,
    Form,
    Levels,
    chain,
    gap,
    lagrange,
    row,
    singlestep,
)
from score_sde.sampling.probability_flow import Deterministic
from score_sde.sampling.sampler import LinearRow, LinearSampler, check_choice, check_range
from score_sde.sdes import AffineSDE
from score_sde.trees import Number, is_concrete, static

# weights(steps, n): of the n F's at the starts of `steps`, of the steps before them, ...
Weights = Callable[[np.ndarray, int], list[Array]]


def multistep(
    form: Form,
    sde: AffineSDE,
    at: Levels,
    order: int,
    weights: Weights,
    *,
    singles: int,
    correct: Weights | None = None,
    noise: Array | None = None,
) -> LinearRow:
    """The rows of a solver that uses `order` F's, on a grid with levels `at`.

    The first `singles` steps are single ones of order singles + 1; those after use as many F's as there are by then.
    `correct(steps, n)`, where given, are the weights of the n F's at the ends, the starts, ... of `steps`: what `steps`
    would have added had the F at their end been known.  The next row knows it and adds the difference.  `noise` is the
    standard deviation of what each step draws.
    """

    def block(steps: np.ndarray, n: int, corrected: bool) -> LinearRow:
        now, then = at[steps], at[steps + 1]
        decay, used = form.decay(now, then), weights(steps, n)
        if corrected:
            before = min(int(steps[0]), order)  # the number of F's that the last step used
            change = correct(steps - 1, before + 1)
            for j, weight in enumerate(weights(steps - 1, before)):
                change[j + 1] = change[j + 1] - weight
            used += [jnp.zeros_like(decay)] * (len(change) - len(used))
            used = [w + decay * c for w, c in zip(used, change, strict=True)]
        return row(form, now, then, steps, decay, used, noise=None if noise is None else noise[steps])

    steps = np.arange(at.t.size - 1)
    head = steps[: max(order, singles) + 1]  # the steps that differ from all that follow
    blocks = []
    if singles and steps.size:
        alone = head[:singles]
        blocks.append(singlestep(form, sde, at[alone], at[alone + 1], alone, singles + 1))
    for n in range(singles, head.size):
        blocks.append(block(head[n : n + 1], min(n + 1, order), correct is not None and n > singles))
    if steps.size > head.size:
        blocks.append(block(steps[head.size :], order, correct is not None))
    return chain(blocks)


def _second_order(at: Levels, scale: Callable[[Array], Array], form: DataForm = DATA) -> Weights:
    """Weights of n <= 2 data predictions: a constant, and half of `scale(h)` times the slope through the last two."""

    def weights(steps, n):
        now, then = at[steps], at[steps + 1]
        whole = form.total(now, then)
        if n == 1:
            return [whole]
        h = gap(now, then)
        change = 0.5 * then.alpha * scale(h) * h / gap(at[steps - 1], now)
        change = jnp.where(jnp.isfinite(h), change, 0)  # where no noise is left, the last prediction is all
        return [whole + change, -change]

    return weights


def _adams(form: Form, sde, at: Levels, variable: exponential.Variable = exponential.log_snr) -> Weights:
    """Weights of n F's: the polynomial of degree n - 1 through them, integrated exactly."""

    def weights(steps, n):
        return lagrange(form, sde, at[steps], at[steps + 1], [at[steps - j] for j in range(n)], variable)

    return weights


def _bh2(h: Array) -> Array:
    return -jnp.expm1(-h)


class DPMSolverPP(Deterministic):
    """DPM-Solver++ (1, 2M, 3M): multistep exponential solver in log-SNR on the predicted data.

    Order 2 is the published 2M.  Order 3 integrates the parabola through the last three predictions, and has that order
    (the exponential Adams-Bashforth method); the published 3M takes half of its curvature, which makes it of order 2,
    and is `published=True` (Lu et al. 2022, DPM-Solver++, algorithm 2 and appendix).
    """

    order: int = static(2)
    published: bool = static(False)

    def check(self):
        check_choice(self, "order", (1, 2, 3))

    def plan(self, sde, times):
        at = exponential.levels(sde, times)
        if self.order < 3:
            return multistep(DATA, sde, at, self.order, _second_order(at, _bh2), singles=0)
        line, adams = _second_order(at, _bh2), _adams(DATA, sde, at)

        def published(steps, n):
            if n < 3:
                return line(steps, n)
            return [w - half for w, half in zip(adams(steps, 3), _half_curvature(at, steps), strict=True)]

        weights, singles = (published, 0) if self.published else (adams, 1)
        return multistep(DATA, sde, at, 3, weights, singles=singles)


def _half_curvature(at: Levels, steps: np.ndarray) -> list[Array]:
    """Half of what the second-degree term of the parabola through the last three data predictions adds."""
    now, then = at[steps], at[steps + 1]
    h, u, _ = exponential.quadrature(now, then)
    moment = (DATA.kernel(now, then) * (h[:, None] * u) ** 2).sum(1)
    h1, h2 = gap(at[steps - 1], now), gap(at[steps - 2], at[steps - 1])
    half = 0.5 * jnp.where(then.sigma > 0, moment, 0)
    return [half / (h1 * (h1 + h2)), -half / (h1 * h2), half / (h2 * (h1 + h2))]


class DEIS(Deterministic):
    """DEIS (tAB): exponential Adams-Bashforth on the predicted noise, `order` points (Zhang & Chen 2023, section 3).

    The polynomial is one in `variable`: "t" (theirs), "rho" = sigma/alpha (then it is the linear multistep method, LMS)
    or "log_snr".  Coefficients by Gauss quadrature, to rounding.
    """

    order: int = static(3)
    variable: str = static("t")
    published: bool = static(False)

    def check(self):
        check_choice(self, "order", (1, 2, 3, 4))
        check_choice(self, "variable", tuple(exponential.VARIABLES))

    def plan(self, sde, times):
        at = exponential.levels(sde, times)
        weights = _adams(NOISE, sde, at, exponential.VARIABLES[self.variable])
        singles = 0 if self.published else max(self.order - 2, 0)
        return multistep(NOISE, sde, at, self.order, weights, singles=singles)


class IPNDM(Deterministic):
    """Improved PNDM: DDIM's step with the noise extrapolated by Adams-Bashforth weights for equal steps.

    The weights disregard how the steps are spaced and what the exponential makes of them, so the order is 2 whatever
    `order`, and the error at some 5 to 10 steps is hard to beat (Zhang & Chen 2023, section 3; Liu et al. 2022, PNDM).
    Starts with lower orders.
    """

    order: int = static(4)

    def check(self):
        check_choice(self, "order", (1, 2, 3, 4))

    def plan(self, sde, times):
        at = exponential.levels(sde, times)
        coefficients = {
            1: (1,),
            2: (3 / 2, -1 / 2),
            3: (23 / 12, -16 / 12, 5 / 12),
            4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
        }

        def weights(steps, n):
            whole = NOISE.total(at[steps], at[steps + 1])
            # where no noise is left, the last prediction is all
            return [jnp.where(at.sigma[steps + 1] > 0, c, float(j == 0)) * whole for j, c in enumerate(coefficients[n])]

        return multistep(NOISE, sde, at, self.order, weights, singles=0)


class SASolver(LinearSampler):
    """SA-Solver: stochastic exponential Adams methods on the predicted data (Xue et al. 2023, algorithm 1).

    A predictor through `order` points, and a corrector through `corrector_points`, the newest included (0: none), which
    costs no evaluation.  Parabolas and cubics are integrated exactly; lines, as published, without the exponential.

    tau: strength of the noise: 0 (the default) solves the probability flow, 1 the reverse SDE.

    Starts with lower orders, as published; UniPC and DPMSolverPP start better.
    """

    order: int = static(3)
    corrector_points: int = static(3)
    tau: Number = 0.0

    def check(self):
        check_choice(self, "order", (1, 2, 3))
        check_choice(self, "corrector_points", (0, 2, 3, 4))
        check_range(self, "tau", 0, np.inf)
        if self.corrector_points > self.order + 1:
            raise ValueError(
                f"SASolver: corrector_points must be at most order + 1 = {self.order + 1}, got {self.corrector_points}."
            )

    @property
    def deterministic(self):
        return is_concrete(self.tau) and self.tau == 0

    def plan(self, sde, times):
        at, form = exponential.levels(sde, times), DataForm(self.tau)

        def scale(h):
            return (1 + self.tau**2) * h

        line, adams = _second_order(at, scale, form), _adams(form, sde, at)

        def predict(steps, n):
            return line(steps, n) if n < 3 else adams(steps, n)

        def correct(steps, n):  # the F at the end comes first
            now, then, used = at[steps], at[steps + 1], min(n, self.corrector_points)
            if used == 2:
                half = 0.5 * then.alpha * scale(gap(now, then))
                return [half, form.total(now, then) - half] + [jnp.zeros_like(half)] * (n - 2)
            weights = lagrange(form, sde, now, then, [then, now, *(at[steps - j] for j in range(1, used - 1))])
            return weights + [jnp.zeros_like(weights[0])] * (n - used)

        return multistep(
            form, sde, at, self.order, predict,
            singles=0, correct=correct if self.corrector_points else None, noise=form.noise(at[:-1], at[1:]),
        )  # fmt: skip


class UniPC(Deterministic):
    """UniPC-p on the predicted data: a multistep predictor of `order` p, and a corrector that costs no evaluation.

    Once the network has been asked at the predicted point, that value corrects the step that led there (Zhao et al.
    2023, algorithms 1 and 2): order p + 1, or p without `corrector`.  In the predictor of order 3, and in the corrector
    from p = 2 on, B(h) drops out and these are the exponential Adams methods; `bh` chooses B(h) = h (1) or 1 - e^-h (2)
    where the published formulas take half of it in place of the integral.
    """

    order: int = static(3)
    corrector: bool = static(True)
    bh: int = static(2)
    published: bool = static(False)

    def check(self):
        check_choice(self, "order", (1, 2, 3))
        check_choice(self, "bh", (1, 2))

    def plan(self, sde, times):
        at = exponential.levels(sde, times)
        scale = _bh2 if self.bh == 2 else (lambda h: h)
        line, adams = _second_order(at, scale), _adams(DATA, sde, at)

        def predict(steps, n):
            return line(steps, n) if n < 3 else adams(steps, n)

        def correct(steps, n):  # the F at the end comes first
            now, then = at[steps], at[steps + 1]
            if n == 2:
                half = 0.5 * then.alpha * scale(gap(now, then))
                return [half, DATA.total(now, then) - half]
            return lagrange(DATA, sde, now, then, [then, now, *(at[steps - j] for j in range(1, n - 1))])

        reached = self.order + self.corrector
        singles = 0 if self.published else max(reached - 2, 0)
        return multistep(
            DATA, sde, at, self.order, predict, singles=singles, correct=correct if self.corrector else None
        )
