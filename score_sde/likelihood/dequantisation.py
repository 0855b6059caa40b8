"""From grey levels to data with a density, and back.

Integer data k in 0..levels-1 become x = low + (high - low)(k + u)/levels with u uniform on [0, 1): a density that is
constant on each level's cell.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Integer

from score_sde.arguments import checked
from score_sde.arrays import sample_keys
from score_sde.trees import Frozen, is_concrete, static


class Cells(Frozen):
    """The cells of grey levels: level k fills [low + k w, low + (k + 1) w), w = (high - low)/levels.

    The first and the last reach to infinity, so that their masses add up to 1.
    """

    levels: int = static()
    data_range: tuple[float, float] = static((-1.0, 1.0))

    def check(self):
        check_levels(self.levels, self.data_range)

    def log_mass(self, x: Float[Array, "b ..."], mean: Float[Array, "b ..."], std: Array) -> Float[Array, "b ..."]:
        """log of the mass that N(mean, std^2) has on the cell that x is in, elementwise."""
        low, high = self.data_range
        width = (high - low) / self.levels
        k = quantise(x, levels=self.levels, data_range=self.data_range)
        left = low + width * k.astype(x.dtype)
        a = jnp.where(k == 0, -jnp.inf, (left - mean) / std)
        b = jnp.where(k == self.levels - 1, jnp.inf, (left + width - mean) / std)
        # In the upper tail both values of the distribution function are 1: look at the cell from the other side.
        a, b = jnp.where(a > 0, -b, a), jnp.where(a > 0, -a, b)
        log_a, log_b = jax.scipy.stats.norm.logcdf(a), jax.scipy.stats.norm.logcdf(b)
        return log_b + jnp.log(-jnp.expm1(jnp.where(jnp.isinf(a), -jnp.inf, log_a - log_b)))


def check_levels(levels: int, data_range: tuple[float, float]) -> None:
    """Raise ValueError unless there are two levels and a rising range."""
    if levels < 2 or not data_range[0] < data_range[1]:
        raise ValueError(
            f"expected at least 2 grey levels and a rising data_range, got levels={levels}, data_range={data_range}."
        )


@checked
def dequantise(
    key: Array, x: Integer[Array, "b ..."], *, levels: int, data_range: tuple[float, float] = (-1.0, 1.0)
) -> Float[Array, "b ..."]:
    """Grey levels (B, *event) in 0..levels-1 as uniformly dequantised data in `data_range`.

    `key` is one key (sample i takes `fold_in(key, i)`) or an array of B keys.  `quantise` gives the levels back.

    Raises: ValueError for levels out of range, and for cells finer than some 30 roundings.
    """
    check_levels(levels, data_range)
    if is_concrete(x) and not bool(((np.asarray(x) >= 0) & (np.asarray(x) < levels)).all()):
        raise ValueError(f"expected grey levels in 0..{levels - 1}, got {np.min(x)} to {np.max(x)}.")
    u = jax.vmap(lambda key, x: jax.random.uniform(key, x.shape))(sample_keys(key, x.shape[0]), x)
    return _place(x, u, levels, data_range)


def _place(k: Array, u: Array, levels: int, data_range: tuple[float, float]) -> Array:
    """low + (high - low)(k + u)/levels, kept off the cell's ends by what rounding may add here and in `quantise`."""
    low, high = data_range
    width = (high - low) / levels
    margin = float(jnp.finfo(u.dtype).eps) * (4 * (high - low) + 2 * max(abs(low), abs(high)))
    if 4 * margin > width:
        raise ValueError(
            f"expected cells that {u.dtype} resolves, got {levels} levels on {data_range}. "
            "Use fewer levels, or a range about 0."
        )
    left = low + width * k.astype(u.dtype)
    return jnp.clip(left + width * u, left + margin, left + (width - margin))


@checked
def quantise(
    x: Float[Array, "b ..."], *, levels: int, data_range: tuple[float, float] = (-1.0, 1.0)
) -> Integer[Array, "b ..."]:
    """The grey level (int32) of each value: the inverse of `dequantise`; values outside the range go to its ends."""
    check_levels(levels, data_range)
    low, high = data_range
    return jnp.clip(jnp.floor((x - low) * (levels / (high - low))), 0, levels - 1).astype(jnp.int32)
