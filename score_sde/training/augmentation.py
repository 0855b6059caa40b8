"""EDM's augmentation of training images, and the labels that tell the network of it (Karras et al. 2022, appendix F.2).

A network that is told how its image was changed does not learn to make changed images: sampled with labels 0, it makes
images as they are.  Each change happens with probability p, but a flip from left to right, with 1/2:

    flip in x, in y        labels w in {0, 1}, half of the time
    scale by 2^(w/5)       w                                      w ~ N(0, 1)
    rotate by w            cos(w) - 1, sin(w)                     w uniform in [-pi, pi]
    stretch by 2^(w/5) along an axis, and shrink by as much across it, at the angle r; half of the time r = 0
                           w cos(r), w sin(r)                     w ~ N(0, 1), r uniform in [-pi, pi]
    shift by (W u, H v)/8  u, v                                   u, v ~ N(0, 1)

As published but for the interpolation: cubic convolution (Keys 1981) of the pixels and of their endless reflections,
which is exact for whole pixels, where theirs is bilinear between wavelet filters (sym6) at twice the resolution and
reflects once.  Flips come first; the rest is one warp.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_sde.trees import Number

LABELS = 9
PROBABILITY = 0.12


class Change(NamedTuple):
    """What happens to an image: flips are 0 or 1, scale and stretch in units of 2^(1/5), angles in radians,
    counterclockwise, shift (x, y), y downwards, in eighths of the image."""

    flip_x: Array
    flip_y: Array
    scale: Array
    angle: Array
    stretch: Array
    axis: Array
    shift: Float[Array, " 2"]

    def label(self) -> Float[Array, " 9"]:
        """What the network is told; zeros for an image that is as it was."""
        turned = jnp.stack([jnp.cos(self.angle) - 1, jnp.sin(self.angle)])
        stretched = self.stretch * jnp.stack([jnp.cos(self.axis), jnp.sin(self.axis)])
        return jnp.concatenate([jnp.stack([self.flip_x, self.flip_y, self.scale]), turned, stretched, self.shift])

    def sources(self, height: int, width: int) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
        """The place (y, x), in pixels, at which each pixel of the result finds its value."""
        y = jnp.arange(height) - 0.5 * (height - 1) - self.shift[1] * height / 8
        x = jnp.arange(width) - 0.5 * (width - 1) - self.shift[0] * width / 8
        y, x = jnp.meshgrid(y, x, indexing="ij")
        s = jnp.exp2(0.2 * self.stretch)
        y, x = _turn(y, x, self.axis)
        y, x = _turn(y * s, x / s, -self.axis)
        y, x = _turn(y, x, self.angle)
        s = jnp.exp2(-0.2 * self.scale)
        return y * s + 0.5 * (height - 1), x * s + 0.5 * (width - 1)


def _turn(y: Array, x: Array, angle: Array) -> tuple[Array, Array]:
    return jnp.sin(angle) * x + jnp.cos(angle) * y, jnp.cos(angle) * x - jnp.sin(angle) * y


def draw(key: Array, probability: Number = PROBABILITY) -> Change:
    """A random change of one image."""
    keys = jax.random.split(key, 7)
    happens = jax.random.uniform(keys[0], (5,)) < probability
    half = jax.random.bernoulli(keys[1], 0.5, (3,))
    flip_x = half[0] & (probability > 0)
    angle, axis = (jax.random.uniform(k, minval=-jnp.pi, maxval=jnp.pi) for k in keys[2:4])
    scale, stretch = (jax.random.normal(k) for k in keys[4:6])
    return Change(
        flip_x=flip_x.astype(jnp.float32),
        flip_y=(half[1] & happens[0]).astype(jnp.float32),
        scale=jnp.where(happens[1], scale, 0.0),
        angle=jnp.where(happens[2], angle, 0.0),
        stretch=jnp.where(happens[3], stretch, 0.0),
        axis=jnp.where(half[2], axis, 0.0),
        shift=jnp.where(happens[4], jax.random.normal(keys[6], (2,)), 0.0),
    )


def change(image: Float[Array, "h w c"], how: Change) -> Float[Array, "h w c"]:
    """The image after a change."""
    image = jnp.where(how.flip_x == 1, image[:, ::-1], image)
    image = jnp.where(how.flip_y == 1, image[::-1], image)
    (rows, row_weights), (columns, column_weights) = (
        _taps(at, size) for at, size in zip(how.sources(*image.shape[:2]), image.shape[:2], strict=True)
    )
    weights = row_weights[:, None] * column_weights[None]
    warped = jnp.einsum("ijhw,ijhwc->hwc", weights, image[rows[:, None], columns[None]])
    moves = jnp.any(how.label()[2:] != 0)
    return jnp.where(moves, warped, image)  # to the bit, where nothing moves


def _taps(at: Float[Array, "h w"], size: int) -> tuple[Array, Array]:
    """The four pixels next to each place along an axis, and their weights: cubic convolution with a = -1/2."""
    first = jnp.floor(at)
    u = at - first
    weights = jnp.stack(
        [
            ((-0.5 * u + 1.0) * u - 0.5) * u,
            (1.5 * u - 2.5) * u * u + 1.0,
            ((-1.5 * u + 2.0) * u + 0.5) * u,
            (0.5 * u - 0.5) * u * u,
        ]
    )
    pixels = first.astype(jnp.int32) + jnp.arange(-1, 3)[:, None, None]
    period = max(2 * (size - 1), 1)
    pixels = pixels % period
    return jnp.minimum(pixels, period - pixels) if size > 1 else pixels, weights


def augment(
    key: Array, images: Float[Array, "b h w c"], probability: Number = PROBABILITY
) -> tuple[Float[Array, "b h w c"], Float[Array, "b 9"]]:
    """(images, labels) after random changes, those of image i by a key of its own."""

    def one(key: Array, image: Array) -> tuple[Array, Array]:
        how = draw(key, probability)
        return change(image, how), how.label()

    return jax.vmap(one)(jax.random.split(key, len(images)), images)
