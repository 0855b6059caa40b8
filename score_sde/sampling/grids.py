"""Time grids: `grid(sde, steps, t_start, t_end)` gives `steps + 1` times from t_start to t_end.

Pass one to `sample(grid=...)`; `functools.partial(grids.edm, rho=5.0)` sets an option.  An array of your own times
serves as well.  Solvers in log-SNR (DPMSolver, DPMSolverPP, UniPC ...) want `log_snr` or `edm`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_sde.sdes import AffineSDE
from score_sde.trees import Number

Grid = Callable[[AffineSDE, int, Number, Number], Array]
Times = Float[Array, " n"]


def uniform(sde: AffineSDE, steps: int, t_start: Number, t_end: Number) -> Times:
    """Equal steps in t (the published grid)."""
    return _linspace(t_start, t_end, steps)


def quadratic(sde: AffineSDE, steps: int, t_start: Number, t_end: Number) -> Times:
    """Equal steps in sqrt(t): finer towards the data (Song, Meng & Ermon 2021, appendix D.2)."""
    start, end = (jnp.sqrt(jnp.asarray(t, jnp.result_type(float))) for t in (t_start, t_end))
    return _exact_ends(jnp.square(_linspace(start, end, steps)), t_start, t_end)


def log_snr(sde: AffineSDE, steps: int, t_start: Number, t_end: Number) -> Times:
    """Equal steps in the log-SNR (Lu et al. 2022)."""
    ends = sde.log_snr(jnp.stack([jnp.asarray(t, jnp.result_type(float)) for t in (t_start, t_end)]))
    return _exact_ends(sde.inverse_log_snr(_linspace(ends[0], ends[1], steps)), t_start, t_end)


def edm(sde: AffineSDE, steps: int, t_start: Number, t_end: Number, rho: Number = 7.0) -> Times:
    """Equal steps in (sigma/alpha)^(1/rho) (Karras et al. 2022, eq. 5, whose last step to sigma = 0 is `denoise`)."""
    ends = sde.log_snr(jnp.stack([jnp.asarray(t, jnp.result_type(float)) for t in (t_start, t_end)]))
    root = jnp.exp(-0.5 * ends / rho)
    return _exact_ends(sde.inverse_log_snr(-2 * rho * jnp.log(_linspace(root[0], root[1], steps))), t_start, t_end)


def _linspace(start: Number, end: Number, steps: int) -> Times:
    return jnp.linspace(start, end, steps + 1, dtype=jnp.result_type(float))


def _exact_ends(times: Times, t_start: Number, t_end: Number) -> Times:
    """The two ends as given, not as they come back from the transformation."""
    return times.at[0].set(t_start).at[-1].set(t_end)
