"""Operators: adjoints, what they measure on small arrays, other numbers without compiling, checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde import trees
from score_sde.guidance.operators import (
    AveragePool,
    Blur,
    Function,
    GreyScale,
    Mask,
    Matrix,
    Operator,
    SubsampledFourier,
    gaussian_kernel,
    random_projection,
)
from tests.catalogue import classes, name

EVENT = (6, 4, 3)
PATTERN = (np.arange(24).reshape(6, 4) % 3 > 0).astype(float)


def examples():
    return [
        Mask(EVENT, jnp.array(PATTERN.tolist())[:, :, None]),
        GreyScale(EVENT),
        AveragePool(EVENT, 2),
        Blur(EVENT, jnp.array([[0.1, 0.2, 0.0], [0.3, 0.1, 0.1], [0.0, 0.2, 0.4]])),
        SubsampledFourier(EVENT, jnp.array(PATTERN.tolist())),
        random_projection(jax.random.key(0), EVENT, 5),
        Function(EVENT, lambda x: jnp.cumsum(x, 1)[::2]),
    ]


def test_every_operator_has_an_example():
    assert {type(made) for made in examples()} == {c for c in classes(ss.operators, Operator) if c is not Operator}


def by_hand(operator, x):
    """What an example measures of x, in plain numpy."""
    match operator:
        case Mask():
            return x * PATTERN[None, :, :, None]
        case GreyScale():
            return (x @ np.array([0.299, 0.587, 0.114]))[..., None]
        case AveragePool():
            return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
        case Blur():
            wide, kernel = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge"), np.asarray(operator.kernel)
            return sum(kernel[i, j] * wide[:, i : i + 6, j : j + 4] for i in range(3) for j in range(3))
        case SubsampledFourier():
            waves = np.fft.fft2(x, axes=(1, 2), norm="ortho") * PATTERN[None, :, :, None]
            return np.stack([waves.real, waves.imag], -1)
        case Matrix():
            return x.reshape(2, -1) @ np.asarray(operator.matrix).T
        case _:
            return np.cumsum(x, 2)[:, ::2]


both = trees.jit(lambda operator, x, y: (operator(x), operator.adjoint(y)))


@pytest.mark.parametrize("index", range(len(examples())), ids=lambda i: name(examples()[i]))
def test_measurement_and_adjoint(index, x64):
    operator = examples()[index]
    x = jax.random.normal(jax.random.key(1), (2, *EVENT))
    y = jax.random.normal(jax.random.key(2), (2, *operator.output.shape))
    z, back = both(operator, x, y)
    assert (z.shape[1:], back.shape) == (operator.output.shape, x.shape)
    np.testing.assert_allclose(z, by_hand(operator, np.asarray(x)), atol=1e-12)
    for i in range(2):  # sample by sample
        np.testing.assert_allclose(jnp.vdot(z[i], y[i]), jnp.vdot(x[i], back[i]), rtol=1e-10)
    np.testing.assert_allclose(operator.restrict(z), z)  # what is measured stays
    assert 0 < int(operator.rank) <= z[0].size


def test_ranks_and_hidden_pixels():
    mask, _, _, _, fourier, matrix, _ = examples()
    assert (int(mask.rank), int(fourier.rank), matrix.rank) == (int(PATTERN.sum()) * 3, int(PATTERN.sum()) * 6, 5)
    np.testing.assert_allclose(gaussian_kernel(1.0, 2).sum(), 1.0, rtol=1e-6)
    hidden = jnp.where(mask.restrict(jnp.ones((1, *EVENT))) > 0, 1.0, jnp.nan)
    assert np.isfinite(mask.restrict(hidden)).all()  # unknown pixels may hold anything


def test_other_numbers_do_not_compile_again():
    x = jnp.ones((1, *EVENT))
    run = trees.jit(lambda operator, x: operator.adjoint(operator(x)))
    for make in (lambda v: Mask(EVENT, v * jnp.ones(EVENT)), lambda v: Blur(EVENT, v * jnp.ones((3, 3)))):
        run(make(0.0), x)
        programs = run.cache_size()
        run(make(1.0), x)
        assert run.cache_size() == programs


@pytest.mark.parametrize(
    "message, make",
    [
        ("does not fit", lambda: Mask((4, 4), jnp.ones((3, 4)))),
        ("1 where pixels are known", lambda: Mask((4, 4), 0.5 * jnp.ones((4, 4)))),
        ("divisible by 4", lambda: AveragePool(EVENT, 4)),
        ("two odd sizes", lambda: Blur(EVENT, jnp.ones((2, 3)))),
        ("finite values of kernel", lambda: Blur(EVENT, jnp.full((3, 3), jnp.nan))),
        ("does not fit", lambda: GreyScale((4, 4, 1))),
        ("does not fit", lambda: Matrix((4,), jnp.ones((2, 3)))),
        ("fn.0. != 0", lambda: Function((4,), lambda x: x + 1)),
        ("without a transpose", lambda: Function((4,), lambda x: x**2)),
        ("real values", lambda: Function((4,), jnp.fft.fft)),
        ("expected x of shape", lambda: GreyScale(EVENT)(jnp.ones((2, 4, 4, 3)))),
        ("expected y of shape", lambda: GreyScale(EVENT).adjoint(jnp.ones((2, *EVENT)))),
    ],
)
def test_what_does_not_fit_is_refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()
