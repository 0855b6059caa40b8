"""Twice and half the resolution: nearest neighbour and mean, or smooth by a finite impulse response (FIR).

A FIR kernel w of length k acts on height and width in turn (zeros lie outside), normalised to sum 1:

    down   y_j = sum_i w_i z_{2j+k-1-i},  z = x between (k - 1)//2 and (k - 2)//2 zeros
    up     the same with steps of one and 2 w on x with a zero after each pixel, one more zero around it

so that half and twice the pixels come out (rounded down).  (1, 3, 3, 1) is the published kernel, with which a
constant stays constant away from the edges; (1, 1) is the 2x2 mean, and the nearest neighbour.

Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again"; Karras et al. 2020 (StyleGAN2), appendix B.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from .blocks import conv


def fir_filter(
    x: Float[Array, "b h w c"], kernel: tuple[int, ...], pad: tuple[int, int], *, up: int = 1, down: int = 1
) -> Float[Array, "b h2 w2 c"]:
    """Convolve height and width with a kernel: a zero between pixels if `up` is 2, `pad` zeros at the ends, each
    `down`-th value kept.

    A sum of shifted images, which XLA fuses: its convolution by channel takes 20 to 100 times as long on a CPU.
    """
    weights = up * np.array(kernel[::-1]) / sum(kernel)
    for axis in (1, 2):
        edges = [(0, 0, 0)] * 4
        edges[axis] = (pad[0], pad[1] + up - 1, up - 1)
        z = lax.pad(x, jnp.zeros((), x.dtype), edges)
        last = z.shape[axis] - len(kernel)  # where the last window may begin
        # Python's floats leave the dtype as it is
        x = sum(w * lax.slice_in_dim(z, i, i + last + 1, down, axis) for i, w in enumerate(weights.tolist()))
    return x


def upsample(x: Float[Array, "b h w c"], kernel: tuple[int, ...] = ()) -> Float[Array, "b 2*h 2*w c"]:
    """Twice the height and width: by a FIR kernel, or each pixel becomes a 2x2 square."""
    if not kernel:
        return x.repeat(2, axis=1).repeat(2, axis=2)
    k = len(kernel)
    return fir_filter(x, kernel, ((k - 1) // 2 + 1, (k - 2) // 2), up=2)


def downsample(x: Float[Array, "b h w c"], kernel: tuple[int, ...] = ()) -> Float[Array, "b h//2 w//2 c"]:
    """Half the height and width, rounded down: by a FIR kernel, or the mean of each 2x2 square (they must be even)."""
    b, h, w, c = x.shape
    if not kernel:
        return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
    k = len(kernel)
    return fir_filter(x, kernel, ((k - 1) // 2, (k - 2) // 2), down=2)


class Upsample(nn.Module):
    """`upsample`, then a 3x3 convolution."""

    features: int
    fir_kernel: tuple[int, ...] = ()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w {self.features}"]:
        return conv(self.features, dtype=self.dtype)(upsample(x, self.fir_kernel))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, after the FIR filter if there is one.

    Without one the only zeros are below and to the right, as published (Ho et al. 2020, code), or all around the image
    (`symmetric_padding`).
    """

    features: int
    fir_kernel: tuple[int, ...] = ()
    dtype: str = "float32"
    symmetric_padding: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 {self.features}"]:
        k, padding = len(self.fir_kernel), ((int(self.symmetric_padding), 1),) * 2
        if k:
            x, padding = fir_filter(x, self.fir_kernel, ((k + 1) // 2, k // 2)), "VALID"
        return conv(self.features, stride=2, padding=padding, dtype=self.dtype)(x)


class Combine(nn.Module):
    """A small image joins the features: a 1x1 convolution of it is added to them, or put before them ('cat')."""

    method: str
    dtype: str = "float32"

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"], x: Float[Array, "b h w d"]) -> Float[Array, "b h w e"]:
        image = conv(x.shape[-1], size=1, dtype=self.dtype)(image)
        return image + x if self.method == "sum" else jnp.concatenate([image, x], axis=-1)
