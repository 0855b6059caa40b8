"""Images per second of the likelihood against a SciPy solve on the host, at equal error of the log-density.

The baseline is how the field computes it: SciPy's RK45 on the host in float64, over the whole batch and its
log-densities in one vector, with two compiled functions of the network, one for the drift and one for the divergence
(the gradient of v . f, v the probe).  Both solve for the same images and probes under the same network: the trained
digits, and a DDPM++ of 2.5M parameters at 32x32x3.  The error is the mean distance from a solve at a far smaller
tolerance; time is compared where the two curves of time over error have the same error.  Needs scipy, which JAX brings.

What makes the difference: one Jacobian-vector product for drift and divergence; no host in the loop; a Runge-Kutta pair
whose weights are even, since a learned score is rough at the scale of a step (`flow.cash_karp`); a first step on the
scale of the noise (`flow.first_step`).  --all adds the same solve by Tsit5 and Dopri5 to the table.  What made none, or
a loss: log-SNR or arctan(sigma / alpha) as the time of the solve, a scaled state, the state alone in the error norm,
Bosh3 and Dopri8.
"""

import time as clock

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from common import RESULTS, Figures, arguments, config_of, load_weights
from scipy.integrate import solve_ivp

import score_sde as ss
from score_sde.config import base_config, build
from score_sde.flow import first_step
from score_sde.likelihood import cash_karp


def digits(batch: int):
    """(SDE, score with trained weights, dequantised test digits)."""
    experiment = build(config_of("vp_digits")).experiment
    params = load_weights(RESULTS / "vp_digits_ema.npz")
    x = experiment.load("test")[np.arange(batch)]["x"]
    return experiment.sde, experiment.score(params), experiment.scale(jax.random.key(1), jnp.asarray(x))


def ddpmpp(batch: int):
    """(SDE, score of a random DDPM++ under EDM's preconditioning, smooth random images in [-1, 1])."""
    c = base_config()
    c.model.nf, c.model.ch_mult, c.model.num_res_blocks = 32, (1, 2, 2, 2), 2
    c.model.init_scale, c.model.dropout = 0.1, 0.0  # not zero, or the network would be
    c.objective.prediction, c.objective.sigma_data = "edm", 0.5
    experiment = build(c).experiment
    params = experiment.init(jax.random.key(0))  # not compiled as a whole, which takes longer
    print(f"DDPM++ with {sum(p.size for p in jax.tree.leaves(params)):,} parameters")
    coarse = 0.5 * jax.random.normal(jax.random.key(1), (batch, 8, 8, 3))
    x = jax.image.resize(coarse, (batch, 32, 32, 3), "cubic")
    return experiment.sde, experiment.score(params), x + 0.02 * jax.random.normal(jax.random.key(2), x.shape)


class Host:
    """The baseline."""

    def __init__(self, sde, score, x, probes):
        self.sde, self.x, self.evaluations = sde, x, 0

        def drift(x, t):
            return sde.flow_drift(score, x, jnp.full(x.shape[:1], t))

        self.drift = jax.jit(drift)
        divergence = jax.grad(lambda x, t: jnp.sum(drift(x, t) * probes))
        self.divergence = jax.jit(lambda x, t: jnp.sum(divergence(x, t) * probes, axis=(1, 2, 3)))

    def __call__(self, tolerance: float) -> tuple[np.ndarray, float]:
        shape, size = self.x.shape, self.x.size
        self.evaluations = 0

        def field(t, y):
            self.evaluations += 1
            x, t = jnp.asarray(y[:size].reshape(shape), jnp.float32), jnp.float32(t)
            return np.concatenate([np.asarray(self.drift(x, t)).ravel(), np.asarray(self.divergence(x, t))])

        start = np.concatenate([np.asarray(self.x, np.float64).ravel(), np.zeros(shape[0])])
        ends = float(self.sde.t_min), float(self.sde.t_max)
        end = solve_ivp(field, ends, start, rtol=tolerance, atol=tolerance, method="RK45").y[:, -1]
        latent = jnp.asarray(end[:size].reshape(shape), jnp.float32)
        return np.asarray(self.sde.prior_log_prob(latent)) + end[size:], self.evaluations


