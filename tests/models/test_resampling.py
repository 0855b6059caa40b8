"""FIR resampling against its definition in plain NumPy, and the layers around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.models.resampling import Combine, Downsample, Upsample, downsample, fir_filter, upsample

PUBLISHED = (1, 3, 3, 1)
CASES = [(PUBLISHED, (4, 6)), (PUBLISHED, (5, 7)), ((1, 5, 2, 3, 4), (5, 6))]  # odd sizes and a lopsided kernel too
EDGE = dict(upsample=lambda k: ((k - 1) // 2 + 1, (k - 2) // 2), downsample=lambda k: ((k - 1) // 2, (k - 2) // 2))


def images(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def upfirdn(x, kernel, pad, up=1, down=1):
    """Zeros between the pixels, zeros around them, a convolution of 2-D, each `down`-th pixel; in float64."""
    b, h, w, c = x.shape
    z = np.zeros((b, h * up, w * up, c))
    z[:, ::up, ::up] = x
    z = np.pad(z, ((0, 0), pad, pad, (0, 0)))
    window = np.outer(kernel, kernel) * up**2 / np.sum(kernel) ** 2
    k, (_, h, w, _) = len(kernel), z.shape
    out = np.zeros((b, h - k + 1, w - k + 1, c))
    for i in range(k):
        for j in range(k):
            out += window[k - 1 - i, k - 1 - j] * z[:, i : i + h - k + 1, j : j + w - k + 1]
    return out[:, ::down, ::down]


def direct(name, x, kernel):
    return upfirdn(x, kernel, EDGE[name](len(kernel)), **({"up": 2} if name == "upsample" else {"down": 2}))


@pytest.mark.parametrize("kernel, size", CASES, ids=str)
@pytest.mark.parametrize("resample", [upsample, downsample])
def test_fir_and_its_gradient_are_the_definition_and_its_transpose(resample, kernel, size):
    """The map is linear: the gradient of <y, R x> is R^T y, R column by column from the definition."""
    x = images(2, *size, 1)
    want = direct(resample.__name__, x, kernel)
    basis = np.eye(np.prod(size)).reshape(-1, *size, 1)
    matrix, y = direct(resample.__name__, basis, kernel), images(*want.shape)

    @jax.jit
    def both(x):
        out, transpose = jax.vjp(lambda x: resample(x, kernel), x)
        return out, *transpose(jnp.asarray(y))

    out, grad = both(x)
    assert out.shape == (2, *((2 * n if resample is upsample else n // 2) for n in size), 1)
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(grad.reshape(2, -1), np.einsum("phwc,bhwc->bp", matrix, y), atol=1e-5)


def test_a_constant_stays_constant_but_at_the_edges():
    up, down = (np.asarray(f(jnp.ones((1, 8, 10, 2)), PUBLISHED)) for f in (upsample, downsample))
    np.testing.assert_allclose(up[:, 1:-1, 1:-1], 1.0, rtol=1e-6)
    np.testing.assert_allclose(down[:, 1:-1, 1:-1], 1.0, rtol=1e-6)
    assert up[0, 0, 5, 0] == 0.75  # 3/4 of the pixel and 1/4 of the zero beside it
    assert down[0, 0, 2, 0] == 0.875  # one of the eight parts is a zero


def test_the_shortest_kernel_is_nearest_neighbour_and_mean():
    x = jnp.asarray(images(2, 4, 6, 3))
    np.testing.assert_array_equal(upsample(x, (1, 1)), upsample(x))
    np.testing.assert_allclose(downsample(x, (1, 1)), downsample(x), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtype_stays(dtype):
    x = jax.ShapeDtypeStruct((1, 4, 4, 2), dtype)
    for resample in (upsample, downsample):
        assert jax.eval_shape(lambda x, f=resample: f(x, PUBLISHED), x).dtype == dtype


def convolved(x, params, stride=1):
    """3x3 windows of x that lie inside it."""
    k, (_, h, w, _) = np.asarray(params["kernel"], np.float64), x.shape
    out = sum(x[:, i : h - 2 + i, j : w - 2 + j] @ k[i, j] for i in range(3) for j in range(3))
    return out[:, ::stride, ::stride] + np.asarray(params["bias"], np.float64)


def surround(x, low, high):
    return np.pad(x, ((0, 0), (low, high), (low, high), (0, 0)))


@pytest.mark.parametrize("kernel, size", [((), (4, 6)), ((), (5, 7)), *CASES], ids=str)
@pytest.mark.parametrize("layer", [Upsample, Downsample])
def test_layers(layer, kernel, size):
    x = images(2, *size, 3)
    params = {"kernel": images(3, 3, 3, 4), "bias": images(4)}
    out = jax.jit(layer(4, kernel).apply)({"params": {"Conv_0": params}}, x)
    if layer is Upsample:
        up = direct("upsample", x, kernel) if kernel else x.repeat(2, 1).repeat(2, 2)
        want = convolved(surround(up, 1, 1), params)
    elif kernel:  # k - 2 zeros to halve, and 3 - 1 for the convolution
        p = len(kernel)
        want = convolved(upfirdn(x, kernel, ((p + 1) // 2, p // 2)), params, stride=2)
    else:
        want = convolved(surround(x, 0, 1), params, stride=2)
    assert out.shape == want.shape
    np.testing.assert_allclose(out, want, atol=1e-4)


def test_zeros_on_all_sides():
    x, params = images(2, 4, 6, 3), {"kernel": images(3, 3, 3, 4), "bias": images(4)}
    out = Downsample(4, symmetric_padding=True).apply({"params": {"Conv_0": params}}, jnp.asarray(x))
    np.testing.assert_allclose(out, convolved(surround(x, 1, 1), params, stride=2), atol=1e-4)


def test_combine():
    image, x = images(1, 2, 3, 2), images(1, 2, 3, 4)
    params = {"Conv_0": {"kernel": images(1, 1, 2, 4), "bias": images(4)}}
    seen = image @ params["Conv_0"]["kernel"][0, 0] + params["Conv_0"]["bias"]
    joined = {m: jax.jit(Combine(m).apply)({"params": params}, image, x) for m in ("sum", "cat")}
    np.testing.assert_allclose(joined["sum"], seen + x, atol=1e-5)
    np.testing.assert_allclose(joined["cat"], np.concatenate([seen, x], -1), atol=1e-5)


def test_plain_filter_keeps_a_shifted_copy():
    """(0, 0, 1) takes the pixel two before: a convolution, not a correlation."""
    x = jnp.asarray(images(1, 4, 4, 1))
    np.testing.assert_array_equal(fir_filter(x, (0, 0, 1), (2, 0))[:, 2:, 2:], x[:, :2, :2])
