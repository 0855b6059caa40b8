"""Where a model loses likelihood, and how far a score is from the true one."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_sde import trees
from score_sde.analytic import Target
from score_sde.arguments import checked
from score_sde.arrays import expand, fold_in, mean_event, norm, normal, sample_keys, sum_event
from score_sde.sdes import AffineSDE, Score, evaluate


@checked
def bound_by_noise_level(
    key: Array, sde: AffineSDE, score: Score, x: Float[Array, "b ..."], *, bins: int = 50
) -> tuple[Float[Array, " bins"], Float[Array, " bins"]]:
    """How much each noise level adds to the continuous bound: (log-SNR, nats), mean over the batch of x.

    The integral 1/2 E|eps_hat - eps|^2 d log-SNR of `continuous_bound`, bin by bin over [t_min, t_max] in equal steps
    of log-SNR, one evaluation each; their sum is its `diffusion`.  Divide by D log 2 for bits/dim.
    """
    return _bound_by_noise_level(key, sde, score, x, bins)


@trees.jit
def _bound_by_noise_level(key, sde, score, x, bins):
    keys = sample_keys(key, x.shape[0])
    ends = jnp.stack([jnp.asarray(t, x.dtype) for t in (sde.t_max, sde.t_min)])
    low, high = sde.log_snr(ends)
    width = (high - low) / bins
    starts = low + width * jnp.arange(bins, dtype=x.dtype)

    def one(inputs):
        j, start = inputs
        bin_keys = fold_in(keys, j)
        u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (), x.dtype))(bin_keys)
        t = jnp.clip(sde.inverse_log_snr(start + width * u), ends[1], ends[0])
        noise = normal(bin_keys, x)
        predicted = -expand(sde.sigma(t), x) * evaluate(score, sde.perturb(x, noise, t), t)
        return 0.5 * width * jnp.mean(sum_event(jnp.square(predicted - noise)))

    return starts + 0.5 * width, jax.lax.map(one, (jnp.arange(bins), starts))


@checked
def score_error(
    key: Array, sde: AffineSDE, score: Score, target: Target, times: Float[Array, " n"], *, samples: int = 1024
) -> Float[Array, " n"]:
    """Root mean square of sigma(t) (score - exact score) per dimension, over draws of the marginal at each time.

    sigma times the score is the predicted noise, of size one: 0.01 is an error of one per cent of the noise.
    """

    def one(inputs):
        i, t = inputs
        x = target.marginal(sde, t).sample(jax.random.fold_in(key, i), samples)
        t = jnp.full(samples, t)
        error = evaluate(score, x, t) - target.score(sde)(x, t)
        return jnp.sqrt(jnp.mean(mean_event(jnp.square(expand(sde.sigma(t), x) * error))))

    return jax.lax.map(one, (jnp.arange(times.size), times))


@checked
def energy_distance(a: Float[Array, "n ..."], b: Float[Array, "m ..."]) -> Float[Array, ""]:
    """2 E|a - b| - E|a - a'| - E|b - b'|, an unbiased estimate: 0 for samples of one law (Szekely & Rizzo 2013).

    Of samples by the probability flow and by the reverse SDE it tells how far their laws are apart, which only an exact
    score makes the same.
    """

    def distances(u, v):
        u, v = (w.reshape(w.shape[0], -1) for w in (u, v))
        return jax.lax.map(lambda row: norm(row[None] - v), u)

    within = [distances(u, u).sum() / (u.shape[0] * (u.shape[0] - 1)) for u in (a, b)]
    return 2 * distances(a, b).mean() - within[0] - within[1]
