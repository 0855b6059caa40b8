"""Solvers of the reverse SDE.

dx = (a x - g^2 s) dt + g dw, run from noise to data, has the marginals of the forward process (Song et al. 2021, eq.
6); so has every mixture of it with the probability flow, which is what `eta` and churn choose from.  The noise is
additive: Euler-Maruyama converges strongly with order 1, and weakly with order 1, as do all others here but
SDEDPMSolverPP(order=2) and EDMStochastic, which have weak order 2.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.sampling.exponential import (
    DATA,
    NOISE,
    Levels,
    finite,
    gap,
    interleave,
    levels,
    noise_over_root,
    noisy,
    row,
    steps_of,
)
from score_sde.sampling.sampler import LinearRow, LinearSampler, check_choice, check_range, one_row_per_step
from score_sde.sdes import AffineSDE
from score_sde.trees import Number, is_concrete, static


class EulerMaruyama(LinearSampler):
    """Euler-Maruyama on the reverse SDE: x <- x + (a x - g^2 s) dt + g sqrt(|dt|) z.

    Takes hundreds of steps; a safe baseline for every SDE.
    """

    def plan(self, sde, times):
        t, dt = times[:-1], times[1:] - times[:-1]
        variance = jnp.square(sde.diffusion(t))
        return _score_row(times, 1 + dt * sde.drift_factor(t), -dt * variance, jnp.sqrt(-dt * variance))


class ReverseDiffusion(LinearSampler):
    """The forward SDE's own discretisation, reversed: x <- (2 - m) x + v s + sqrt(v) z.

    x_t given x_t' at the earlier time t' is N(m x_t', v): m = alpha/alpha', v = sigma^2 - m^2 sigma'^2.  For VE this is
    SMLD's chain (Song et al. 2021, eq. 46 and appendix E).

    published: m and v of the published chains.  For VP they are DDPM's, v = beta_i, and agree in the limit of small
        steps; in 1000 they differ by up to 2e-3.
    """

    published: bool = static(False)

    def plan(self, sde, times):
        m, v = _transition(sde, times, self.published)
        return _score_row(times, 2 - m, v, jnp.sqrt(v))


class DDIM(LinearSampler):
    """DDIM with noise `eta`: from the predicted data D and noise eps, x <- alpha' D + sqrt(sigma'^2 - c^2) eps + c z.

    c = eta sigma' sqrt(1 - rho'^2/rho^2), rho = sigma/alpha.  eta = 0 (the default) is the first-order exponential
    solver of the probability flow, eta = 1 ancestral sampling (Song, Meng & Ermon 2021, eq. 12).
    """

    eta: Number = 0.0

    def check(self):
        check_range(self, "eta", 0, 1)

    @property
    def deterministic(self):
        return is_concrete(self.eta) and self.eta == 0

    def plan(self, sde, times):
        now, then, steps = steps_of(sde, times)
        h, shrunk = gap(now, then), jnp.expm1(-2 * gap(now, then))
        log_keep = 0.5 * jnp.log1p(self.eta**2 * shrunk)  # of the predicted noise, for the noise that is drawn
        decay = then.sigma / now.sigma * jnp.exp(log_keep)
        weight = -then.alpha * jnp.expm1(log_keep - h)
        noise = then.sigma * self.eta * noise_over_root(1.0, h)
        return row(DATA, now, then, steps, decay, [weight], noise=noise)


class Ancestral(LinearSampler):
    """Ancestral sampling: a draw of q(x_t' | x_t, x_0 = D), D the predicted data.

    x <- (x + v s)/m + sqrt(v) (sigma'/sigma) z with m, v of ReverseDiffusion: SMLD's form for VE, DDPM's for VP
    (Song et al. 2021, eq. 47; Ho et al. 2020, eq. 7).  The same as DDIM(eta=1).

    forward_variance: draw with variance v, the other published choice of DDPM (and of the published VP samplers),
        too large at the last step; it wants `denoise=True`.
    published: m and v of the published chains, as in ReverseDiffusion.
    """

    forward_variance: bool = static(False)
    published: bool = static(False)

    def plan(self, sde, times):
        now, then, _ = steps_of(sde, times)
        m, v = _transition(sde, times, self.published)
        if self.published:
            shrink = 1 if self.forward_variance else then.sigma / now.sigma
            return _score_row(times, 1 / m, v / m, jnp.sqrt(v) * shrink)
        plan = DDIM(1.0).plan(sde, times)
        return dataclasses.replace(plan, noise=jnp.sqrt(v)) if self.forward_variance else plan


class SDEDPMSolverPP(LinearSampler):
    """SDE-DPM-Solver++ of order 1 or 2 (multistep): exponential steps of the reverse SDE in log-SNR, data frozen.

    x <- (sigma'/sigma) e^(-eta h) x + alpha' (1 - e^(-(1 + eta) h)) D* + sigma' sqrt(1 - e^(-2 eta h)) z, D* = D for
    order 1 and D + (D - D_1) h/(2 h_1) for order 2, D_1 the last step's prediction and h_1 its length.

    eta: strength of the noise; 1 is the reverse SDE, 0 DPM-Solver++ (Lu et al. 2022, DPM-Solver++, appendix A).  The
        noise is proportional to its root, so the derivative in it is infinite at 0.
    """

    order: int = static(2)
    eta: Number = 1.0

    def check(self):
        check_choice(self, "order", (1, 2))
        check_range(self, "eta", 0, np.inf)

    @property
    def deterministic(self):
        return is_concrete(self.eta) and self.eta == 0

    def plan(self, sde, times):
        now, then, steps = steps_of(sde, times)
        h = gap(now, then)
        extra = self.eta * finite(h)
        decay = then.sigma / now.sigma * jnp.exp(-extra)
        whole = -then.alpha * jnp.expm1(-h - extra)
        noise = then.sigma * jnp.sqrt(self.eta) * noise_over_root(self.eta, h)
        weights = [whole]
        if self.order == 2:
            slope = jnp.concatenate([jnp.zeros_like(h[:1]), 0.5 * h[1:] / h[:-1]])
            slope = jnp.where(jnp.isfinite(slope), slope, 0)
            weights = [whole * (1 + slope), -whole * slope]
        return row(DATA, now, then, steps, decay, weights, noise=noise)


class EDMStochastic(LinearSampler):
    """EDM's stochastic sampler: each step adds noise ("churn"), then goes down by Heun (Karras et al. 2022, alg. 2).

    In x/alpha, whose noise level is rho = sigma/alpha: rho is raised to (1 + gamma) rho, gamma =
    min(s_churn/N, sqrt(2) - 1) where s_min <= rho <= s_max, by noise of s_noise times the standard deviation that
    takes.  N counts the step to rho = 0, as published: it is `steps`, or steps + 1 for a grid that ends above rho = 0,
    which leaves that step to `denoise`.  The level never exceeds that of t_max, and the first step has no churn: the
    published sampler asks the network for levels that no training has seen.

    Two evaluations per step.  On the way states carry the churn of the step to come.  The defaults leave the law exact;
    the paper tunes s_churn, s_min, s_max and s_noise (1.003 to 1.007) to data and network (its table 5).
    """

    s_churn: Number = 40.0
    s_min: Number = 0.0
    s_max: Number = np.inf
    s_noise: Number = 1.0

    def check(self):
        for name in ("s_churn", "s_min", "s_noise"):
            check_range(self, name, 0, np.inf)
        if not self.s_min <= self.s_max:
            raise ValueError(f"EDMStochastic: s_min must not exceed s_max, got {self.s_min} and {self.s_max}.")

    def plan(self, sde, times):
        now, then, steps = steps_of(sde, times)
        published_steps = jnp.where(then.sigma[-1] > 0, steps.size + 1, steps.size)
        gamma = jnp.minimum(self.s_churn / published_steps, 2**0.5 - 1)
        top = levels(sde, jnp.asarray(sde.t_max, times.dtype)[None])
        room = (steps > 0) & (now.rho >= self.s_min) & (now.rho <= self.s_max) & (now.rho < top.rho)
        limit = top.rho / now.rho - 1
        gamma = jnp.where(room, jnp.where(limit < gamma, limit, gamma), 1)
        churned = room & (gamma > 0)
        raised = sde.inverse_log_snr(-2 * jnp.log(jnp.where(churned, 1 + gamma, 1) * now.rho))
        hat = levels(sde, jnp.where(churned, raised, times[:-1]))
        # of what takes rho to (1 + gamma) rho; its derivative in gamma is infinite at 0, like a root's
        noise = jnp.where(room, self.s_noise * hat.alpha * now.rho * jnp.sqrt(gamma * (2 + gamma)), 0)
        # The churn of a step is drawn at the end of the one before.
        after = jax.tree.map(lambda later, end: jnp.concatenate([later[1:], end[-1:]]), hat, then)
        return heun_rows(hat, then, steps, after, jnp.concatenate([noise[1:], jnp.zeros_like(noise[:1])]))


def heun_rows(
    now: Levels, then: Levels, steps: np.ndarray, after: Levels | None = None, noise: Array | None = None
) -> LinearRow:
    """Heun's steps in rho = sigma/alpha, with the mean of the noise predicted at the start and at the end.

    The state then goes on to the level `after`, by `noise`.
    """
    end, after = noisy(now, then), then if after is None else after
    grow, half = after.alpha / then.alpha, 0.5 * NOISE.total(now, then)
    euler = row(NOISE, now, end, steps, NOISE.decay(now, end), [NOISE.total(now, end)], last=False)
    heun = row(NOISE, end, after, steps, grow * NOISE.decay(now, then), [grow * half, grow * half], first=False)
    if noise is None:
        return interleave([euler, heun])
    silent = dataclasses.replace(euler, noise=jnp.zeros_like(noise))
    return interleave([silent, dataclasses.replace(heun, noise=noise)])


def _transition(sde: AffineSDE, times: Array, published: bool) -> tuple[Array, Array]:
    """(m, v) of the forward process over each step of a grid."""
    return (sde.published_transition if published else sde.transition)(times[:-1], times[1:])


def _score_row(times: Array, decay: Array, weight: Array, noise: Array) -> LinearRow:
    """One row per step, in terms of the score itself."""
    steps = one_row_per_step(times)
    gains = jnp.zeros_like(decay), jnp.ones_like(decay)
    return LinearRow(
        *(getattr(steps, f.name) for f in dataclasses.fields(steps)), gains, decay, weight[:, None], noise, steps.first
    )
