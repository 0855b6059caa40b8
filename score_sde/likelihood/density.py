"""Log-densities by the probability flow.

Along the flow dx/dt = v(x, t) the log-density changes by -div v, so

    log p_0(x) = log p_T(x(T)) + integral from t_start to T of div v(x(t), t) dt

(Chen et al. 2018; Song et al. 2021, appendix D.2), an initial value problem for (x, integral) that one adaptive solve
carries from data to noise.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from score_sde import trees
from score_sde.arrays import sample_keys
from score_sde.flow import single_sample, solve, split_norm
from score_sde.likelihood.divergence import Divergence, Hutchinson
from score_sde.sdes import AffineSDE, Score, check_time
from score_sde.trees import Frozen, Number, is_concrete


class LogProb(Frozen):
    """Log-densities and how they came about, per sample.

    nats: (B,), log-density; nan where the solve did not converge.
    standard_error: (B,), of the divergence estimate, in nats: 0 for an exact divergence, nan for a single probe.
    nfe: (B,), calls of the score, each with its Jacobian-vector products.
    latent: (B, *event), where the flow carried x.
    converged: (B,), whether the solve reached its end.
    """

    nats: Float[Array, " b"]
    standard_error: Float[Array, " b"]
    nfe: Int[Array, " b"]
    latent: Float[Array, "b ..."]
    converged: Bool[Array, " b"]


def log_prob(
    key: Array | None,
    sde: AffineSDE,
    score: Score,
    x: Float[Array, "b ..."],
    *,
    divergence: Divergence = Hutchinson(),  # noqa: B008 - immutable
    t_start: Number | None = None,
    terminal_log_prob: Any = None,
    rtol: Number = 3e-5,
    atol: Number = 3e-5,
    solver: Any = None,
    max_steps: int = 4096,
) -> LogProb:
    """Log-density of data under the probability flow of a score, with its error and cost.

    Step sizes are chosen per sample, so a value does not depend on its batch mates; the error norm is the larger of
    the state's root mean square and the log-density's, so the tolerances bound both.

    Args:
        key: one key (sample i takes `fold_in(key, i)`), or B keys, for the probes; None with ExactDivergence.
        sde: the forward process that the score belongs to.
        score: `score(x, t)`, x (B, *event) and t (B,).
        x: (B, *event), taken as a sample at t_start.
        divergence: `Hutchinson(probes)` or `ExactDivergence()`.
        t_start: where to start; the SDE's `t_min` unless given.  The result is the density of the marginal there,
            which has the noise sigma(t_start) in it.
        terminal_log_prob: `f(z) -> (B,)`, log-density of the marginal at t_max; that of the prior unless given.  The
            prior's differs from it by what of the data is left at t_max.
        rtol, atol: tolerances of the local error.
        solver: any explicit solver of diffrax with an error estimate; Tsit5 unless given.
        max_steps: where a solve gives up (not converged).

    Returns:
        LogProb(nats, standard_error, nfe, latent, converged).

    Raises:
        ValueError: a time outside the SDE's range, no key for random probes, values that are not finite.
        TypeError: a score that returns another shape or dtype, at tracing.

    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> sde, target = ss.VP(), ss.Gaussian(mean=jnp.zeros(2), covariance=jnp.array([[1.0, 0.5], [0.5, 1.0]]))
    >>> x = jnp.array([[0.3, -0.2]])
    >>> lp = ss.log_prob(None, sde, target.score(sde), x, divergence=ss.ExactDivergence())
    >>> abs(float(lp.nats[0] - target.log_prob(x)[0])) < 1e-3
    True
    """
    if key is None:
        if isinstance(divergence, Hutchinson):
            raise ValueError("expected a key for Hutchinson's random probes, got None; ExactDivergence needs none.")
        key = jax.random.key(0)
    t_start = sde.t_min if t_start is None else t_start
    check_time(sde, "t_start", t_start)
    if is_concrete(x) and not np.isfinite(np.asarray(x)).all():
        raise ValueError("expected finite data, got nan or infinite values in x.")
    keys = sample_keys(key, x.shape[0])
    return _log_prob(keys, sde, score, x, divergence, t_start, terminal_log_prob, rtol, atol, solver, max_steps)


@trees.jit
def _log_prob(keys, sde, score, x, divergence, t_start, terminal_log_prob, rtol, atol, solver, max_steps):
    velocity = single_sample(lambda x, t: sde.flow_drift(score, x, t))

    def one(key, x):
        probes = divergence.draw(key, x)
        count = jax.eval_shape(lambda: divergence(lambda x: x, x, probes)[1]).shape

        def field(t, state):
            return divergence(lambda x: velocity(x, t), state[0], probes)

        start = (x, jnp.zeros(count, x.dtype))
        (z, integrals), stats = solve(
            field, start, t_start, sde.t_max,
            rtol=rtol, atol=atol, norm=split_norm, solver=solver, max_steps=max_steps,
        )  # fmt: skip
        return z, jnp.mean(integrals), divergence.standard_error(integrals), stats

    z, integral, standard_error, stats = jax.vmap(one)(keys, x)
    end = sde.prior_log_prob if terminal_log_prob is None else terminal_log_prob
    converged = stats.converged & jnp.isfinite(integral)
    nats = jnp.where(converged, end(z) + integral, jnp.nan)
    return LogProb(nats, standard_error, stats.nfe, z, converged)
