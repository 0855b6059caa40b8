"""The U-Net and its blocks against published counts, closed forms and plain NumPy."""

import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from score_sde.models import UNet
from score_sde.models.blocks import (
    AttentionBlock,
    FourierEmbedding,
    ResBlock,
    default_init,
    group_count,
    group_norm,
    positional_embedding,
)
from score_sde.models.resampling import downsample, upsample

TINY = dict(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.5)
LABEL = jnp.array([-4.0, 0.3, 3.0])


def shapes_of(net, *inputs):
    """The parameters' shapes; nothing is computed."""
    return jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]


def random_params(net, *inputs, std=0.3):
    """Parameters that are nowhere zero, so that no part of the network is silent."""
    draw = np.random.default_rng(1).standard_normal
    return jax.tree.map(lambda leaf: jnp.asarray(std * draw(leaf.shape), leaf.dtype), shapes_of(net, *inputs))


def images(*shape):
    return jax.random.normal(jax.random.key(2), shape)


@pytest.fixture(scope="module")
def tiny():
    """A small network with weights that are not zero, its jitted function of (params, x, label), and an input."""
    net, x = UNet(**TINY, embedding_type="fourier", fourier_scale=1.0), images(3, 8, 8, 2)
    params = random_params(net, x, LABEL)
    return net, jax.jit(lambda params, x, label: net.apply({"params": params}, x, label)), params, x


# --- the network as a whole


