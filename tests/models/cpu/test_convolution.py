"""Convolutions and their derivatives against `lax.conv_general_dilated`'s; those that are left are fast in loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from score_sde.models.cpu import convolve, winograd

IMAGES = ("NHWC", "HWIO", "NHWC")
CASES = [((3, 3), 1, "SAME", 64), ((5, 3), 1, "VALID", 2), ((3, 3), 2, ((0, 1), (0, 1)), 3)]
TILED = [((3, 3), 1, pad, 4) for pad in ("SAME", "VALID", ((2, 0), (1, 3)))]  # as matrix products
MORE = [
    ((3, 3), 1, "SAME", 5), ((3, 3), 2, ((1, 1), (1, 1)), 64), ((3, 3), 3, "VALID", 2), ((1, 1), 1, "SAME", 4),
    ((1, 1), 2, "SAME", 2),
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_ones_as_matrix_products_too(monkeypatch):
    monkeypatch.setattr(winograd, "CHANNELS", 4)
    monkeypatch.setattr(winograd, "TILES", 1)


def case(window, stride, padding, channels):
    """(ours, lax's) as f(x, kernel), and arguments."""
    ours = lambda x, k: convolve(x, k, (stride, stride), padding, dimension_numbers=IMAGES)  # noqa: E731
    theirs = lambda x, k: lax.conv_general_dilated(  # noqa: E731
        x, k, (stride, stride), padding, dimension_numbers=IMAGES
    )
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, 8, 7, channels))
    features = channels + 1 if (window, stride, padding, channels) in TILED else 3
    return ours, theirs, x, jax.random.normal(keys[1], (*window, channels, features)) / channels**0.5


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max())), a, b)


@pytest.mark.parametrize(
    "window, stride, padding, channels",
    CASES + TILED[2:] + [pytest.param(*c, marks=pytest.mark.slow) for c in MORE + TILED[:2]],
)
def test_values_and_derivatives_are_those_of_the_convolution(window, stride, padding, channels):
    ours, theirs, x, k = case(window, stride, padding, channels)

    def all_of(f):
        def loss(x, k):
            return jnp.sum(jnp.sin(f(x, k)))

        forward = jax.jvp(f, (x, k), (2 * x, jnp.cos(k)))
        many = jax.vmap(f, in_axes=(2, None))(jnp.stack([x, 2 * x], 2), k)
        kernels = jax.vmap(f)(jnp.stack([x, x]), jnp.stack([k, -k]))
        mapped = jax.vmap(jax.grad(loss, 1), in_axes=(0, None))(jnp.stack([x, 2 * x]), k)
        return forward, many, kernels, mapped, jax.grad(loss, (0, 1))(x, k)

    close(jax.jit(all_of, static_argnums=0)(ours), jax.jit(all_of, static_argnums=0)(theirs))


@pytest.mark.parametrize("shape", [(2, 8, 7), (1, 2, 2), (3, 5, 4)])
def test_matrix_products_stand_for_wide_convolutions_on_a_cpu_and_round_as_they_do(shape):
    c, keys = 64, jax.random.split(jax.random.key(1), 3)
    x, y = (jax.random.normal(key, (*shape, n)) for key, n in zip(keys, (c, c + 2), strict=False))
    k = jax.random.normal(keys[2], (3, 3, c, c + 2))

    def all_of(f, x, k, y):
        out, back = jax.vjp(lambda x, k: f(x, k, (1, 1), "SAME", dimension_numbers=IMAGES), x, k)
        return out, *back(y)

    def worst(arrays):
        return [np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in zip(map(np.asarray, arrays), exact, strict=True)]

    ours, theirs = (jax.jit(partial(all_of, f)) for f in (convolve, lax.conv_general_dilated))
    with jax.enable_x64():
        exact = [np.asarray(a) for a in theirs(*(np.asarray(a, np.float64) for a in (x, k, y)))]
    assert all(a.dtype == np.float64 for a in exact)
    assert "convolution" not in ours.lower(x, k, y).as_text()
    assert max(worst(ours(x, k, y))) < 4 * max(worst(theirs(x, k, y))) < 1e-5


def test_other_devices_keep_their_own_derivative_of_the_kernel(monkeypatch):
    ours, theirs, x, k = case(*CASES[2])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    close(*(jax.grad(lambda k, f=f: jnp.sum(jnp.sin(f(x, k))))(k) for f in (ours, theirs)))


@pytest.mark.slow
@pytest.mark.parametrize("window, stride, padding, channels", CASES + MORE + TILED[:1])
def test_second_derivatives(window, stride, padding, channels):
    ours, theirs, x, k = case(window, stride, padding, channels)

    def all_of(f):
        score = jax.grad(lambda x, k: jnp.sum(jnp.sin(f(x, k))))
        moved = lambda k: jnp.sum(jax.jvp(lambda x: score(x, k), (x,), (x,))[1] ** 2)  # noqa: E731
        return jax.grad(moved)(k), jax.grad(lambda k: jnp.sum(score(x, k) ** 2))(k)

    close(jax.jit(all_of, static_argnums=0)(ours), jax.jit(all_of, static_argnums=0)(theirs))


@pytest.mark.parametrize("channels", [8, 64])
def test_every_convolution_is_of_the_kind_that_is_fast_in_loops(channels):
    """As lowered: neither swapped dimensions nor turned or dilated windows, which XLA would have to rearrange."""
    ours, theirs, x, k = case((3, 3), 2, ((0, 1), (0, 1)), channels)

    def others(f):
        gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(f(x, k))), (0, 1))
        lines = [
            line for line in jax.jit(gradient).lower(x, k).as_text().splitlines() if "stablehlo.convolution" in line
        ]
        assert len(lines) == 3, lines
        good = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
        bad = ("lhs_dilate = [2", "rhs_dilate = [2", "reverse = [true")
        return sum(good not in line or any(b in line for b in bad) for line in lines)

    assert others(ours) == 0 < others(theirs)
