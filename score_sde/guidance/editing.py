"""Editing of given data: part of the way to noise and back, by chance or along the flow."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jaxtyping import Float

from score_sde.arguments import checked
from score_sde.arrays import fold_in, normal, sample_keys
from score_sde.sampling import grids
from score_sde.sampling.encoding import encode
from score_sde.sampling.loop import PRIOR, sample
from score_sde.sampling.multistep import UniPC
from score_sde.sampling.results import Samples
from score_sde.sampling.sampler import Sampler
from score_sde.sdes import AffineSDE, Score, check_time
from score_sde.trees import Number


@checked
def sdedit(
    key: Array, sde: AffineSDE, score: Score, x: Float[Array, "b ..."], t_start: Number, **options: Any
) -> Samples:
    """Samples near x: x is noised to time t_start and sampled from there (Meng et al. 2022).

    Small t_start keeps x, large t_start forgets it: what x_t tells of x falls with the log-SNR at t_start, and
    `sde.inverse_log_snr` finds the time of one.

    Args:
        key, sde, score: as in `sample`; sample i depends on its own key and x alone.
        x: (B, *event), in the range of the data.
        t_start: in (t_end, t_max].
        options: of `sample`: sampler, steps, grid, t_end, denoise, ...

    Raises: as `sample`.

    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> sde, target = ss.VP(), ss.GaussianMixture(means=jnp.array([[-2.0], [2.0]]), stds=jnp.array([0.1, 0.1]))
    >>> out = ss.sdedit(jax.random.key(0), sde, target.score(sde), jnp.array([[1.0], [-1.5]]), 0.2, steps=100)
    >>> jnp.sign(out.x[:, 0]).tolist()
    [1.0, -1.0]
    """
    check_time(sde, "t_start", t_start)
    t = jax.numpy.full(x.shape[:1], t_start, x.dtype)
    noise = normal(fold_in(sample_keys(key, len(x)), PRIOR), x)
    return sample(key, sde, score, x.shape, x_init=sde.perturb(x, noise, t), t_start=t_start, **options)


@checked
def translate(
    sde: AffineSDE,
    source: Score,
    target: Score,
    x: Float[Array, "b ..."],
    *,
    change: Callable[[Array], Array] | None = None,
    sampler: Sampler = UniPC(),  # noqa: B008 - immutable
    steps: int = 50,
    grid: grids.Grid | Array = grids.log_snr,
    t_start: Number | None = None,
    t_end: Number | None = None,
) -> Samples:
    """Encode, edit, decode: x along the flow of `source` to noise, and back along that of `target`, without chance.

    With the scores of two labels it changes the label and keeps the latent (Su et al. 2023); with one score twice and
    `change`, a function of the latents (B, *event), it edits those.  With neither x comes back, up to the solver.

    Args: `t_start`, `t_end` as in `encode`: the latent is that at t_end.

    Returns:
        Samples; its nfe counts both ways.

    Raises: as `encode`.
    """
    way = dict(sampler=sampler, steps=steps, grid=grid)
    latent = encode(sde, source, x, t_start=t_start, t_end=t_end, **way)
    z = latent.x if change is None else change(latent.x)
    t_start = sde.t_sampling if t_start is None else t_start
    out = sample(jax.random.key(0), sde, target, x.shape, x_init=z, t_start=t_end, t_end=t_start, **way)
    return Samples(out.x, latent.nfe + out.nfe, out.first_bad_step)