def count(**fields):
    shapes = shapes_of(UNet(**fields), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_published_parameter_counts():
    assert count() == 61_804_419  # DDPM++ on CIFAR-10
    assert count(num_res_blocks=8) == 106_632_579  # DDPM++ deep
    # nf frozen frequencies, and twice as many features into a Dense(4 nf)
    assert count(embedding_type="fourier") == 61_804_419 + 128 + 128 * 512


def test_norms_and_frequencies_of_other_networks():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32)
    params = {"scale": np.arange(6.0, dtype=np.float32), "bias": np.ones(6, np.float32)}
    grouped = x.reshape(2, 12, 2, 3)  # 2 groups of 3 channels that follow one another
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    want = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 0.5)
    out = group_norm(6, groups=2, eps=0.5).apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(out, want.reshape(x.shape) * params["scale"] + 1, atol=1e-5)
    label = jnp.array([1.0])
    for endpoint, last in ((True, 1e-4), (False, 1e-3)):  # of 4 frequencies: 10000^(-3/3), 10000^(-3/4)
        assert float(positional_embedding(label, 8, endpoint)[0, 3]) == pytest.approx(last, rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape, groups", [((2, 5, 3, 12), 4), ((3, 7, 8), 8), ((2, 4, 4, 6), 1)])
def test_norm_and_its_derivatives_are_those_of_flax(shape, groups, dtype):
    x, c, d = (jax.random.normal(jax.random.key(i), shape) for i in range(3))
    params = {"scale": np.linspace(0.5, 2, shape[-1], dtype=np.float32), "bias": np.ones(shape[-1], np.float32)}

    def of(norm):
        def value(params, x):
            return jnp.sum(norm.apply({"params": params}, x + 3).astype(jnp.float32) * c)

        score = jax.grad(value, (0, 1))
        return norm.apply({"params": params}, x), score(params, x), jax.jvp(lambda x: score(params, x), (x,), (d,))[1]

    ours, theirs = group_norm(shape[-1], dtype, groups, 1e-3), nn.GroupNorm(groups, epsilon=1e-3, dtype=dtype)
    assert of(ours)[0].dtype == of(theirs)[0].dtype == dtype
    tolerance = 3e-4 if dtype == "float32" else 3e-2  # of a sum of a hundred numbers; bfloat16: a digit less than 3
    for found, want in zip(*(jax.tree.leaves(of(norm)) for norm in (ours, theirs)), strict=True):
        np.testing.assert_allclose(found.astype(np.float32), want.astype(np.float32), tolerance, tolerance)


def test_every_norm_has_the_epsilon():
    net, x = UNet(**TINY, norm_eps=2.0**-10), images(3, 8, 8, 2)
    program = str(jax.make_jaxpr(lambda p: net.apply({"params": p}, x, LABEL))(shapes_of(net, x, LABEL)))
    assert program.count("0.0009765625") == program.count(" rsqrt ") > 10


def test_embedding_width():
    x = jnp.zeros((1, 8, 8, 2))
    positional, fourier = (shapes_of(UNet(**TINY, embedding_type=e), x, LABEL[:1]) for e in ("positional", "fourier"))
    assert positional["Dense_0"]["kernel"].shape == (8, 32)
    assert fourier["Dense_0"]["kernel"].shape == (16, 32)
    assert fourier["FourierEmbedding_0"]["W"].shape == (8,)


@pytest.mark.parametrize("resolution, blocks", [(32, 3), (8, 3), (2, 1), (64, 1)])
def test_attention_follows_the_height(resolution, blocks):
    """At a level of that height one on the way down and one on the way up; one in the middle at any rate."""
    net = UNet(nf=8, num_res_blocks=1, attn_resolutions=(resolution,))
    names = shapes_of(net, jnp.zeros((1, 32, 16, 3)), jnp.zeros(1))  # heights 32 16 8 4, widths 16 8 4 2
    assert sum(name.startswith("AttentionBlock") for name in names) == blocks


@pytest.mark.parametrize(
    "shape, ch_mult, embedding_type",
    [
        ((2, 8, 8, 1), (1, 2), "fourier"),
        pytest.param((1, 28, 28, 1), (1, 1, 2), "positional", marks=pytest.mark.slow),  # they compile for long
        pytest.param((1, 32, 16, 3), (1, 2), "fourier", marks=pytest.mark.slow),
    ],
)
def test_output_is_nearly_zero_at_first(shape, ch_mult, embedding_type):
    """The last kernel has variance 1e-10 / fan_avg and its input mean square below 1: outputs of about 1e-5."""
    net = UNet(nf=8, ch_mult=ch_mult, num_res_blocks=1, attn_resolutions=(7,), embedding_type=embedding_type)
    key = jax.random.key(0, impl="rbg")  # compiles in a fraction of the time
    out, _ = jax.jit(net.init_with_output)(key, images(*shape), jnp.ones(shape[0]))
    assert out.shape == shape and out.dtype == jnp.float32
    assert 1e-7 < float(jnp.max(jnp.abs(out))) < 1e-4


def test_label_and_image_change_the_output(tiny):
    _, apply, params, x = tiny
    out = apply(params, x, LABEL)
    assert float(jnp.min(jnp.max(jnp.abs(out - apply(params, x, LABEL + 1.0)), axis=(1, 2, 3)))) > 1e-2
    # attention reaches across the image: every corner of the output feels every corner of the input
    changed = jnp.abs(out - apply(params, x.at[:, 0, 0].add(3.0), LABEL))
    assert float(jnp.min(jnp.max(changed[:, -1, -1], axis=-1))) > 1e-4


def test_samples_do_not_see_each_other(tiny):
    net, apply, params, x = tiny
    batched = apply(params, x, LABEL)
    alone = jnp.concatenate([apply(params, x[i : i + 1], LABEL[i : i + 1]) for i in range(3)])
    mapped = jax.vmap(lambda x, label: net.apply({"params": params}, x[None], label[None])[0])
    scale = float(jnp.max(jnp.abs(batched)))
    np.testing.assert_allclose(alone, batched, rtol=0, atol=2e-5 * scale)
    np.testing.assert_allclose(jax.jit(mapped)(x, LABEL), batched, rtol=0, atol=2e-5 * scale)


@pytest.mark.slow
def test_jvp_is_the_derivative(tiny):
    _, apply, params, x = tiny
    v, step = jnp.cos(5 * x), 1e-2
    _, forward = jax.jit(lambda x, v: jax.jvp(lambda x: apply(params, x, LABEL), (x,), (v,)))(x, v)
    difference = (apply(params, x + step * v, LABEL) - apply(params, x - step * v, LABEL)) / (2 * step)
    assert float(jnp.linalg.norm(difference - forward) / jnp.linalg.norm(forward)) < 2e-2


@pytest.mark.slow
def test_gradient_reaches_all_but_the_frozen_frequencies(tiny):
    _, apply, params, x = tiny
    grads = jax.jit(jax.grad(lambda params: jnp.sum(apply(params, x, LABEL) * jnp.cos(x))))(params)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    silent = [jax.tree_util.keystr(path) for path, grad in leaves if not grad.any()]
    assert silent == ["['FourierEmbedding_0']['W']"]


@pytest.mark.slow
def test_dropout(tiny):
    net, apply, params, x = tiny
    off = apply(params, x, LABEL)
    on = jax.jit(lambda key: net.apply({"params": params}, x, LABEL, train=True, rngs={"dropout": key}))
    first, again, other = on(jax.random.key(0)), on(jax.random.key(0)), on(jax.random.key(1))
    assert jnp.array_equal(first, again) and jnp.array_equal(off, apply(params, x, LABEL))
    assert not jnp.allclose(first, other, atol=1e-2) and not jnp.allclose(first, off, atol=1e-2)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(lambda: net.apply({"params": params}, x, LABEL, train=True))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtype_follows_the_images(x64, dtype):
    """Traced with promotion forbidden, as the solvers of the maths rooms may run."""
    net, x = UNet(**TINY), jnp.zeros((3, 8, 8, 2), dtype)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        out, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x, LABEL.astype(dtype))
    assert out.dtype == dtype and out.shape == x.shape
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "fields, shape, label_shape, words",
    [
        ({}, (2, 30, 32, 3), (2,), "divisible by 8.*got 30x32.*Pad"),
        ({}, (2, 32, 28, 3), (2,), "divisible by 8.*got 32x28.*Pad"),
        ({"embedding_type": "sinus"}, (2, 32, 32, 3), (2,), "positional.*fourier.*got 'sinus'"),
    ],
)
def test_bad_input_is_refused(fields, shape, label_shape, words):
    with pytest.raises(ValueError, match=words):
        shapes_of(UNet(**fields), jnp.zeros(shape), jnp.zeros(label_shape))


