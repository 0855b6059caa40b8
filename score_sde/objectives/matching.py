"""Denoising score matching over continuous time."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_sde.arguments import checked
from score_sde.arrays import mean_event
from score_sde.objectives.times import TimeSampler, Uniform
from score_sde.objectives.weightings import SigmaSquared, Weighting
from score_sde.predictions import Noise, Predict, Prediction
from score_sde.sdes import AffineSDE


@checked
def denoising_score_matching(
    key: Array,
    sde: AffineSDE,
    predict: Predict,
    x0: Float[Array, "b ..."],
    *,
    prediction: Prediction = Noise(),  # noqa: B008 - immutable
    weighting: Weighting = SigmaSquared(),  # noqa: B008
    times: TimeSampler = Uniform(),  # noqa: B008
) -> Float[Array, " b"]:
    """The denoising score matching loss of each sample, at one random time each.

    lambda(t) * mean_d |s_d(x_t, t) - s_d(x_t | x_0)|^2  with  x_t = alpha x_0 + sigma eps,  s(x_t | x_0) = -eps/sigma

    computed on the network's own output F (the score error is linear in the error of F), so that nothing cancels at
    small t.  With RectifiedFlow, Velocity and the weighting Output this is flow matching.

    Args:
        key: one key for the times and the noise.
        sde: the forward process.
        predict: `predict(x, t) -> F` of the kind `prediction`; x (B, *event), t (B,).
        x0: data, (B, *event).
        prediction: what `predict` returns.
        weighting: lambda(t).
        times: the law of t.

    Returns:
        (B,) losses, dimensionless; their mean is the training loss (the mean over dimensions as published for VP and
        sub-VP; VE was published with half the sum).

    Source: Vincent (2011); Song et al. (2021), eq. 7.

    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> x0 = jax.random.normal(jax.random.key(0), (4, 2))
    >>> ss.denoising_score_matching(jax.random.key(1), ss.VP(), lambda x, t: jnp.zeros_like(x), x0).shape
    (4,)
    """
    key_times, key_noise = jax.random.split(key)
    t = times(key_times, sde, x0.shape[0]).astype(x0.dtype)
    noise = jax.random.normal(key_noise, x0.shape, x0.dtype)
    x = sde.perturb(x0, noise, t)
    output = predict(x, t)
    if output.shape != x.shape:
        raise TypeError(f"expected predict(x, t) of shape {x.shape} like x, got {output.shape}.")
    error = mean_event(jnp.square(output - prediction.target(sde, x0, noise, t)))
    return weighting(sde, prediction, t) * jnp.square(prediction.score_gain(sde, t)) * error