class Ours:
    """`log_prob` as `--mode=eval` solves it; one step size for the batch: on a device all samples ride along anyway."""

    def __init__(self, sde, score, x, keys, solver):
        self.arguments = keys, sde, score, x
        self.options = {"solver": solver, "first_step": first_step(sde, sde.t_min, sde.t_max), "whole_batch": True}

    def __call__(self, tolerance: float) -> tuple[np.ndarray, float]:
        lp = ss.log_prob(*self.arguments, rtol=tolerance, atol=tolerance, **self.options)
        return np.asarray(lp.nats), float(lp.nfe.mean())


def at_error(curve: list[tuple[float, float, float]], error: float, k: int) -> float:
    """Entry k of a curve of (error, seconds, NFE) at an error, by interpolation in logarithms; inf beyond its ends."""
    points = np.log(np.array(sorted(curve)))
    value = np.interp(np.log(error), points[:, 0], points[:, k], left=np.inf, right=np.inf)
    return float(np.exp(value))


def compare(
    name: str, sde, score, x, tolerances: tuple, reference: float, rounds: int, figures: Figures, others: dict
) -> None:
    keys = jax.random.split(jax.random.key(3), x.shape[0])
    probes = jax.vmap(ss.Hutchinson().draw)(keys, x)[:, 0]
    solvers = {"host": Host(sde, score, x, probes), "ours": Ours(sde, score, x, keys, cash_karp())}
    solvers |= {who: Ours(sde, score, x, keys, solver) for who, solver in others.items()}
    exact, _ = solvers["ours"](reference)
    seconds, found = {}, {}
    for solve in solvers.values():
        solve(1e-1)  # compiles
    for _ in range(rounds):  # in turns: the machine's mood changes
        for tolerance in tolerances:
            for who, solve in solvers.items():
                began = clock.perf_counter()
                nats, nfe = solve(tolerance)
                seconds.setdefault((who, tolerance), []).append(clock.perf_counter() - began)
                found[who, tolerance] = float(np.abs(nats - exact).mean() / x[0].size / np.log(2)), nfe
    curves: dict[str, list] = {}
    print(f"{name}: {x.shape[0]} images; solver, tolerance, NFE, mean error in bits/dim, seconds, ms per evaluation")
    for (who, tolerance), times in sorted(seconds.items()):
        (error, nfe), best = found[who, tolerance], float(np.median(times))
        print(f"  {who:<8}{tolerance:<8.0e}{nfe:>5.0f}  {error:.1e}  {best:8.2f} {1e3 * best / nfe:8.1f}")
        curves.setdefault(who, []).append((error, best, nfe))
    for error in sorted(e for e, _, _ in curves["host"]):  # where the baseline was measured
        ratio, evaluations = (at_error(curves["host"], error, k) / at_error(curves["ours"], error, k) for k in (1, 2))
        if np.isfinite(ratio) and ratio > 0:
            figures.at_least(f"{name}: images/s over the host's at {error:.1e}", ratio, 1.5)
            print(f"  fewer evaluations {evaluations:.2f}, per evaluation {ratio / evaluations:.2f}")


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--all", action="store_true", help="other solvers of ours too")
    args = parser.parse_args()
    figures = Figures()
    others = {"tsit5": diffrax.Tsit5(), "dopri5": diffrax.Dopri5()} if args.all else {}
    compare("digits", *digits(32), (1e-2, 1e-3, 3e-4, 1e-4, 1e-5), 3e-6, 3, figures, others)
    compare("DDPM++ 32x32x3", *ddpmpp(2), (1e-2, 1e-3, 1e-4), 1e-5, 2, figures, others)
    figures.end(args.check)
