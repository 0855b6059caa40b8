"""Variational bounds: lower bounds on log p(x) of the generative chain, and of the reverse SDE.

The latent-variable model x_0 <- x_1 <- ... <- x_T with the forward process as its encoder has

    log p(x_0) >= - KL(q(x_T | x_0) || prior) - sum_i E KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i))
                  + E log p(x_0 | x_1)

(Sohl-Dickstein et al. 2015; Ho et al. 2020, eq. 5): each KL is one of Gaussians in closed form.  With ever more levels
the sum becomes an integral over the log-SNR l, the same for every SDE (Kingma et al. 2021, eq. 17; Song et al. 2021b,
theorem 3):

    log p(x) >= - KL(q(x_T | x) || prior) - 1/2 * integral from l_T to l_e of E|eps_hat - eps|^2 dl + E log p(x | x_e)

x_e, at the first time, is where the integral would diverge beyond: there a decoder takes over.  It is a Gaussian about
the predicted data; for grey levels, its mass on each level's cell.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_sde import trees
from score_sde.arguments import checked
from score_sde.arrays import expand, fold_in, normal, sample_keys, sum_event
from score_sde.discrete import Chain
from score_sde.likelihood.dequantisation import Cells
from score_sde.sdes import AffineSDE, Score, check_time, evaluate
from score_sde.trees import Frozen, Number, static

State = Float[Array, "b ..."]
Nats = Float[Array, " b"]


class Bound(Frozen):
    """A lower bound on log p and its parts, per sample, in nats: nats = - prior - diffusion + reconstruction.

    nats: (B,), the bound: on the log-density, or on the log-probability where `cells` were given.
    standard_error: (B,), of the bound over its repetitions; nan for a single one.
    prior: (B,), KL(q(x_T | x) || prior), exact.
    diffusion: (B,), the sum or integral.
    reconstruction: (B,), E log p(x | x_1) or E log p(x | x_e).
    nfe: (B,), calls of the score.
    size: dimensions of a sample; of_levels: whether `cells` were given.
    """

    nats: Nats
    standard_error: Nats
    prior: Nats
    diffusion: Nats
    reconstruction: Nats
    nfe: Array
    size: int = static(0)
    of_levels: bool = static(False)


@checked
def prior_kl(sde: AffineSDE, x: State) -> Nats:
    """KL(q(x_T | x) || prior) = alpha^2 |x|^2/(2 sigma^2) at t_max, in nats; its mean bounds KL(p_T || prior)."""
    t = jnp.asarray(sde.t_max, x.dtype)
    return _prior_kl(sde.alpha(t), sde.sigma(t), x)


@checked
def discrete_bound(
    key: Array,
    sde: AffineSDE,
    score: Score,
    x: State,
    *,
    chain: Chain,
    variance: str | Float[Array, " t"] = "forward",
    repeats: int = 1,
    cells: Cells | None = None,
    prior_std: Number | None = None,
) -> Bound:
    """The evidence lower bound of the chain whose steps back are N(a_i x_i + c_i D(x_i), variance_i).

    All T terms, `repeats` times with fresh noise: repeats * T evaluations of the score.

    Args:
        key: one key (sample i takes `fold_in(key, i)`), or B keys.
        sde, score: the score of any SDE; it is asked at the time with a level's log-SNR, x scaled to match.
        x: (B, *event), data as the model sees them; of grey levels any point of their cells.
        chain: the levels, as `discrete.ddpm(1000)`.
        variance: "forward" v_i (DDPM's beta_i), "posterior" w_i, or (T,) of your own, as from `optimal_variances`.  On
            an exact score the bound approaches log p as T grows with "forward" and with the optimal ones.  With
            "posterior" it stalls: w_i is too small by (i - 1)/i at the first levels, which costs half of Euler's
            constant, 0.29 nats, a dimension where data are smooth (w_1 = 0 is no density; v_1 stands in for it).
        repeats: how often all terms are drawn; two and more give a standard error.
        cells: for grey levels; the last step is then a Gaussian's mass on the cell that x is in, and the bound one on
            the log-probability (Ho et al. 2020, eq. 13).
        prior_std: standard deviation of the prior; the last level's sigma unless given (DDPM: 1, all but the same).

    Raises:
        ValueError: levels outside the SDE's range, a variance of another shape, repeats < 1.
    """
    if isinstance(variance, str):
        if variance not in ("forward", "posterior"):
            raise ValueError(f"variance must be 'forward', 'posterior' or an array (T,), got {variance!r}.")
        first = chain.variance_forward
        variance = first if variance == "forward" else jnp.concatenate([first[:1], chain.variance_posterior[1:]])
    if variance.shape != (chain.steps,):
        raise ValueError(f"expected a variance of shape {(chain.steps,)}, one per level, got {variance.shape}.")
    prior_std = chain.sigma[-1] if prior_std is None else jnp.asarray(prior_std, x.dtype)
    return _discrete_bound(key, sde, score, x, chain, chain.times(sde), variance, repeats, cells, prior_std)


@checked
def optimal_variances(key: Array, sde: AffineSDE, score: Score, x: State, *, chain: Chain) -> Float[Array, " t"]:
    """w_i + c_i^2 E|x_0 - D(x_i)|^2/d over data x: the variances (T,) that make the discrete bound largest.

    Differentiate the bound's terms by the variance; on an exact score these are those of Bao et al. (2022), eq. 8.
    """
    return _optimal_variances(key, sde, score, x, chain, chain.times(sde))


@checked
def continuous_bound(
    key: Array,
    sde: AffineSDE,
    score: Score,
    x: State,
    *,
    t_start: Number | None = None,
    draws: int = 100,
    repeats: int = 1,
    cells: Cells | None = None,
) -> Bound:
    """The bound of the reverse SDE from t_start on, with a decoder below; it does not depend on the SDE's schedule.

    The integral is a mean over `draws` noise levels, stratified in log-SNR per sample; with exact scores it is tight to
    what the decoder loses.

    Args: as for `discrete_bound`, and
        t_start: where the decoder takes over, N(D(x_e), sigma^2/alpha^2); the SDE's `t_min` unless given.
        draws: noise levels per repetition.

    Raises:
        ValueError: t_start outside the SDE's range, draws or repeats < 1.
    """
    t_start = sde.t_min if t_start is None else t_start
    check_time(sde, "t_start", t_start)
    return _continuous_bound(key, sde, score, x, t_start, draws, repeats, cells)


def _prior_kl(alpha: Array, sigma: Array, x: State) -> Nats:
    return 0.5 * jnp.square(alpha / sigma) * sum_event(jnp.square(x))


def _log_decoder(cells: Cells | None, x: State, mean: State, std: Array) -> Nats:
    """log p(x | mean): a Gaussian's density, or its mass on the cells of grey levels."""
    if cells is not None:
        return sum_event(cells.log_mass(x, mean, std))
    return sum_event(-0.5 * jnp.square((x - mean) / std) - jnp.log(std) - float(0.5 * np.log(2 * np.pi)))


def _predicted_data(sde: AffineSDE, score: Score, x: State, t: Nats) -> State:
    return (x + expand(jnp.square(sde.sigma(t)), x) * evaluate(score, x, t)) / expand(sde.alpha(t), x)


def _level_data(sde, score, x, chain, times, i, keys) -> State:
    """D(x_i) for a draw of x_i given x; i counts from 0."""
    t, state = jnp.full(x.shape[:1], times[i]), chain.alpha[i] * x + chain.sigma[i] * normal(fold_in(keys, i), x)
    # Chain and SDE share their log-SNR there, so their states differ by a factor, and the noise predicted not at all.
    sigma = sde.sigma(times[i])
    noise = -sigma * evaluate(score, sigma / chain.sigma[i] * state, t)
    return (state - chain.sigma[i] * noise) / chain.alpha[i]


@trees.jit
def _discrete_bound(key, sde, score, x, chain, times, variance, repeats, cells, prior_std):
    keys, size = sample_keys(key, x.shape[0]), x[0].size
    c, w = chain.posterior_data, chain.variance_posterior

    def term(i, keys):
        data = _level_data(sde, score, x, chain, times, i, keys)
        ratio = jnp.where(i == 0, 1, w[i] / variance[i])  # w_1 = 0 is no density, and no KL is taken of it
        kl = 0.5 * (size * (ratio - 1 - jnp.log(ratio)) + c[i] ** 2 * sum_event(jnp.square(x - data)) / variance[i])
        return jax.lax.cond(i == 0, lambda: -_log_decoder(cells, x, data, jnp.sqrt(variance[0])), lambda: kl)

    def once(repeat):
        repeat_keys = fold_in(keys, repeat)

        def step(total, i):
            value = term(i, repeat_keys)
            return (total[0] + jnp.where(i == 0, 0, value), jnp.where(i == 0, -value, total[1])), None

        zero = jnp.zeros(x.shape[:1], x.dtype)
        return jax.lax.scan(step, (zero, zero), jnp.arange(chain.steps))[0]

    diffusion, reconstruction = jax.lax.map(once, jnp.arange(repeats))
    ratio = jnp.square(chain.sigma[-1] / prior_std)
    prior = 0.5 * size * (ratio - 1 - jnp.log(ratio)) + _prior_kl(chain.alpha[-1], prior_std, x)
    return _bound(prior, diffusion, reconstruction, repeats * chain.steps, x, cells)


@trees.jit
def _continuous_bound(key, sde, score, x, t_start, draws, repeats, cells):
    keys = sample_keys(key, x.shape[0])
    ends = jnp.stack([jnp.asarray(t, x.dtype) for t in (sde.t_max, t_start)])
    low, high = sde.log_snr(ends)

    def once(repeat):
        repeat_keys = fold_in(keys, repeat)

        def step(total, j):
            level_keys = fold_in(repeat_keys, j)
            u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (), x.dtype))(level_keys)
            t = sde.inverse_log_snr(low + (high - low) * (j.astype(x.dtype) + u) / draws)
            t = jnp.clip(t, ends[1], ends[0])  # rounding
            noise = normal(level_keys, x)
            noisy = sde.perturb(x, noise, t)
            predicted = -expand(sde.sigma(t), x) * evaluate(score, noisy, t)
            return total + sum_event(jnp.square(predicted - noise)), None

        total, _ = jax.lax.scan(step, jnp.zeros(x.shape[:1], x.dtype), jnp.arange(draws))
        t = jnp.full(x.shape[:1], ends[1])
        noisy = sde.perturb(x, normal(fold_in(repeat_keys, draws), x), t)
        std = sde.sigma(ends[1]) / sde.alpha(ends[1])
        data = _predicted_data(sde, score, noisy, t)
        return 0.5 * (high - low) / draws * total, _log_decoder(cells, x, data, std)

    diffusion, reconstruction = jax.lax.map(once, jnp.arange(repeats))
    return _bound(prior_kl(sde, x), diffusion, reconstruction, repeats * (draws + 1), x, cells)


@trees.jit
def _optimal_variances(key, sde, score, x, chain, times):
    keys = sample_keys(key, x.shape[0])

    def error(i):
        return jnp.mean(jnp.square(x - _level_data(sde, score, x, chain, times, i, keys)))

    return chain.variance_posterior + chain.posterior_data**2 * jax.lax.map(error, jnp.arange(chain.steps))


def _bound(prior: Nats, diffusion: Array, reconstruction: Array, nfe: int, x: State, cells: Cells | None) -> Bound:
    """From repetitions (R, B) of the two random parts."""
    values, repeats = reconstruction - diffusion - prior[None], diffusion.shape[0]
    spread = jnp.std(values, axis=0, ddof=1) / repeats**0.5 if repeats > 1 else jnp.full_like(prior, jnp.nan)
    return Bound(
        values.mean(0), spread, prior, diffusion.mean(0), reconstruction.mean(0), jnp.full(prior.shape, nfe),
        x[0].size, cells is not None,
    )  # fmt: skip
