"""Records are frozen pytrees; `jit` traces their numbers and fixes the rest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import trees
from score_sde.trees import Frozen, Number, static


class Solver(Frozen):
    scale: Number = 1.0
    order: int = static(2)

    def check(self):
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, got {self.scale}.")


class Scheme(Frozen):
    solver: Solver
    tolerance: Number = 0.1


class Annealed(Solver):
    churn: Number = 0.5


def counted(fun):
    """`fun`, and a list that grows at each of its traces (at each call, where it is not traced)."""
    traces = []

    def traced(*args, **kwargs):
        traces.append(None)
        return fun(*args, **kwargs)

    return trees.jit(traced), traces


def test_a_record_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Solver().scale = 2.0


def test_numbers_are_leaves_and_static_fields_are_structure():
    leaves, treedef = jax.tree.flatten(Scheme(Solver(3.0, order=4), tolerance=0.2))
    assert leaves == [3.0, 0.2]
    assert jax.tree.unflatten(treedef, leaves) == Scheme(Solver(3.0, order=4), tolerance=0.2)
    assert treedef != jax.tree.structure(Scheme(Solver(3.0, order=5), tolerance=0.2))


def test_leaves_are_named_after_their_fields():
    paths, _ = jax.tree_util.tree_flatten_with_path(Scheme(Solver()))
    assert [jax.tree_util.keystr(path) for path, _ in paths] == [".solver.scale", ".tolerance"]


def test_a_subclass_keeps_the_fields_and_the_check_of_its_base():
    assert jax.tree.leaves(Annealed(2.0, churn=0.1)) == [2.0, 0.1]
    assert jax.tree.map(lambda leaf: 2 * leaf, Annealed(2.0, 3, 0.1)) == Annealed(4.0, 3, 0.2)
    with pytest.raises(ValueError, match="got -1.0"):
        Annealed(-1.0)


def test_an_integer_given_for_a_number_is_that_number():
    double, traces = counted(lambda solver: 2 * solver.scale)
    assert type(Solver(3, order=3).scale) is float and type(Solver(3, order=3).order) is int
    assert double(Solver(3.0)) == double(Solver(3)) == 6
    assert len(traces) == 1


def test_values_are_checked_when_concrete_only():
    with pytest.raises(ValueError, match="scale must be positive, got -1.0"):
        Solver(-1.0)
    with pytest.raises(ValueError, match="scale must be positive"):
        dataclasses.replace(Solver(), scale=0.0)
    assert jax.jit(lambda scale: Solver(scale).scale)(-1.0) == -1.0
    placeholder = object()  # transformations put such things where numbers were
    assert jax.tree.map(lambda _: placeholder, Solver()).scale is placeholder


def test_is_concrete_sees_tracers_at_any_depth():
    assert trees.is_concrete((Solver(2.0), jnp.ones(3), "text", None))
    seen = []
    jax.jit(lambda scale: seen.append(trees.is_concrete([Scheme(Solver(scale))])))(2.0)
    assert seen == [False]


def test_other_numbers_do_not_compile_again_and_other_static_fields_do():
    power, traces = counted(lambda scheme, x: (scheme.solver.scale * x) ** scheme.solver.order + scheme.tolerance)
    x = jnp.arange(3.0)
    np.testing.assert_allclose(power(Scheme(Solver(2.0)), x), [0.1, 4.1, 16.1], rtol=1e-6)  # float32: 6e-8 a rounding
    np.testing.assert_allclose(power(Scheme(Solver(3.0), 0.2), x), [0.2, 9.2, 36.2], rtol=1e-6)
    assert len(traces) == power.cache_size() == 1
    np.testing.assert_allclose(power(Scheme(Solver(3.0, order=1), 0.2), x), [0.2, 3.2, 6.2], rtol=1e-6)
    assert len(traces) == power.cache_size() == 2


def test_strings_booleans_integers_and_functions_are_static():
    def apply(kind, flag, count, fun, x):
        assert (type(kind), type(flag), type(count)) == (str, bool, int)
        return fun(x) if flag else sum(x for _ in range(count))

    applied, traces = counted(apply)
    assert applied("a", True, 3, jnp.negative, 2.0) == applied("a", True, 3, jnp.negative, 2.0) == -2
    assert len(traces) == 1
    assert applied("a", False, 3, jnp.negative, 2.0) == 6
    assert applied("a", False, count=4, fun=jnp.negative, x=2.0) == 8


def test_values_that_compare_equal_but_differ_in_type_keep_apart():
    kind, traces = counted(lambda value, x: x + (10.0 if type(value) is bool else 20.0))
    assert (kind(True, 1.0), kind(1, 1.0), kind(True, 2.0), kind(1, 2.0)) == (11, 21, 12, 22)
    assert len(traces) == 2


@pytest.mark.parametrize("number", [2.0, 2j, np.float32(2), np.ones(2), jnp.ones(2)], ids=lambda n: type(n).__name__)
def test_floats_and_arrays_of_any_make_are_traced(number):
    traced = []
    trees.jit(lambda n: traced.append(isinstance(n, jax.core.Tracer)))(number)
    assert traced == [True]


def test_new_weights_do_not_trace_again_and_a_new_closure_does():
    call, traces = counted(lambda score, x: score(x))
    affine = lambda params, x: params["w"] * x + params["b"]  # noqa: E731 - one object, as a user's function is
    for w in (2.0, 3.0):
        score = jax.tree_util.Partial(affine, {"w": jnp.array(w), "b": jnp.array(1.0)})
        assert call(score, jnp.array(4.0)) == 4 * w + 1
    assert len(traces) == 1
    for w in (2.0, 3.0):
        assert call(lambda x, w=w: w * x, jnp.array(4.0)) == 4 * w
    assert len(traces) == 3


def test_jit_keeps_the_name_and_composes_with_transformations():
    @trees.jit
    def area(solver, x):
        """Of a square."""
        return (solver.scale * x) ** 2

    assert (area.__name__, area.__doc__) == ("area", "Of a square.")
    gradient = jax.grad(area)(Solver(3.0), 2.0)
    assert gradient == dataclasses.replace(gradient, scale=jnp.array(24.0))  # d (s x)^2 / ds = 2 s x^2, a record again
    assert jax.vmap(area, (None, 0))(Solver(3.0), jnp.arange(3.0)).tolist() == [0, 9, 36]
