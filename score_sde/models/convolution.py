"""Convolutions that stay fast in loops on a CPU, with their derivatives.

XLA has fast code on CPUs for convolutions of images (b, h, w, c) with kernels (h, w, in, out), and rearranges others
into these; but not inside of loops, where others take 8 to 30 times as long (samplers are loops, as is training with
several steps a dispatch).  The derivatives that JAX makes are such others.  These here are not:

    y = x * k            x^T(y) = y * flip(k)^T            k^T(x, y)[i, j] = sum_n,h,w x[n, h + i, w + j] y[n, h, w]

the first two are convolutions of images; the last is one along the height, of an image whose channels are its pixels in
a row (all n and w) and whose examples are the channels of x, shifted along the width in turn.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax, vmap
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

IMAGES = ("NHWC", "HWIO", "NHWC")


def convolve(x: Array, kernel: Array, strides, padding, **how) -> Array:
    """`lax.conv_general_dilated` of images, as `flax.linen.Conv` calls it."""
    if set(strides) == {1} and padding == "SAME" and all(size % 2 for size in kernel.shape[:2]):
        if kernel.shape[:2] == (1, 1):
            return jnp.tensordot(x, kernel[0, 0], 1)
        return same_p.bind(x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, **how)


def _same(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=IMAGES)


def _image_gradient(y: Array, x, kernel: Array) -> Array:
    return same_p.bind(y, kernel[::-1, ::-1].swapaxes(2, 3))


def _kernel_gradient(y: Array, x: Array, kernel) -> Array:
    (n, h, w, c), (height, width, _, features) = x.shape, kernel.aval.shape
    shifted = jnp.pad(x, ((0, 0), (0, 0), (width // 2, width // 2), (0, 0)))
    shifted = jnp.concatenate([shifted[:, :, j : j + w] for j in range(width)], axis=-1)
    images = shifted.transpose(3, 1, 0, 2).reshape(width * c, h, 1, n * w)
    kernels = y.transpose(1, 0, 2, 3).reshape(h, 1, n * w, features)
    pad = ((height // 2, height // 2), (0, 0))
    out = lax.conv_general_dilated(images, kernels, (1, 1), pad, dimension_numbers=IMAGES)  # (width c, height, 1, out)
    return out.reshape(width, c, height, features).transpose(2, 0, 1, 3)


def _batched(arrays, axes):
    """Images of several batches are one batch; with several kernels, whatever JAX makes of it."""
    x, kernel = arrays
    if axes[1] is None:
        x = jnp.moveaxis(x, axes[0], 0)
        y = same_p.bind(x.reshape(-1, *x.shape[2:]), kernel)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    return vmap(_same, in_axes=tuple(axes))(x, kernel), 0


same_p = Primitive("same_convolution")  # y = x * k of x (b, h, w, in) and k (kh, kw, in, out), kh and kw odd
same_p.def_impl(_same)
same_p.def_abstract_eval(lambda x, k: ShapedArray((*x.shape[:3], k.shape[3]), x.dtype))
mlir.register_lowering(same_p, mlir.lower_fun(_same, multiple_results=False))
ad.defbilinear(same_p, _image_gradient, _kernel_gradient)
batching.primitive_batchers[same_p] = _batched
