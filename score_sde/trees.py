"""Frozen objects that are pytrees, and a `jit` that treats them as such.

Everything a user composes here (SDE, prediction, sampler, divergence, result) is an immutable record.  Its numbers are
leaves, so they can be traced, mapped and differentiated, and other values do not compile again; orders, counts and
shapes are static.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, dataclass_transform

import jax
import numpy as np
from jax import Array

Number = float | int | Array | np.ndarray | np.generic


def static(default: Any = dataclasses.MISSING) -> Any:
    """A field that is part of the program (an order, a count), not a traced number."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
class Frozen:
    """Base of all records: a subclass becomes a frozen dataclass and a pytree by being defined.

    Subclasses may define `check(self)`, which is called when an object is made from concrete values (never on the way
    through a transformation) and raises ValueError on values that cannot be.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        fields = dataclasses.fields(cls)
        data = [f.name for f in fields if not f.metadata.get("static")]
        meta = [f.name for f in fields if f.metadata.get("static")]

        def flatten(obj):
            return [getattr(obj, n) for n in data], tuple(getattr(obj, n) for n in meta)

        def flatten_with_keys(obj):
            return [(jax.tree_util.GetAttrKey(n), getattr(obj, n)) for n in data], flatten(obj)[1]

        def unflatten(aux, children):  # no __init__: transformations put tracers and placeholders here
            obj = object.__new__(cls)
            for name, value in zip([*data, *meta], [*children, *aux], strict=True):
                object.__setattr__(obj, name, value)
            return obj

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if whole and not field.metadata.get("static"):  # VP(0.1, 20) is VP(0.1, 20.0)
                object.__setattr__(self, field.name, float(value))
        if is_concrete(self):
            self.check()

    def check(self) -> None:
        """Raise ValueError if the values make no sense."""


def is_concrete(tree: Any) -> bool:
    """Whether no leaf of `tree` is being traced, so that its values can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, (float, complex, np.ndarray, np.generic, jax.Array))


def jit(fun: Callable) -> Callable:
    """`jax.jit` for functions of anything: arrays and floats are traced; ints, strings and functions are static.

    A score with weights passes as a pytree (`jax.tree_util.Partial(apply, params)`, an Equinox module, a record of this
    package): new weights do not trace again.  A bare function is a static leaf, compared by identity: each new closure
    compiles anew.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def compiled(structure, *numbers):
        treedef, fixed = structure
        numbers = iter(numbers)
        leaves = [next(numbers) if kind is None else leaf for kind, leaf in fixed]
        args, kwargs = jax.tree.unflatten(treedef, leaves)
        return fun(*args, **kwargs)

    @functools.wraps(fun)
    def call(*args, **kwargs):
        leaves, treedef = jax.tree.flatten((args, kwargs))
        # The type is kept beside a static leaf, since 1 == True would share a program.
        fixed = tuple((None, None) if _is_number(leaf) else (type(leaf), leaf) for leaf in leaves)
        return compiled((treedef, fixed), *(leaf for leaf in leaves if _is_number(leaf)))

    call.cache_size = compiled._cache_size  # for tests that count compilations
    return call
