"""Linear measurements y = A x, each with its adjoint.

An operator states what it does to one sample, `at(x)`; the adjoint follows by transposition (`jax.linear_transpose`).
Its numbers are traced: another mask or kernel of the same shape does not compile again.

>>> import jax.numpy as jnp, score_sde as ss
>>> grey = ss.operators.GreyScale((8, 8, 3))
>>> x, y = jnp.ones((2, 8, 8, 3)), jnp.ones((2, 8, 8, 1))
>>> grey(x).shape, bool(jnp.isclose(jnp.vdot(grey(x), y), jnp.vdot(x, grey.adjoint(y))))
((2, 8, 8, 1), True)
"""

import math
from abc import abstractmethod
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_sde.guidance.guided import check_finite
from score_sde.trees import Frozen, Number, is_concrete, static

State = Float[Array, "b ..."]


class Operator(Frozen):
    """A linear map A of arrays of shape `event`.  A subclass states `at(x)`, A of one sample."""

    event: tuple[int, ...] = static()

    def check(self):
        try:
            out = self.output
        except (TypeError, ValueError) as error:
            raise ValueError(f"{type(self).__name__} does not fit images of shape {self.event}: {error}") from error
        if not jnp.issubdtype(out.dtype, jnp.floating):
            raise ValueError(f"{type(self).__name__}: expected real values, got {out.dtype}. Stack the two parts.")

    @abstractmethod
    def at(self, x: Array) -> Array:
        """A x of one x of shape `event`."""
        raise TypeError(f"{type(self).__name__} must define at")

    @property
    def output(self) -> jax.ShapeDtypeStruct:
        """The shape of A x for one sample."""
        return jax.eval_shape(self.at, jax.ShapeDtypeStruct(self.event, jnp.result_type(float)))

    @property
    def rank(self) -> Number:
        """How many numbers are measured."""
        return math.prod(self.output.shape)

    def restrict(self, y: Array) -> Array:
        """y without what A never sets (pixels that a mask hides)."""
        return y

    def __call__(self, x: State) -> State:
        """A x, of x (B, *event)."""
        if x.shape[1:] != self.event:
            raise ValueError(f"{type(self).__name__}: expected x of shape (B, *{self.event}), got {x.shape}.")
        return jax.vmap(self.at)(x)

    def adjoint(self, y: State) -> State:
        """A^T y, of y (B, *output shape)."""
        if y.shape[1:] != self.output.shape:
            raise ValueError(f"{type(self).__name__}: expected y of shape (B, *{self.output.shape}), got {y.shape}.")
        transpose = jax.linear_transpose(self.at, jax.ShapeDtypeStruct(self.event, y.dtype))
        return jax.vmap(lambda y: transpose(y)[0])(y)


class Mask(Operator):
    """Inpainting: y = mask x.  `mask`, of a shape that broadcasts to `event`, is 1 where pixels are known, else 0."""

    mask: Array

    def check(self):
        super().check()
        if is_concrete(self.mask) and not np.isin(np.asarray(self.mask), (0, 1)).all():
            raise ValueError("Mask: expected 1 where pixels are known and 0 elsewhere, got other values.")

    def at(self, x):
        return x * self._known(x)

    @property
    def rank(self):
        return jnp.sum(self._known(jnp.zeros(self.event)))

    def restrict(self, y):
        return jnp.where(self._known(y[0])[None] > 0, y, jnp.zeros_like(y))

    def _known(self, x: Array) -> Array:
        return jnp.broadcast_to(jnp.asarray(self.mask), self.event).astype(x.dtype)


class GreyScale(Operator):
    """Colourisation: y = sum_c weights_c x_c, (..., C) -> (..., 1); unless given, weights are BT.601's luma."""

    weights: tuple[Number, ...] | Array = (0.299, 0.587, 0.114)

    def at(self, x):
        weights = jnp.stack([jnp.asarray(w, x.dtype) for w in self.weights])
        return jnp.tensordot(x, weights, 1)[..., None]