@pytest.mark.parametrize("shape, label_shape", [((2, 32, 32, 3), ()), ((2, 32, 32, 3), (1,)), ((32, 32, 3), (32,))])
def test_bad_ranks_are_refused(shape, label_shape):
    with pytest.raises((ValueError, TypeError)):  # TypeError where the annotations are checked
        shapes_of(UNet(), jnp.zeros(shape), jnp.zeros(label_shape))


# --- embeddings, initialiser, groups, resampling


def test_positional_embedding():
    """h = 3 frequencies 1, 1e-2, 1e-4: at 0 the sines are 0 and the cosines 1; at 50 pi the angles are known."""
    out = np.asarray(positional_embedding(jnp.array([0.0, 50 * math.pi]), 6))
    np.testing.assert_allclose(out[0], [0, 0, 0, 1, 1, 1], atol=0)
    # 50 pi = 25 turns, half a turn / 2, pi / 200; float32 holds 50 pi to 8e-6
    want = [0, 1, math.sin(math.pi / 200), 1, 0, math.cos(math.pi / 200)]
    np.testing.assert_allclose(out[1], want, atol=1e-5)
    odd = positional_embedding(jnp.array([1.0]), 7)
    assert odd.shape == (1, 7) and float(odd[0, 6]) == 0.0


def test_positional_embedding_at_published_size():
    label, k = 123.456, np.arange(64)
    phase = np.float64(np.float32(label)) * 10000.0 ** (-k / 63)
    want = np.concatenate([np.sin(phase), np.cos(phase)])
    np.testing.assert_allclose(positional_embedding(jnp.array([label]), 128)[0], want, atol=2e-5)  # 123 * 6e-8


