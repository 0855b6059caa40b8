"""From nats to bits per dimension.

The average log-density of dequantised x in a grey level's cell, plus the log of the cell's volume, bounds the
log-probability of the level from below (Theis et al. 2016), so in bits per dimension

    -log2 P(k)/D  <=  -E[log p(x)]/(D log 2) - log2((high - low)/levels).

The last term is the offset: 7 for 256 levels on [-1, 1], 8 on [0, 1], log2(17/2) for 17 levels on [-1, 1].  The mean of
the densities in K draws in place of one, log (1/K) sum_k p(x_k), is a tighter bound (Burda et al. 2016), never worse in
expectation, as long as the log-densities are exact: noise in them is exponentiated, and an average of exponentials is
too large.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Integer

from score_sde.arguments import checked
from score_sde.arrays import fold_in, sample_keys
from score_sde.likelihood.bounds import Bound
from score_sde.likelihood.density import LogProb, log_prob
from score_sde.likelihood.dequantisation import check_levels, dequantise
from score_sde.likelihood.divergence import Divergence, ExactDivergence
from score_sde.sdes import AffineSDE, Score
from score_sde.trees import Frozen, is_concrete


class BitsPerDim(Frozen):
    """Bits per dimension of each sample: `value` (B,) and the standard error (B,) of its divergence estimate."""

    value: Float[Array, " b"]
    standard_error: Float[Array, " b"]


@checked
def bits_per_dim(result: LogProb | Bound, *, levels: int, data_range: tuple[float, float] = (-1.0, 1.0)) -> BitsPerDim:
    """Log-densities of dequantised data as bits per dimension (an upper bound in expectation over the noise).

    Args:
        result: LogProb or Bound of data that `dequantise` made with the same `levels` and `data_range`.  A Bound on the
            log-probability of grey levels (made with `cells`) has no offset.
        levels: number of grey levels (256 for 8-bit images).
        data_range: what 0 and `levels` are scaled to.
    """
    check_levels(levels, data_range)
    exact = isinstance(result, Bound) and result.of_levels
    offset = 0.0 if exact else -math.log2((data_range[1] - data_range[0]) / levels)
    scale = 1 / (result.size * math.log(2))
    return BitsPerDim(offset - scale * result.nats, scale * result.standard_error)


@checked
def importance_weighted(
    key: Array,
    sde: AffineSDE,
    score: Score,
    x: Integer[Array, "b ..."],
    *,
    levels: int,
    draws: int,
    data_range: tuple[float, float] = (-1.0, 1.0),
    divergence: Divergence = ExactDivergence(),  # noqa: B008 - immutable
    **options,
) -> BitsPerDim:
    """Bits per dimension of grey levels x with `draws` dequantisations each: log2 of the mean of their densities.

    The bound tightens as `draws` grow, at their cost.  `standard_error` is that of the divergence estimates, averaged.

    Args:
        key: one key (sample i takes `fold_in(key, i)`), or B keys.
        x: (B, *event) grey levels in 0..levels-1.
        divergence, options: as for `log_prob`.

    Raises:
        ValueError: draws < 1; a divergence whose standard error is not known or not below 0.1 nats for some sample: its
            noise would make the bound too good.  Use ExactDivergence, more probes, or draws=1.
    """
    keys, nats, errors = sample_keys(key, x.shape[0]), [], []
    for k in range(draws):
        draw_keys = fold_in(keys, k)
        data = dequantise(fold_in(draw_keys, 0), x, levels=levels, data_range=data_range)
        lp = log_prob(fold_in(draw_keys, 1), sde, score, data, divergence=divergence, **options)
        nats.append(lp.nats)
        errors.append(lp.standard_error)
    errors = jnp.stack(errors)
    if draws > 1 and is_concrete(errors) and not np.all(np.asarray(errors) < 0.1):
        raise ValueError(
            f"importance weighting needs log-densities with a standard error below 0.1 nats, got "
            f"{float(jnp.max(errors)):.3g} (nan: a single probe, which has none). Its noise would make the bound too "
            "good. Use ExactDivergence(), more probes, or draws=1."
        )
    mean = jax.nn.logsumexp(jnp.stack(nats), axis=0) - math.log(draws)
    error = jnp.sqrt(jnp.mean(jnp.square(errors), axis=0))
    return bits_per_dim(
        LogProb(mean, error, lp.nfe, lp.latent, lp.converged), levels=levels, data_range=data_range
    )  # fmt: skip