class AveragePool(Operator):
    """Super-resolution: means over blocks of `factor` x `factor` pixels, (H, W, C) -> (H/f, W/f, C)."""

    factor: int = static(2)

    def at(self, x):
        f = self.factor
        height, width, channels = x.shape
        if height % f or width % f:
            raise ValueError(f"height and width must be divisible by {f}")
        return jnp.mean(x.reshape(height // f, f, width // f, f, channels), axis=(1, 3))


class Blur(Operator):
    """Correlation with `kernel` (k, l), both odd, channel by channel; the border pixels go on outside of (H, W, C)."""

    kernel: Array

    def check(self):
        super().check()
        check_finite("kernel", jnp.asarray(self.kernel))

    def at(self, x):
        kernel = jnp.asarray(self.kernel).astype(x.dtype)
        if kernel.ndim != 2 or not all(size % 2 for size in kernel.shape):
            raise ValueError(f"the kernel must have two odd sizes, not {kernel.shape}")
        edges = [(size // 2, size // 2) for size in kernel.shape]
        images = jnp.pad(jnp.moveaxis(x, -1, 0)[:, None], ((0, 0), (0, 0), *edges), mode="edge")
        return jnp.moveaxis(jax.lax.conv(images, kernel[None, None], (1, 1), "VALID")[:, 0], 0, -1)


class SubsampledFourier(Operator):
    """Some frequencies of each channel: the real and imaginary parts, in a last axis of 2, of mask F x.

    F is the orthonormal Fourier transform over (H, W) and `mask` (H, W) is 1 at the frequencies that are measured.
    """

    mask: Array

    def at(self, x):
        waves = jnp.fft.fft2(x, axes=(0, 1), norm="ortho")
        parts = jnp.stack([jnp.real(waves), jnp.imag(waves)], -1)
        return parts * self._known(parts)

    @property
    def rank(self):
        return jnp.sum(self._known(jnp.zeros(self.output.shape)))

    def restrict(self, y):
        return jnp.where(self._known(y[0])[None] > 0, y, jnp.zeros_like(y))

    def _known(self, parts: Array) -> Array:
        return jnp.broadcast_to(jnp.asarray(self.mask)[:, :, None, None], (*self.event, 2)).astype(parts.dtype)


class Matrix(Operator):
    """y = M x over the flattened event, M (m, D)."""

    matrix: Array

    def check(self):
        super().check()
        check_finite("matrix", jnp.asarray(self.matrix))

    def at(self, x):
        return jnp.asarray(self.matrix).astype(x.dtype) @ x.ravel()


class Function(Operator):
    """Any linear `fn(x)` of one sample; a `jax.tree_util.Partial(fn, numbers)` keeps its numbers traced."""

    fn: Callable[[Array], Array]

    def check(self):
        super().check()
        zero = jnp.zeros(self.event)
        if is_concrete(self.fn) and bool(jnp.any(self.fn(zero) != 0)):
            raise ValueError(
                "Function: expected a linear fn, got one with fn(0) != 0. Subtract fn(0) from it and from y."
            )
        try:
            jax.eval_shape(jax.linear_transpose(self.fn, zero), self.output)
        except (TypeError, ValueError, NotImplementedError, AssertionError) as error:
            raise ValueError("Function: expected a linear fn, got one without a transpose. Use dps for it.") from error

    def at(self, x):
        return self.fn(x)


def random_projection(key: Array, event: tuple[int, ...], rows: int) -> Matrix:
    """The matrix (rows, D) of independent N(0, 1/D) entries, D = the size of `event`, as an operator."""
    size = math.prod(event)
    return Matrix(tuple(event), jax.random.normal(key, (rows, size)) / math.sqrt(size))


def gaussian_kernel(std: float, radius: int) -> Array:
    """A Gaussian of this standard deviation in pixels, (2 radius + 1) squared, of sum 1, for `Blur`."""
    line = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1.0) / std))
    return jnp.asarray(np.outer(line, line) / line.sum() ** 2)