def test_fourier_embedding():
    w = jnp.array([0.25, 1.0, -2.0])
    out = FourierEmbedding(3, 16.0).apply({"params": {"W": w}}, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(out, [[0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 1, 1]], atol=2e-6)
    drawn = FourierEmbedding(10_000, 16.0).init(jax.random.key(0), jnp.zeros(1))["params"]["W"]
    assert abs(float(jnp.std(drawn)) / 16.0 - 1.0) < 4 / math.sqrt(2 * 10_000)  # 4 standard errors


@pytest.mark.parametrize("scale, variance", [(1.0, 1.0), (0.1, 0.1), (0.0, 1e-10)])
def test_default_init(scale, variance):
    """Uniform on [-b, b] with b^2 = 3 variance / fan_avg; fan_avg = 9 (16 + 32) / 2."""
    kernel = default_init(scale)(jax.random.key(0), (3, 3, 16, 32), jnp.float32)
    bound = math.sqrt(3 * variance / (9 * (16 + 32) / 2))
    assert 0.99 * bound < float(jnp.max(jnp.abs(kernel))) <= 1.0001 * bound
    assert abs(float(jnp.std(kernel)) * math.sqrt(3) / bound - 1) < 0.05


def test_group_count():
    published = {128: 32, 256: 32, 384: 32, 512: 32, 16: 4, 32: 8, 48: 12}
    assert {c: group_count(c) for c in published} == published
    assert [group_count(c) for c in (1, 2, 3, 4, 7, 144)] == [1, 1, 1, 1, 1, 24]
    assert all(c % group_count(c) == 0 for c in range(1, 300))


def test_resampling():
    x = jnp.arange(2 * 2 * 4 * 3.0).reshape(2, 2, 4, 3)
    np.testing.assert_allclose(downsample(x)[:, 0, 1], (x[:, 0, 2] + x[:, 0, 3] + x[:, 1, 2] + x[:, 1, 3]) / 4)
    up = upsample(x)
    assert up.shape == (2, 4, 8, 3)
    np.testing.assert_array_equal(up[:, 2:4, 6:8], jnp.broadcast_to(x[:, 1:2, 3:4], (2, 2, 2, 3)))
    np.testing.assert_array_equal(downsample(up), x)


# --- blocks against NumPy in float64


def np_swish(x):
    return x / (1 + np.exp(-x))


def np_group_norm(x, p, groups):
    b, h, w, c = x.shape
    g = x.reshape(b, h, w, groups, c // groups)
    mean, var = g.mean((1, 2, 4), keepdims=True), g.var((1, 2, 4), keepdims=True)
    return ((g - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * p["scale"] + p["bias"]


def np_conv(x, p):
    size, (_, h, w, _) = len(p["kernel"]), x.shape
    edge = size // 2
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    taps = [padded[:, i : i + h, j : j + w] @ p["kernel"][i, j] for i in range(size) for j in range(size)]
    return sum(taps) + p["bias"]


def np_dense(x, p):
    return x @ p["kernel"] + p["bias"]


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize("resample", [None, upsample, downsample])
@pytest.mark.parametrize("features, rescale", [(8, True), (12, False)])
def test_residual_block(resample, features, rescale):
    x, temb = images(2, 4, 6, 8), images(2, 5)
    block = ResBlock(features, dropout=0.5, skip_rescale=rescale, init_scale=0.0, resample=resample)
    params = random_params(block, x, temb)
    out = jax.jit(block.apply)({"params": params}, x, temb)

    p, x, temb = float64(params), float64(x), float64(temb)
    move = (lambda x: float64(resample(jnp.asarray(x)))) if resample else float64
    h = move(np_swish(np_group_norm(x, p["GroupNorm_0"], 2)))
    h = np_conv(h, p["Conv_0"]) + np_dense(np_swish(temb), p["Dense_0"])[:, None, None]
    h = np_conv(np_swish(np_group_norm(h, p["GroupNorm_1"], features // 4)), p["Conv_1"])
    x = move(x)
    assert ("Conv_2" in p) == (resample is not None or features != 8)
    want = h + (np_conv(x, p["Conv_2"]) if "Conv_2" in p else x)
    np.testing.assert_allclose(out, want / math.sqrt(2) if rescale else want, atol=1e-4)


@pytest.mark.parametrize("rescale", [True, False])
def test_attention_block(rescale):
    x = images(2, 2, 3, 8)
    block = AttentionBlock(skip_rescale=rescale, init_scale=0.0)
    params = random_params(block, x, std=1.0)  # large enough for weights far from uniform
    out = jax.jit(block.apply)({"params": params}, x)

    p, x = float64(params), float64(x)
    h = np_group_norm(x, p["GroupNorm_0"], 2).reshape(2, 6, 8)
    q, k, v = (np_dense(h, p[f"Dense_{i}"]) for i in range(3))
    weights = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(8))
    h = np_dense(weights / weights.sum(-1, keepdims=True) @ v, p["Dense_3"])
    want = x + h.reshape(x.shape)
    np.testing.assert_allclose(out, want / math.sqrt(2) if rescale else want, atol=1e-4)
