"""From grey levels to densities and back to bits per dimension.

Integer data k in 0..levels-1 become x = low + (high - low)(k + u)/levels with u uniform on [0, 1): a density that is
constant on each level's cell.  The average log-density of x in a cell, plus the log of the cell's volume, bounds the
log-probability of k from below (Theis et al. 2016), so in bits per dimension

    -log2 P(k)/D  <=  -E[log p(x)]/(D log 2) - log2((high - low)/levels).

The last term is the offset: 7 for 256 levels on [-1, 1], 8 on [0, 1], log2(17/2) for 17 levels on [-1, 1].
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Integer

from score_sde.arrays import sample_keys
from score_sde.likelihood.density import LogProb
from score_sde.trees import Frozen


class BitsPerDim(Frozen):
    """Bits per dimension of each sample: `value` (B,) and the standard error (B,) of its divergence estimate."""

    value: Float[Array, " b"]
    standard_error: Float[Array, " b"]


def _check(levels: int, data_range: tuple[float, float]) -> None:
    if levels < 2 or not data_range[0] < data_range[1]:
        raise ValueError(
            f"expected at least 2 grey levels and a rising data_range, got levels={levels}, data_range={data_range}."
        )


def dequantise(
    key: Array, x: Integer[Array, "b ..."], *, levels: int, data_range: tuple[float, float] = (-1.0, 1.0)
) -> Float[Array, "b ..."]:
    """Grey levels (B, *event) in 0..levels-1 as uniformly dequantised data in `data_range`.

    `key` is one key (sample i takes `fold_in(key, i)`) or an array of B keys.
    """
    _check(levels, data_range)
    low, high = data_range
    u = jax.vmap(lambda key, x: jax.random.uniform(key, x.shape))(sample_keys(key, x.shape[0]), x)
    return low + (high - low) / levels * (x.astype(u.dtype) + u)


def quantise(
    x: Float[Array, "b ..."], *, levels: int, data_range: tuple[float, float] = (-1.0, 1.0)
) -> Integer[Array, "b ..."]:
    """The grey level (int32) of each value: the inverse of `dequantise`; values outside the range go to its ends."""
    _check(levels, data_range)
    low, high = data_range
    return jnp.clip(jnp.floor((x - low) * (levels / (high - low))), 0, levels - 1).astype(jnp.int32)


def bits_per_dim(log_prob: LogProb, *, levels: int, data_range: tuple[float, float] = (-1.0, 1.0)) -> BitsPerDim:
    """Log-densities of dequantised data as bits per dimension (an upper bound in expectation over the noise).

    Args:
        log_prob: of data that `dequantise` made with the same `levels` and `data_range`.
        levels: number of grey levels (256 for 8-bit images).
        data_range: what 0 and `levels` are scaled to.
    """
    _check(levels, data_range)
    size = log_prob.latent[0].size
    offset = -math.log2((data_range[1] - data_range[0]) / levels)
    scale = 1 / (size * math.log(2))
    return BitsPerDim(offset - scale * log_prob.nats, scale * log_prob.standard_error)
