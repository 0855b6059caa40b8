"""Single-step solvers of the probability flow dx/dt = a x - g^2 s/2: each step starts from the last state alone.

Deterministic, so samples are a smooth function of their starting noise, and steps can be retraced (`encode`).
"""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from score_sde.sampling.exponential import DATA, NOISE, interleave, singlestep, steps_of
from score_sde.sampling.predictors import heun_rows
from score_sde.sampling.sampler import LinearRow, LinearSampler, check_choice
from score_sde.trees import static


class Deterministic(LinearSampler):
    """A sampler that draws no noise."""

    @property
    def deterministic(self):
        return True


# Nodes and rows of Butcher's tableaux; the last row is the weights.
_TABLEAUX = {
    1: ([0], [[1]]),
    2: ([0, "1/2"], [["1/2"], [0, 1]]),  # midpoint
    3: ([0, "1/2", 1], [["1/2"], [-1, 2], ["1/6", "2/3", "1/6"]]),  # Kutta
    4: ([0, "1/2", "1/2", 1], [["1/2"], [0, "1/2"], [0, 0, 1], ["1/6", "1/3", "1/3", "1/6"]]),
}


class RungeKutta(Deterministic):
    """Classical Runge-Kutta in t: Euler, the midpoint rule, Kutta's third-order method and the fourth-order one.

    `order` evaluations per step.  They treat the linear drift like any other; for VE and at few steps the exponential
    solvers (DDIM, DPMSolver and the rest) are far better.
    """

    order: int = static(4)

    def check(self):
        check_choice(self, "order", tuple(_TABLEAUX))

    def plan(self, sde, times):
        nodes, rows = _TABLEAUX[self.order]
        t, dt, steps = times[:-1], times[1:] - times[:-1], np.arange(times.size - 1)
        noiseless = sde.sigma(times[1:]) == 0  # the flow at no noise is the score's limit: stay a rounding away
        stages = []
        for i, coefficients in enumerate(rows):
            last = i == len(rows) - 1
            at = t + float(Fraction(nodes[i])) * dt
            at = jnp.where(noiseless & (at == times[1:]), t, at)
            goal = times[1:] if last else t + float(Fraction(nodes[i + 1])) * dt
            weights = jnp.stack([float(Fraction(c)) * dt for c in reversed(coefficients)], 1)
            gains = sde.drift_factor(at), -0.5 * jnp.square(sde.diffusion(at))
            flag = np.ones(steps.size, bool)
            stages.append(
                LinearRow(at, goal, steps, flag & (i == 0), flag & last, gains, jnp.ones_like(t), weights, None, flag)
            )
        return interleave(stages)


class ProbabilityFlowEuler(RungeKutta):
    """Euler's method on the probability flow in t: x <- x + (a x - g^2 s/2) dt.  Order 1."""

    order: int = static(1)

    def check(self):
        check_choice(self, "order", (1,))


class Heun(Deterministic):
    """EDM's deterministic sampler: Heun's method in rho = sigma/alpha on x/alpha, d(x/alpha)/d rho = predicted noise.

    Order 2, two evaluations per step (Karras et al. 2022, algorithm 1; theirs ends with an Euler step to sigma = 0,
    which is `denoise=True` here).
    """

    def plan(self, sde, times):
        return heun_rows(*steps_of(sde, times))


class DPMSolver(Deterministic):
    """DPM-Solver-1, -2, -3: single-step exponential solvers in log-SNR on the predicted noise.

    `order` evaluations per step (Lu et al. 2022, algorithms 1 and 2; order 1 is DDIM).
    """

    order: int = static(3)

    def check(self):
        check_choice(self, "order", (1, 2, 3))

    def plan(self, sde, times):
        return singlestep(NOISE, sde, *steps_of(sde, times), self.order)


class DPMSolverPP2S(Deterministic):
    """DPM-Solver++(2S): DPM-Solver-2 on the predicted data instead of the noise (Lu et al. 2022, DPM-Solver++, alg. 1).

    Order 2, two evaluations per step; steadier than DPMSolver at few steps and under guidance.
    """

    def plan(self, sde, times):
        return singlestep(DATA, sde, *steps_of(sde, times), 2)
