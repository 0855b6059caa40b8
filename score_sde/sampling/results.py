"""What samplers return."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from score_sde.trees import Frozen, is_concrete


class Samples(Frozen):
    """Samples and how they came about.

    x: (B, *event), the samples.
    nfe: (B,), calls of the score that each sample took.
    first_bad_step: (B,), the number of the first step whose result was not finite (from 0); -1 where there was none.
    trajectory: (n, B, *event), states on the way, the first at the start, the last before any denoising; None unless
        asked for.
    """

    x: Float[Array, "b ..."]
    nfe: Int[Array, " b"]
    first_bad_step: Int[Array, " b"]
    trajectory: Array | None = None

    def raise_if_bad(self) -> "Samples":
        """This object; FloatingPointError if values are concrete and a sample is not finite."""
        if is_concrete(self.first_bad_step):
            steps = np.asarray(self.first_bad_step)
            if (steps >= 0).any():
                raise FloatingPointError(
                    f"{(steps >= 0).sum()} of {steps.size} samples stopped being finite, the first at step "
                    f"{steps[steps >= 0].min()} (sample {int(np.argmax(steps >= 0))}). Check the score near that time, "
                    "or take more steps. Bound what a learned score predicts: ss.Clipped(score, sde, low, high), which "
                    "is then given to pigdm or dps where they guide."
                )
        return self


def track_first_bad(first_bad: Int[Array, " b"], x: Float[Array, "b ..."], step: Array | int) -> Int[Array, " b"]:
    """`first_bad` with samples of `x` that are not finite for the first time marked with `step`."""
    bad = ~jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
    return jnp.where((first_bad < 0) & bad, jnp.asarray(step, first_bad.dtype), first_bad)
