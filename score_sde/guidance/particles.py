"""Twisted sequential Monte Carlo: exact samples of p(x) exp(l(x)) as particles and steps grow.

A guided score that is a tilt, s + grad l(x, t), proposes: each particle takes the step of the reverse process with the
guided score.  Its weight mends what the step got wrong,

    w <- w * p(x' | x) exp(l(x', t')) / (q(x' | x) exp(l(x, t))),

p the step with the score alone, q the one taken; where the effective number of particles, 1/sum w^2, is low they are
drawn anew in proportion to their weights (systematic resampling).  Whatever l is on the way, the weighted particles at
the end are of p(x) exp(l(x, t_end)), and the mean weight estimates its integral without bias, the evidence p(y)
(Wu et al. 2023, "Practical and asymptotically exact conditional sampling in diffusion models").

Tilts are `classifier_guidance` (the tilted law p(x) p(c | x)^scale), `dps`, `pigdm` and `moment_matching`, the better
the fewer particles.  There is no probability flow of this, and no likelihood.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from score_sde import trees
from score_sde.arguments import checked
from score_sde.arrays import fold_in, normal, repeated, sample_keys, sum_event
from score_sde.derivatives import refuse
from score_sde.guidance.guided import Tilted
from score_sde.guidance.inverse import DPS
from score_sde.sampling import grids
from score_sde.sampling.loop import make_times, start_from_prior
from score_sde.sdes import AffineSDE, Score, check_score
from score_sde.trees import Frozen, Number, is_concrete


class Particles(Frozen):
    """Weighted particles of each of B laws.

    x: (B, K, *event).
    log_weights: (B, K), normalised: their exponentials sum to 1 over K.
    log_evidence: (B,), the logarithm of an unbiased estimate of the integral of p(x) exp(l(x)).
    least: (B,), the least effective number of particles of any step, before resampling.
    nfe: (B,), calls of the guided score for each particle.
    """

    x: Float[Array, "b k ..."]
    log_weights: Float[Array, "b k"]
    log_evidence: Float[Array, " b"]
    least: Float[Array, " b"]
    nfe: Int[Array, " b"]

    def draw(self, key: Array) -> Float[Array, "b ..."]:
        """One particle of each law, drawn by weight; `key` is one key, or one per law."""
        keys = sample_keys(key, len(self.x))
        return jax.vmap(lambda key, x, w: x[jax.random.categorical(key, w)])(keys, self.x, self.log_weights)

    def mean(self) -> Float[Array, "b ..."]:
        """The weighted mean of each law."""
        return jax.vmap(lambda x, w: jnp.tensordot(jnp.exp(w), x, 1))(self.x, self.log_weights)

    def raise_if_bad(self) -> "Particles":
        """This object; FloatingPointError if values are concrete and a law has no finite particles."""
        if is_concrete(self.log_evidence):
            bad = ~np.isfinite(np.asarray(self.log_evidence))
            if bad.any():
                raise FloatingPointError(
                    f"all particles of {bad.sum()} of {bad.size} laws have weight 0 or nan (first: {bad.argmax()}). "
                    "Take more particles or steps, or a larger noise."
                )
        return self


@checked
def sample_smc(
    key: Array,
    sde: AffineSDE,
    guided: Score,
    shape: tuple[int, ...],
    *,
    particles: int = 64,
    steps: int = 100,
    grid: grids.Grid | Array = grids.log_snr,
    t_start: Number | None = None,
    t_end: Number | None = None,
    threshold: Number = 0.5,
) -> Particles:
    """Particles of the tilted law of each of B labels or measurements; exact as particles and steps grow.

    Steps are those of the reverse process given the predicted data, q(x' | x, D(x)) (Ho et al. 2020, eq. 7).  Law i
    depends on its own key and label or measurement alone.

    Args:
        key: one key (law i takes `fold_in(key, i)`), or B keys.
        sde: the forward process that the score belongs to.
        guided: `classifier_guidance(...)`, `dps(..., noise=)`, `pigdm(...)` or `moment_matching(...)`.
        shape: (B, *event).
        particles: K, of each law; the network sees B K samples at a time.
        steps, grid, t_start, t_end: as in `sample`.
        threshold: particles are drawn anew where their effective number falls below this share of K.

    Raises:
        ValueError: as `sample`; a guided score that is no tilt, such as classifier-free guidance.
        TypeError: when differentiated: a gradient along the particles leaves out how their draw changes.
        FloatingPointError: a law without a particle of finite weight (only outside of your own jit).
    """
    if not isinstance(guided, Tilted):
        raise ValueError(
            f"expected a guided score with a likelihood, got {type(guided).__name__}. "
            "Use classifier_guidance, dps, pigdm or moment_matching."
        )
    if isinstance(guided, DPS) and guided.step is not None:
        raise ValueError("expected dps with noise=, whose likelihood the weights are of; got one with step=.")
    check_score(guided, shape)
    times = make_times(sde, grid, steps, t_start, sde.t_sampling if t_end is None else t_end)
    return _solve_smc(key, tuple(shape), sde, guided, times, particles, threshold).raise_if_bad()


@trees.jit
def _solve_smc(key, shape, sde, guided, times, particles, threshold):
    batch, event = shape[0], shape[1:]
    keys = sample_keys(key, batch)
    guided = repeated(guided, particles)

    def each(keys):  # a key for each particle
        return jax.vmap(lambda k: jax.vmap(lambda i: jax.random.fold_in(k, i))(jnp.arange(particles)))(keys).ravel()

    def parts(x, t):
        s, value, gradient = guided.parts(x, jnp.full(x.shape[:1], t))
        return s, value.reshape(batch, particles), gradient

    def step(carry, inputs):
        x, (s, value, gradient), logs, evidence, least = carry
        n, t, t_next = inputs
        row = fold_in(keys, n)
        # Where particles are few, draw anew, from the weights so far.
        total = jax.nn.logsumexp(logs, axis=1)
        share = refuse(jnp.exp(logs - total[:, None]), "sample_smc has no derivative: particles are drawn anew.")
        effective = 1 / jnp.sum(jnp.square(share), axis=1)
        poor = effective < threshold * particles
        uniform = jax.vmap(jax.random.uniform)(fold_in(row, 1))
        kept = jnp.where(poor[:, None], systematic(uniform, share), jnp.arange(particles)[None])
        logs = jnp.where(poor[:, None], 0.0, logs - total[:, None] + jnp.log(jnp.asarray(particles, logs.dtype)))
        evidence = evidence + total - jnp.log(jnp.asarray(particles, logs.dtype))
        flat = (kept + particles * jnp.arange(batch)[:, None]).ravel()
        x, s, gradient, value = x[flat], s[flat], gradient[flat], jnp.take_along_axis(value, kept, 1)
        # p(x' | x, D(x)): a Gaussian, which the tilt moves by `shift`.
        alpha, alpha_next = sde.alpha(t), sde.alpha(t_next)
        var, var_next = jnp.square(sde.sigma(t)), jnp.square(sde.sigma(t_next))
        ratio = alpha / alpha_next
        added = var - jnp.square(ratio) * var_next
        std = jnp.sqrt(added * var_next / var)
        shift = added / ratio * gradient
        z = normal(each(fold_in(row, 0)), x)
        x = (x + added * s) / ratio + shift + std * z
        log_ratio = -sum_event(0.5 * jnp.square(shift / std) + shift / std * z).reshape(batch, particles)
        new = parts(x, t_next)
        logs = logs + log_ratio + new[1] - value
        return (x, new, logs, evidence, jnp.minimum(least, effective)), None

    x = start_from_prior(sde, each(keys), (batch * particles, *event), times[0], 1.0)
    now = parts(x, times[0])
    evidence, least = jnp.zeros(batch, x.dtype), jnp.full(batch, float(particles), x.dtype)
    inputs = (jnp.arange(times.size - 1), times[:-1], times[1:])
    (x, _, logs, evidence, least), _ = jax.lax.scan(step, (x, now, now[1], evidence, least), inputs)
    total = jax.nn.logsumexp(logs, axis=1)
    evidence = evidence + total - jnp.log(jnp.asarray(particles, logs.dtype))
    nfe = jnp.full(batch, times.size)
    return Particles(x.reshape(batch, particles, *event), logs - total[:, None], evidence, least, nfe)


def systematic(uniform: Float[Array, " b"], share: Float[Array, "b k"]) -> Int[Array, "b k"]:
    """Indices of particles drawn by their shares: each occurs floor or ceil of K times its share, by one uniform draw.

    Source: Kitagawa (1996).
    """
    count = share.shape[1]
    points = (jnp.arange(count, dtype=share.dtype)[None] + uniform[:, None]) / count
    sums = jnp.cumsum(share, axis=1)
    found = jax.vmap(lambda s, p: jnp.searchsorted(s, p, side="right"))(sums / sums[:, -1:], points)
    return jnp.minimum(found, count - 1)
