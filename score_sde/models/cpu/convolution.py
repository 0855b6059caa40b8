"""Convolutions that stay fast in loops on a CPU, with all their derivatives.

XLA has fast code on CPUs for convolutions of images (n, h, w, c) with kernels (h, w, in, out).  It rearranges others
into these, but not in the bodies of loops, where they take 10 to 30 times as long; and samplers are loops, as is
training with several steps a dispatch.  The derivatives that JAX makes are such others.  These here are not.  For

    y = x * k:  y[n, p, q, o] = sum x[n, s p + i, s q + j, c] k[i, j, c, o],  x padded, with stride s,

and Y, y with s - 1 zeros between its pixels, the derivatives' transposes are

    of x:  Y * (k turned by 180 degrees, in and out exchanged)
    of k:  sum x[n, p + i, q + j, c] Y[n, p, q, o]: images are the channels of x, and n are the channels.

Both are themselves of the kind that is fast.  Of many channels, those of 3x3 pixels are faster yet as matrix products
(`winograd`).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from . import winograd

Pad = tuple[tuple[int, int], tuple[int, int]]


def convolve(x: Array, kernel: Array, strides, padding, **how) -> Array:
    """`lax.conv_general_dilated` of images, with the arguments that `flax.linen.Conv` calls it with."""
    if kernel.shape[:2] == (1, 1) and set(strides) == {1}:
        return jnp.tensordot(x, kernel[0, 0], 1)
    pad = padding
    if isinstance(padding, str):
        pad = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return convolution_p.bind(x, kernel, stride=strides[0], pad=tuple(map(tuple, pad)))


def _convolution(x: Array, kernel: Array, *, stride: int, pad: Pad) -> Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _on_cpu(x: Array, kernel: Array, *, stride: int, pad: Pad) -> Array:
    if winograd.suits(x, kernel, stride):
        return winograd.convolve(x, kernel, pad)
    return _convolution(x, kernel, stride=stride, pad=pad)


def _spread(y: Array, x, kernel, stride: int, pad: Pad) -> Array:
    """y with zeros between its pixels: the shape that it would have with a stride of 1."""
    edges = [(0, 0, 0)]
    for axis in (0, 1):
        size = x.shape[1 + axis] + sum(pad[axis]) - kernel.shape[axis] + 1
        edges.append((0, size - (y.shape[1 + axis] - 1) * stride - 1, stride - 1))
    return y if stride == 1 else lax.pad(y, jnp.zeros((), y.dtype), [*edges, (0, 0, 0)])


def _image_transpose(y: Array, x, kernel: Array, *, stride: int, pad: Pad) -> Array:
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    rest = tuple((size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape, pad, strict=False))
    return convolution_p.bind(_spread(y, x.aval, kernel, stride, pad), turned, stride=1, pad=rest)


def _kernel_transpose(y: Array, x: Array, kernel, *, stride: int, pad: Pad) -> Array:
    if jax.default_backend() != "cpu":  # asked here, since the forward pass is traced before devices are chosen
        return jax.linear_transpose(lambda k: _convolution(x, k, stride=stride, pad=pad), kernel.aval)(y)[0]
    if winograd.suits(x, kernel.aval, stride):
        return winograd.kernel_derivative(x, y, pad)
    images, rows = x.transpose(3, 1, 2, 0), _spread(y, x, kernel.aval, stride, pad).transpose(1, 2, 0, 3)
    return convolution_p.bind(images, rows, stride=1, pad=pad).transpose(1, 2, 0, 3)


def _batched(arrays, axes, **how):
    """Images of several batches are one batch; with several kernels it is whatever JAX makes of it."""
    x, kernel = arrays
    if axes[1] is not None:
        return jax.vmap(lambda x, k: _convolution(x, k, **how), in_axes=tuple(axes))(x, kernel), 0
    x = jnp.moveaxis(x, axes[0], 0)
    y = convolution_p.bind(x.reshape(-1, *x.shape[2:]), kernel, **how)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _abstract(x: ShapedArray, kernel: ShapedArray, **how) -> ShapedArray:
    return jax.make_jaxpr(partial(_convolution, **how))(x, kernel).out_avals[0]


convolution_p = Primitive("image_convolution")
convolution_p.def_impl(_convolution)
convolution_p.def_abstract_eval(_abstract)
mlir.register_lowering(convolution_p, mlir.lower_fun(_convolution, multiple_results=False))
mlir.register_lowering(convolution_p, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu")
ad.defbilinear(convolution_p, _image_transpose, _kernel_transpose)
batching.primitive_batchers[convolution_p] = _batched
