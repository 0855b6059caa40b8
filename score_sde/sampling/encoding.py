"""Data to latent and back along the probability flow, and interpolation in between.

The flow is invertible: the latent of an image, decoded, is the image again, up to the solver's error.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_sde.arguments import checked
from score_sde.arrays import expand, sum_event
from score_sde.sampling import grids
from score_sde.sampling.adaptive import sample_adaptive
from score_sde.sampling.loop import make_times, solve_from
from score_sde.sampling.multistep import UniPC
from score_sde.sampling.results import Samples
from score_sde.sampling.sampler import Sampler
from score_sde.sdes import AffineSDE, Score, check_score, check_time
from score_sde.trees import Number, is_concrete


@checked
def encode(
    sde: AffineSDE,
    score: Score,
    x: Float[Array, "b ..."],
    *,
    sampler: Sampler = UniPC(),  # noqa: B008 - immutable
    steps: int = 50,
    grid: grids.Grid | Array = grids.log_snr,
    t_start: Number | None = None,
    t_end: Number | None = None,
) -> Samples:
    """The latent of data x: the state at t_end of the flow that is at x at t_start, by a deterministic sampler.

    Decode with `sample(key, ..., x_init=latent, t_start=..., t_end=...)`, the same sampler and grid, or by
    `sample_adaptive`.

    Args: as in `sample`; the grid is run through in the other direction.
        t_start: the SDE's `t_sampling` unless given; a latent halfway is that of SDEdit and the like.
        t_end: the SDE's `t_max` unless given.

    Raises: as `sample`; ValueError for a sampler that draws noise.

    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> sde, target = ss.VP(), ss.Gaussian(mean=jnp.ones(2), covariance=0.25)
    >>> x = target.sample(jax.random.key(0), 3)
    >>> z = ss.encode(sde, target.score(sde), x).x
    >>> back = ss.sample(jax.random.key(0), sde, target.score(sde), x.shape, x_init=z, sampler=ss.UniPC(), steps=50,
    ...                  grid=ss.grids.log_snr).x
    >>> bool(abs(back - x).max() < 1e-3)
    True
    """
    if not sampler.deterministic:
        raise ValueError(f"encoding needs a deterministic sampler, got {type(sampler).__name__}, which draws noise.")
    t_start = sde.t_sampling if t_start is None else t_start
    t_end = sde.t_max if t_end is None else t_end
    check_score(score, x.shape, x.dtype)
    check_time(sde, "t_start", t_start)
    check_time(sde, "t_end", t_end)
    times = make_times(sde, grid, steps, t_end, t_start, x.dtype)[::-1]
    return solve_from(sde, score, x, sampler, times)


@checked
def encode_adaptive(
    sde: AffineSDE,
    score: Score,
    x: Float[Array, "b ..."],
    *,
    rtol: Number = 1e-4,
    atol: Number = 1e-4,
    t_start: Number | None = None,
    t_end: Number | None = None,
    solver: Any = None,
    max_steps: int = 4096,
) -> Samples:
    """As `encode`, by an adaptive solver of diffrax with step sizes per sample (see `sample_adaptive`)."""
    t_start, t_end = sde.t_sampling if t_start is None else t_start, sde.t_max if t_end is None else t_end
    if is_concrete((t_start, t_end)) and not float(t_start) < float(t_end):
        raise ValueError(f"expected t_start below t_end, from data to noise, got {t_start:g} and {t_end:g}.")
    return sample_adaptive(
        jax.random.key(0), sde, score, x.shape,
        rtol=rtol, atol=atol, t_start=t_start, t_end=t_end, x_init=x, solver=solver, max_steps=max_steps,
    )  # fmt: skip


@checked
def interpolate(
    a: Float[Array, "b ..."], b: Float[Array, "b ..."], weights: Float[Array, " n"]
) -> Float[Array, "n b ..."]:
    """Latents on the great circle from a (weight 0) to b (weight 1), for each weight (Shoemake 1985).

    Latents are near a sphere; the straight line between two of them leaves it, and its middle decodes to pale averages.
    Norms go over from |a| to |b|.
    """
    norms = [jnp.sqrt(sum_event(jnp.square(v))) for v in (a, b)]
    units = [v / expand(n, v) for v, n in zip((a, b), norms, strict=True)]
    # the angle by arctan, which keeps its digits where the two are nearly parallel
    # and is not quite 0 where the two are one: sines in ratio have a derivative at sqrt(eps), and none at 0
    least = jnp.finfo(a.dtype).eps
    chord, sum_ = (jnp.sqrt(sum_event(jnp.square(units[0] + sign * units[1])) + least) for sign in (-1, 1))
    angle = 2 * jnp.arctan2(chord, sum_)

    def at(w):
        parts = [jnp.sin(p * angle) / jnp.sin(angle) for p in (1 - w, w)]
        direction = sum(expand(p, u) * u for p, u in zip(parts, units, strict=True))
        return expand((1 - w) * norms[0] + w * norms[1], a) * direction

    return jax.vmap(at)(weights)
