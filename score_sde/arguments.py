"""What public functions accept: every argument is looked at, and put into one form, before anything is traced.

`checked` reads a function's own signature, so annotations and names say what is meant:

    Number                  one real number; a whole one becomes a float, since `trees.jit` compiles for each integer
    int                     a count, at least 1
    bool                    a flag
    Float[Array, ...]       an array of floating-point numbers of that rank; of Integer[Array, ...], whole numbers
    a record, a Callable    an object of that class, something to call
    key, shape, grid        by their names: keys of `jax.random`; (B, *event); a rule, or an array of times

None passes where the signature allows it.  Values that are traced have a shape and a dtype, and no bounds.
"""

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np

from score_sde.trees import Frozen, Number, is_concrete

POSITIVE = {"rtol", "first_step", "resolution"}
NOT_NEGATIVE = {"atol", "temperature"}


def checked(fun: Callable) -> Callable:
    """`fun`, with its arguments checked against its signature (see this module).

    Raises:
        TypeError: an argument of another kind.
        ValueError: an array of another rank or kind of numbers, a count below 1, a tolerance or temperature that
            cannot be.
    """
    signature = inspect.signature(fun)
    rules = {p.name: _rule(p) for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD}

    @functools.wraps(fun)
    def call(*args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            bound = None
        if bound is None:
            return fun(*args, **kwargs)  # Python says what is missing or too much
        for name, value in bound.arguments.items():
            if name in rules:
                bound.arguments[name] = rules[name](value)
        return fun(*bound.args, **bound.kwargs)

    call.is_checked = True
    return call


def _rule(parameter: inspect.Parameter) -> Callable[[Any], Any]:
    """What makes an argument of its parameter, or raises."""
    name, annotation, optional = parameter.name, parameter.annotation, parameter.default is None
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        members = typing.get_args(annotation)
        optional = optional or type(None) in members
        members = [member for member in members if member is not type(None)]
        annotation = Number if set(members) == set(typing.get_args(Number)) else annotation
        annotation = members[0] if len(members) == 1 else annotation
    admit = functools.partial(_admit(name, annotation), name)
    return lambda value: None if value is None and optional else admit(value)


def _admit(name: str, annotation: Any) -> Callable[[str, Any], Any]:
    named = {"key": _key, "shape": _shape, "grid": _grid}
    if name in named:
        return named[name]
    if annotation is Number:
        return _number
    if annotation in (int, bool):
        return _count if annotation is int else _flag
    if typing.get_origin(annotation) is collections.abc.Callable:
        return _callable
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return functools.partial(_array, annotation)
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return functools.partial(_record, annotation)
    return lambda name, value: value


def describe(value: Any) -> str:
    """What was given, for a message of one line."""
    if isinstance(value, type):
        return f"the class {value.__name__}: make an object of it, {value.__name__}(...)"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        text = repr(value)
        kind = "" if value is None else f"{type(value).__name__} "
        return kind + (text if len(text) <= 40 else text[:40] + "...")
    return f"a {type(value).__name__}"


def _is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, np.generic))


def _number(name: str, value: Any) -> Number:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if _is_array(value):
        real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    if not real:
        raise TypeError(f"{name} must be a real number, got {describe(value)}.")
    if np.shape(value) != ():
        raise ValueError(f"{name} must be one number, got {describe(value)}.")
    if isinstance(value, (int, np.integer)):
        value = float(value)
    elif jnp.issubdtype(jnp.result_type(value), jnp.integer):
        value = value.astype(jnp.result_type(float))
    if is_concrete(value):
        low = 0 if name in POSITIVE | NOT_NEGATIVE else -np.inf
        if np.isnan(float(value)) or float(value) < low or (name in POSITIVE and float(value) == 0):
            bound = "positive" if name in POSITIVE else "at least 0" if name in NOT_NEGATIVE else "a real number"
            raise ValueError(f"{name} must be {bound}, got {float(value):g}.")
    return value


def _count(name: str, value: Any) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number that is no array, got {describe(value)}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")
    return int(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {describe(value)}.")
    return bool(value)


def _array(annotation: Any, name: str, value: Any) -> jax.Array:
    if not _is_array(value):
        raise TypeError(f"{name} must be an array, got {describe(value)}. Use jax.numpy.asarray.")
    if not isinstance(value, jax.Array):
        value = jnp.asarray(value)
    whole = annotation.dtype is jaxtyping.Integer
    if not jnp.issubdtype(value.dtype, jnp.integer if whole else jnp.floating):
        expected, remedy = ("whole", "quantise them") if whole else ("floating-point", "scale them, or use astype")
        raise ValueError(f"{name} must be an array of {expected} numbers, got {describe(value)}: {remedy}.")
    axes = annotation.dim_str.split()
    least = len(axes) - ("..." in axes)
    if value.ndim < least or (least == len(axes) and value.ndim > least):
        expected = ", ".join(axes).replace("...", "*event")
        raise ValueError(f"{name} must be of shape ({expected}), got {describe(value)}.")
    return value


def _key(name: str, value: Any) -> jax.Array:
    if isinstance(value, (jax.Array, np.ndarray)):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return value
        if value.dtype == np.uint32 and value.ndim in (1, 2) and value.shape[-1] == 2:  # jax.random.PRNGKey
            return jnp.asarray(value)
    raise TypeError(f"{name} must be a key or an array of keys, got {describe(value)}. Use jax.random.key(seed).")


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or not all(
        isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in value
    ):
        raise TypeError(f"{name} must be (B, *event), a tuple of whole numbers, got {describe(value)}.")
    if not value or min(value) < 1:
        raise ValueError(f"{name} must be (B, *event), each at least 1, got {tuple(value)}.")
    return tuple(map(int, value))


def _grid(name: str, value: Any) -> Any:
    if callable(value) or (_is_array(value) and np.issubdtype(value.dtype, np.number)):
        return value
    raise TypeError(f"{name} must be a function of score_sde.grids or an array of times, got {describe(value)}.")


def _callable(name: str, value: Any) -> Callable:
    if isinstance(value, type) or not callable(value):
        raise TypeError(f"{name} must be something to call, got {describe(value)}.")
    return value


def _record(kind: type, name: str, value: Any) -> Frozen:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be an object of {kind.__name__}, got {describe(value)}.")
    return value
