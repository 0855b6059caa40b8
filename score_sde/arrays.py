"""The array conventions that every room shares.

States are `(B, *event)`, times `(B,)`, keys `(B,)`: one per sample, so that sample i is the same in a batch of 1 and
of 64, to rounding (for adaptive solves see `sample_adaptive`, `sample_sde` and `log_prob`).  What else a score knows of
each sample (its label, its measurement) is a `PerSample`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from score_sde.trees import Frozen


def expand(t: Float[Array, " b"], x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """`t` of shape (B,) with as many trailing axes of size 1 as broadcast against `x` of shape (B, *event)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def sum_event(x: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Sum over all axes but the first."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def mean_event(x: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Mean over all axes but the first."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def norm(x: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Euclidean norm over all axes but the first; at 0, where it has a kink, its derivative is 0."""
    squared = sum_event(jnp.square(x))
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def sample_keys(key: Array, batch: int) -> Key[Array, " b"]:
    """One key per sample: `fold_in(key, i)` for a single key; an array of `batch` keys is returned as it is.

    Raises:
        ValueError: when the number of keys is not the batch size, or for generators other than threefry (their mapped
            draws depend on the batch, which breaks the promise that a sample depends on its own key alone).
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if str(jax.random.key_impl(key)) != "threefry2x32":
        raise ValueError(
            f"expected a threefry key, got {jax.random.key_impl(key)}: its draws under vmap depend on the batch. "
            "Use jax.random.key(seed, impl='threefry2x32')."
        )
    if key.ndim == 0:
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"expected one key or {batch} keys (one per sample), got an array of shape {key.shape}.")
    return key


def fold_in(keys: Key[Array, " b"], number: int | Array) -> Key[Array, " b"]:
    """`jax.random.fold_in` for each of the samples' keys."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def normal(keys: Key[Array, " b"], like: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Standard normal noise of the shape and dtype of `like`, sample i from key i."""
    return jax.vmap(lambda key, x: jax.random.normal(key, x.shape, x.dtype))(keys, like)


class PerSample(Frozen):
    """Values (B, ...) of which each sample of a batch has its own, as a part of a score: see `of_sample`."""

    values: Array


def rows(value: Array | PerSample, batch: int) -> Array:
    """A value for each sample: those of a `PerSample`, or the same one, (B, ...).

    Raises:
        ValueError: at tracing, where a `PerSample` is of another batch.
    """
    if not isinstance(value, PerSample):
        return jnp.broadcast_to(value, (batch, *value.shape))
    if value.values.shape[0] != batch:
        raise ValueError(
            f"expected values for a batch of {batch}, got {value.values.shape[0]}. Give each its own, or all one."
        )
    return value.values


def of_sample(tree: Any, i: int | Array) -> Any:
    """`tree` (a score) as sample i sees it, in a batch of its own: what solvers with a clock per sample evaluate."""
    return _each(tree, lambda values: values[i][None])


def repeated(tree: Any, times: int) -> Any:
    """`tree` (a score) for a batch in which each sample stands `times` times in a row."""
    return _each(tree, lambda values: jnp.repeat(values, times, axis=0))


def _each(tree: Any, change: Any) -> Any:
    def apply(node):
        return PerSample(change(node.values)) if isinstance(node, PerSample) else node

    return jax.tree.map(apply, tree, is_leaf=lambda node: isinstance(node, PerSample))
