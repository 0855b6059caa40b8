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
from jax import Array, lax

CHANNELS = 64  # from which the products outweigh the additions around them


def suits(x, kernel, stride: int) -> bool:
    """Whether images and kernel, arrays or their shapes, are convolved faster this way."""
    window, wide = kernel.shape[:2] == (3, 3), min(kernel.shape[2:]) >= CHANNELS
    return window and wide and stride == 1 and x.dtype == kernel.dtype == jnp.float32


def convolve(x: Array, kernel: Array, pad) -> Array:
    """x (n, h, w, c), padded by ((low, high), (low, high)), convolved with a kernel (3, 3, c, o)."""
    n, c, features = x.shape[0], *kernel.shape[2:]
    height, width = (size + sum(p) - 2 for size, p in zip(x.shape[1:3], pad, strict=True))
    images = _of_images(x, pad)
    kernels = [k for row in _of_kernel(kernel, 0) for k in _of_kernel(row, 0)]
    shape = (n, -(-height // 2), -(-width // 2), features)
    products = [(d.reshape(-1, c) @ k).reshape(shape) for d, k in zip(images, kernels, strict=True)]
    rows = [_of_products(products[j::4]) for j in range(4)]
    tiles = jnp.stack([jnp.stack(_of_products(row), axis=3) for row in zip(*rows, strict=True)], axis=2)
    return tiles.reshape(n, 2 * shape[1], 2 * shape[2], features)[:, :height, :width]


def kernel_derivative(x: Array, y: Array, pad) -> Array:
    """The transpose of `convolve` in its kernel: of y, as `convolve` returns it, to (3, 3, c, o)."""
    c, features = x.shape[3], y.shape[3]
    even = lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *((0, size % 2, 0) for size in y.shape[1:3]), (0, 0, 0)])
    results = [r for row in _of_results(even, 1) for r in _of_results(row, 2)]
    sums = [
        lax.dot_general(d.reshape(-1, c), r.reshape(-1, features), (((0,), (0,)), ((), ())))
        for d, r in zip(_of_images(x, pad), results, strict=True)
    ]
    rows = [_to_kernel(sums[4 * i : 4 * i + 4]) for i in range(4)]
    return jnp.stack([jnp.stack(_to_kernel(column)) for column in zip(*rows, strict=True)], axis=1)


def _of_images(x: Array, pad) -> list[Array]:
    """B d B' of every tile: sixteen (n, tiles down, tiles across, c)."""
    edges = [(low, high + (size + low + high) % 2, 0) for size, (low, high) in zip(x.shape[1:3], pad, strict=True)]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    return [d for row in _of_pixels(padded, 1) for d in _of_pixels(row, 2)]


def _of_pixels(x: Array, axis: int) -> tuple[Array, ...]:
    """B d along an axis, d the pixels 2 p .. 2 p + 3."""
    even, odd = (lax.slice_in_dim(x, start, None, 2, axis) for start in (0, 1))
    last = even.shape[axis]
    d0, d1 = (lax.slice_in_dim(part, 0, last - 1, 1, axis) for part in (even, odd))
    d2, d3 = (lax.slice_in_dim(part, 1, last, 1, axis) for part in (even, odd))
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _of_kernel(k: Array, axis: int) -> tuple[Array, ...]:
    """G k along an axis."""
    k0, k1, k2 = (lax.index_in_dim(k, i, axis, keepdims=False) for i in range(3))
    return k0, (k0 + k1 + k2) / 2, (k0 - k1 + k2) / 2, k2


def _to_kernel(u) -> tuple[Array, ...]:
    """G' u of four arrays."""
    return u[0] + (u[1] + u[2]) / 2, (u[1] - u[2]) / 2, (u[1] + u[2]) / 2 + u[3]


def _of_products(m) -> tuple[Array, Array]:
    """A m of four arrays."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _of_results(y: Array, axis: int) -> tuple[Array, ...]:
    """A' y along an axis, y the pixels 2 p and 2 p + 1."""
    even, odd = (lax.slice_in_dim(y, start, None, 2, axis) for start in (0, 1))
    return even, even + odd, even - odd, -odd
