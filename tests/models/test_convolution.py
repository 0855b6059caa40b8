"""Convolutions and their derivatives against `lax.conv_general_dilated`'s; each of the kind that is fast in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from score_sde.models.convolution import WIDE, convolve

IMAGES = ("NHWC", "HWIO", "NHWC")
CASES = [((3, 3), 1, "SAME", WIDE), ((5, 3), 1, "VALID", 2), ((3, 3), 2, ((0, 1), (0, 1)), 3)]
MORE = [
    ((3, 3), 1, "SAME", 5), ((3, 3), 2, ((1, 1), (1, 1)), WIDE), ((3, 3), 3, "VALID", 2), ((1, 1), 1, "SAME", 4),
    ((1, 1), 2, "SAME", 2),
]  # fmt: skip


def case(window, stride, padding, channels):
    """(ours, lax's) as f(x, kernel), and arguments."""
    ours = lambda x, k: convolve(x, k, (stride, stride), padding, dimension_numbers=IMAGES)  # noqa: E731
    theirs = lambda x, k: lax.conv_general_dilated(  # noqa: E731
        x, k, (stride, stride), padding, dimension_numbers=IMAGES
    )
    keys = jax.random.split(jax.random.key(0))
    return (
        ours,
        theirs,
        jax.random.normal(keys[0], (2, 8, 7, channels)),
        jax.random.normal(keys[1], (*window, channels, 3)),
    )


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max())), a, b)


@pytest.mark.parametrize(
    "window, stride, padding, channels", CASES + [pytest.param(*c, marks=pytest.mark.slow) for c in MORE]
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


def test_other_devices_keep_their_own_derivative_of_the_kernel(monkeypatch):
    ours, theirs, x, k = case(*CASES[2])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    close(*(jax.grad(lambda k, f=f: jnp.sum(jnp.sin(f(x, k))))(k) for f in (ours, theirs)))


@pytest.mark.slow
@pytest.mark.parametrize("window, stride, padding, channels", CASES + MORE)
def test_second_derivatives(window, stride, padding, channels):
    ours, theirs, x, k = case(window, stride, padding, channels)

    def all_of(f):
        score = jax.grad(lambda x, k: jnp.sum(jnp.sin(f(x, k))))
        moved = lambda k: jnp.sum(jax.jvp(lambda x: score(x, k), (x,), (x,))[1] ** 2)  # noqa: E731
        return jax.grad(moved)(k), jax.grad(lambda k: jnp.sum(score(x, k) ** 2))(k)

    close(jax.jit(all_of, static_argnums=0)(ours), jax.jit(all_of, static_argnums=0)(theirs))


@pytest.mark.parametrize("channels", [8, WIDE])
def test_every_convolution_is_of_the_kind_that_is_fast_in_loops(channels):
    """As lowered: neither swapped dimensions nor turned or dilated windows, which XLA would have to rearrange."""
    ours, theirs, x, k = case((3, 3), 2, ((0, 1), (0, 1)), channels)

    def others(f):
        gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(f(x, k))), (0, 1))
        lines = [
            line for line in jax.jit(gradient).lower(x, k).as_text().splitlines() if "stablehlo.convolution" in line
        ]
        assert len(lines) == 3, lines
        good = ("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]", "[b, 0, f]x[0, i, o]->[b, 0, f]")
        bad = ("lhs_dilate = [2", "rhs_dilate = [2", "reverse = [true")
        return sum(not any(g in line for g in good) or any(b in line for b in bad) for line in lines)

    assert others(ours) == 0 < others(theirs)
