"""Time grids: `grid(sde, steps, t_start, t_end)` gives `steps + 1` falling times from t_start to t_end.

An array of your own times serves as well.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_sde.sdes import AffineSDE
from score_sde.trees import Number

Grid = Callable[[AffineSDE, int, Number, Number], Array]


def uniform(sde: AffineSDE, steps: int, t_start: Number, t_end: Number) -> Float[Array, " n"]:
    """Equal steps in t (the published grid)."""
    return jnp.linspace(t_start, t_end, steps + 1, dtype=jnp.result_type(float))
