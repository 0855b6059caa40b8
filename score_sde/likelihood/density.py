"""Log-densities by the probability flow.

Along the flow dx/dt = v(x, t) the log-density changes by -div v, so

    log p_0(x) = log p_T(x(T)) + integral from t_start to T of div v(x(t), t) dt

(Chen et al. 2018; Song et al. 2021, appendix D.2), an initial value problem for (x, integral) that one adaptive solve
carries from data to noise.

Two ways to choose step sizes.  Per sample (the default): each has its own, so its value does not depend on its batch
mates, and the solve of a batch lasts as long as that of its hardest sample.  For the whole batch: one step size for
all, such that the same norm holds for every sample; then there is one clock, the network sees plain batches, each value
is as accurate or more so, and it moves within the tolerance when its batch mates change.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from score_sde import trees
from score_sde.arguments import checked
from score_sde.arrays import of_sample, sample_keys
from score_sde.flow import check_precision, import_solvers, single_sample, solve, split_norm
from score_sde.likelihood.divergence import Divergence, Hutchinson
from score_sde.sdes import AffineSDE, Score, check_score, check_time
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

    @property
    def size(self) -> int:
        """Dimensions of a sample."""
        return self.latent[0].size


@checked
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
    first_step: Number | None = None,
    max_steps: int = 4096,
    whole_batch: bool = False,
) -> LogProb:
    """Log-density of data under the probability flow of a score, with its error and cost.

    Step sizes are chosen per sample, so no batch mate enters a value.  In another batch the evaluations are rounded
    otherwise, which in float32 may decide of a step: such a value is the same to the error of the solve, not to
    rounding (figures: `experiments/batch_invariance.py`).  The error norm is the larger of the state's root mean square
    and the log-density's, so the tolerances bound both.

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
        solver: any explicit solver of diffrax with an error estimate.  Tsit5 unless given, which is the most accurate
            where the score is smooth; `likelihood.cash_karp()` needs half its evaluations where it is learned.
        first_step: length of the first step, a thousandth of the interval unless given; `flow.first_step(sde, t_start,
            t_max)` saves rejected steps where the score is learned and costs some where it is exact.
        max_steps: where a solve gives up (not converged).
        whole_batch: one step size for all samples instead of one for each.

    Differentiable in x and in the score's weights by reverse mode; the solve is recomputed from some sqrt(2 max_steps)
    checkpoints, so memory does not grow with the evaluations.

    Returns:
        LogProb(nats, standard_error, nfe, latent, converged).

    Raises:
        ValueError: a time outside the SDE's range, no key for random probes, values that are not finite, an x
            coarser than float32.
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
    check_precision(x.dtype)
    check_score(score, x.shape, x.dtype)
    import_solvers()
    keys = sample_keys(key, x.shape[0])
    return _log_prob(
        keys,
        sde,
        score,
        x,
        divergence,
        t_start,
        terminal_log_prob,
        rtol,
        atol,
        solver,
        first_step,
        max_steps,
        whole_batch,
    )


@trees.jit
def _log_prob(
    keys, sde, score, x, divergence, t_start, terminal_log_prob, rtol, atol, solver, first_step, max_steps, whole_batch
):
    probes = jax.vmap(divergence.draw)(keys, x)
    count = jax.eval_shape(lambda: divergence(lambda x: x, x[0], probes[0])[1]).shape
    options = {"rtol": rtol, "atol": atol, "solver": solver, "step": first_step, "max_steps": max_steps}

    def field(t, x, probes, i):
        own = of_sample(score, i)
        velocity = single_sample(lambda x, t: sde.flow_drift(own, x, t))
        return divergence(lambda x: velocity(x, t), x, probes)

    numbers = jnp.arange(x.shape[0])

    def one(x, probes, i):
        start = (x, jnp.zeros(count, x.dtype))
        end, stats = solve(
            lambda t, y: field(t, y[0], probes, i), start, t_start, sde.t_max, norm=split_norm, **options
        )  # fmt: skip
        return *end, stats.nfe, stats.converged

    if whole_batch:
        (z, integrals), stats = solve(
            lambda t, y: jax.vmap(field, in_axes=(None, 0, 0, 0))(t, y[0], probes, numbers),
            (x, jnp.zeros((x.shape[0], *count), x.dtype)), t_start, sde.t_max,
            norm=lambda error: jnp.max(jax.vmap(split_norm)(error)), **options,
        )  # fmt: skip
        nfe, converged = (jnp.full(x.shape[:1], v) for v in (stats.nfe, stats.converged))
    else:
        z, integrals, nfe, converged = jax.vmap(one)(x, probes, numbers)
    integral, standard_error = jnp.mean(integrals, axis=1), jax.vmap(divergence.standard_error)(integrals)
    end = sde.prior_log_prob if terminal_log_prob is None else terminal_log_prob
    converged = converged & jnp.isfinite(integral)
    nats = jnp.where(converged, end(z) + integral, jnp.nan)
    return LogProb(nats, standard_error, nfe, z, converged)
