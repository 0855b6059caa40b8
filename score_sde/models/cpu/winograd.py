"""Convolutions of 3x3 pixels with 2.25 times fewer multiplications, by matrix products: Winograd's F(2x2, 3x3).

Two neighbouring pixels of a convolution with a kernel k of three take four multiplications in place of six,

    y = A (G k . B d),    d the four pixels below both,

with A, G, B as in the functions below; in two dimensions 16 in place of 36,

    y = A (G k G' . B d B') A',    d the tile of 4x4 pixels below 2x2 of the result.

Summed over the channels, "." is sixteen products of (tiles, channels) with (channels, features).  The convolution is
linear in k, so the derivative of k is G' (sum over tiles of B d B' . A' y A) G.  All coefficients are 0, 1, -1 and 1/2:
results round nearly as those of the plain sum do.  (S. Winograd, Arithmetic complexity of computations, 1980; A. Lavin
and S. Gray, Fast algorithms for convolutional neural networks, CVPR 2016.)
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
CHANNELS, TILES = 128, 128  # from which the products outweigh the additions around them


def suits(x, kernel, stride: int) -> bool:
    """Whether images and kernel, arrays or their shapes, are convolved faster this way."""
    (n, h, w, _), (*window, c, features) = x.shape, kernel.shape
    many = min(c, features) >= CHANNELS and n * h * w >= 4 * TILES
    return window == [3, 3] and stride == 1 and many and x.dtype == kernel.dtype == jnp.float32


def convolve(x: Array, kernel: Array, pad) -> Array:
    """x (n, h, w, c), padded by ((low, high), (low, high)), convolved with a kernel (3, 3, c, o)."""
    n, c, features = x.shape[0], *kernel.shape[2:]
    height, width = (size + sum(p) - 2 for size, p in zip(x.shape[1:3], pad, strict=True))
    tiles = n, -(-height // 2), -(-width // 2), features
    rows = []
    for d, g in zip(_of_pixels(_padded(x, pad), 1), G, strict=True):  # four products at once
        d = jnp.stack(_of_pixels(d, 2)).reshape(4, -1, c)
        k = jnp.tensordot(np.kron(g, G).astype(kernel.dtype), kernel.reshape(9, c, features), 1)
        rows.append((d @ k).reshape(4, *tiles))
    y = jnp.stack([jnp.stack(_of_products(row), axis=3) for row in _of_products(rows)], axis=2)
    return y.reshape(n, 2 * tiles[1], 2 * tiles[2], features)[:, :height, :width]


def kernel_derivative(x: Array, y: Array, pad) -> Array:
    """The transpose of `convolve` in its kernel: of y, as `convolve` returns it, to (3, 3, c, o)."""
    c, features = x.shape[3], y.shape[3]
    y = _padded(y, ((0, 0), (0, 0)))
    rows = []
    for d, r in zip(_of_pixels(_padded(x, pad), 1), _of_results(y, 1), strict=True):
        d, r = jnp.stack(_of_pixels(d, 2)), jnp.stack(_of_results(r, 2))
        rows.append(jnp.einsum("ktc,kto->kco", d.reshape(4, -1, c), r.reshape(4, -1, features)))
    out = jnp.tensordot(np.kron(G, G).T.astype(x.dtype), jnp.concatenate(rows), 1)
    return out.reshape(3, 3, c, features)


def _padded(x: Array, pad) -> Array:
    """x padded to an even number of pixels."""
    edges = [(low, high + (size + low + high) % 2, 0) for size, (low, high) in zip(x.shape[1:3], pad, strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _of_pixels(x: Array, axis: int) -> tuple[Array, ...]:
    """B d along an axis, d the pixels 2 p .. 2 p + 3."""
    even, odd = (lax.slice_in_dim(x, start, None, 2, axis) for start in (0, 1))
    last = even.shape[axis]
    d0, d1 = (lax.slice_in_dim(part, 0, last - 1, 1, axis) for part in (even, odd))
    d2, d3 = (lax.slice_in_dim(part, 1, last, 1, axis) for part in (even, odd))
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _of_products(m) -> tuple[Array, Array]:
    """A m of four arrays."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _of_results(y: Array, axis: int) -> tuple[Array, ...]:
    """A' y along an axis, y the pixels 2 p and 2 p + 1."""
    even, odd = (lax.slice_in_dim(y, start, None, 2, axis) for start in (0, 1))
    return even, even + odd, even - odd, -odd
