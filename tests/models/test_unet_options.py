"""Each option of the U-Net: what it changes, and what it must not.

Everything runs operation by operation, which costs less than compiling each small network.
"""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from score_sde.models import UNet
from score_sde.models.blocks import AttentionBlock, ResBlock

LABEL = jnp.array([-1.0, 0.5])
CLASS = jnp.array([2, 0])
FIR = (1, 3, 3, 1)
NCSNPP = dict(fir_kernel=FIR, embedding_type="fourier", scale_by_sigma=True, center_input=True)


def unet(**fields):
    return UNet(**{
        **dict(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.5, fourier_scale=1.0), **fields
    })  # fmt: skip


def images(*shape):
    return jax.random.normal(jax.random.key(2), shape)


X = images(2, 8, 8, 3)


def shapes_of(net, size=8):
    """The parameters' shapes by path, for `size` x `size` RGB images; nothing is computed."""
    x, label = jax.ShapeDtypeStruct((2, size, size, 3), "float32"), jax.ShapeDtypeStruct((2,), "float32")
    return flatten_dict(jax.eval_shape(net.init, jax.random.key(0), x, label)["params"], sep="/")


def random_params(net):
    """By path, nowhere zero; those of one path are the same in every network."""

    def draw(path, leaf):
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        return jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32)

    return {path: draw(path, leaf) for path, leaf in shapes_of(net).items()}


def apply(net, params, *inputs, **options):
    return net.apply({"params": unflatten_dict(params, sep="/")}, *(inputs or (X, LABEL)), **options)


def assert_close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.max(jnp.abs(b))))


def differ(a, b):
    return float(jnp.max(jnp.abs(a - b))) > 1e-3 * float(jnp.max(jnp.abs(b)))


# --- published sizes


# progressive images from 256 pixels on
LARGE = dict(**NCSNPP, progressive_input="input_skip", progressive="output_skip")
PUBLISHED = {
    "NCSN++ cont., CIFAR-10": (62_758_915, 32, dict(**NCSNPP, progressive_input="residual")),
    "its deep one": (107_587_075, 32, dict(**NCSNPP, progressive_input="residual", num_res_blocks=8)),
    "NCSN++, 256 pixels": (65_574_549, 256, dict(**LARGE, num_res_blocks=2, ch_mult=(1, 1, 2, 2, 2, 2, 2))),
    "1024": (105_785_896, 1024, dict(**LARGE, num_res_blocks=1, nf=16, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32))),
    "DDPM": (35_746_307, 32, dict(resblock_type="ddpm", skip_rescale=False, num_res_blocks=2, attend_each_up=True)),
}


@pytest.mark.parametrize("count, size, fields", PUBLISHED.values(), ids=PUBLISHED)
def test_published_parameter_counts(count, size, fields):
    assert sum(leaf.size for leaf in shapes_of(UNet(**fields), size).values()) == count


# --- options that leave the parameters as they are


@pytest.mark.slow
def test_center_input_and_scale_by_sigma():
    """Images in [0, 1] become 2 x - 1, and the label is log sigma."""
    fourier = unet(embedding_type="fourier")
    params = random_params(fourier)
    out = apply(unet(embedding_type="fourier", scale_by_sigma=True, center_input=True), params)
    assert_close(out, apply(fourier, params, 2 * X - 1, LABEL) / np.exp(LABEL)[:, None, None, None], 1e-6)


@pytest.mark.parametrize("fields", [dict(fir_kernel=FIR), dict(head_channels=4)], ids=str)
@pytest.mark.slow
def test_changes_the_output_with_the_same_parameters(fields):
    params = random_params(unet())
    assert shapes_of(unet(**fields)) == shapes_of(unet())
    assert differ(apply(unet(**fields), params), apply(unet(), params))


def test_a_label_is_embedded_by_its_logarithm():
    fourier = dict(embedding_type="fourier")
    params, label = random_params(unet(**fourier)), jnp.array([0.3, 999.0])
    assert_close(apply(unet(log_label=True, **fourier), params, X, label),
                 apply(unet(**fourier), params, X, jnp.log(label)))  # fmt: skip


def test_a_label_is_embedded_by_the_number_of_the_nearest_level():
    """The levels 50, 5, 0.5, 0.05; also beyond and between them, and the output is divided by that of the level."""
    params, levels = random_params(unet()), 50.0 * 0.1 ** np.arange(4)
    net = unet(sigma_levels=(50.0, 0.05, 4.0), scale_by_sigma=True)
    for sigmas, numbers in (((50.0, 0.5), (0, 2)), ((80.0, 0.01), (0, 3)), ((6.0, 0.06), (1, 3))):
        there = levels[list(numbers)].reshape(2, 1, 1, 1)
        exact = apply(unet(), params, X, jnp.array(numbers, jnp.float32)) / there
        assert_close(apply(net, params, X, jnp.log(jnp.array(sigmas, jnp.float32))), exact)


@pytest.mark.parametrize(
    "fields, named",
    [
        (dict(log_label=True), "log_label"),
        (dict(log_label=True, embedding_type="fourier", scale_by_sigma=True), "log_label=False with scale_by_sigma"),
        (dict(sigma_levels=(50.0, 0.01, 1000.0), embedding_type="fourier"), "sigma_levels"),
        (dict(sigma_levels=(0.01, 50.0, 1000.0)), "sigma_levels"),
        (dict(sigma_levels=(50.0, 0.01, 1.0)), "sigma_levels"),
        (dict(sigma_levels=(50.0, 0.01)), "sigma_levels"),
    ],
)
def test_labels_that_make_no_sense_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        shapes_of(unet(**fields))


# --- options that add parameters: closed forms where those are zero, and each is heard where they are not

INPUT_SKIP, OUTPUT_SKIP = dict(progressive_input="input_skip"), dict(progressive="output_skip")
INPUT_RESIDUAL = dict(progressive_input="residual", fir_kernel=FIR)
OUTPUT_RESIDUAL = dict(progressive="residual", fir_kernel=FIR)
DDPM = dict(resblock_type="ddpm", attend_each_up=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [INPUT_SKIP, INPUT_RESIDUAL, OUTPUT_RESIDUAL, dict(num_classes=3, augment_dim=2)], ids=str
)
def test_new_parameters_of_zero_change_nothing(fields):
    base = dict(skip_rescale=False, fir_kernel=fields.get("fir_kernel", ()))
    without, net = unet(**base), unet(**{**base, **fields})
    shapes, params = shapes_of(net), random_params(without)
    # a pyramid's own group norm and convolution come before those of the end
    late = {"GroupNorm_1": "GroupNorm_0", "Conv_2": "Conv_1"} if "progressive" in fields else {}
    shared = {path: params.get(path.replace(first, late.get(first, first)), None) for path in shapes
              for first in [path.split("/")[0]] if first not in late.values()}  # fmt: skip
    grown = {p: jnp.zeros(shapes[p].shape) if shared.get(p) is None else shared[p] for p in shapes}
    assert len(grown) > len(params) and sum(v is not None for v in shared.values()) == len(params)
    assert_close(apply(net, grown), apply(without, params))
    assert differ(apply(net, random_params(net)), apply(net, grown))


EVERYTHING = {
    "skip": dict(
        **INPUT_SKIP, **OUTPUT_SKIP, progressive_combine="cat", scale_shift=True, num_classes=3, augment_dim=2
    ),
    "residual": {**INPUT_RESIDUAL, **OUTPUT_RESIDUAL, **DDPM},
}
LABELS = {"skip": dict(class_label=CLASS, augment_label=images(2, 2)), "residual": {}}


@pytest.mark.parametrize("kind", EVERYTHING)
def test_every_parameter_reaches_the_output(kind):
    net = unet(**EVERYTHING[kind])
    params = random_params(net)
    jaxpr = jax.make_jaxpr(lambda p: apply(net, p, X, LABEL, **LABELS[kind]))(params).jaxpr
    live = set(map(id, jaxpr.outvars))
    for eqn in reversed(jaxpr.eqns):
        if any(id(v) in live for v in eqn.outvars):
            live |= set(map(id, eqn.invars))
    assert not [path for path, var in zip(sorted(params), jaxpr.invars, strict=True) if id(var) not in live]


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERYTHING)
def test_gradient_reaches_every_parameter(kind):
    net = unet(**EVERYTHING[kind])
    loss = lambda p: jnp.sum(apply(net, p, X, LABEL, **LABELS[kind]) * jnp.cos(X))  # noqa: E731
    grads = jax.jit(jax.grad(loss))(random_params(net))
    assert not [path for path, grad in grads.items() if not grad.any()]


def test_output_skip_adds_an_image_of_each_level():
    """Where only their biases are left, the sum of those at every pixel."""
    net = unet(progressive="output_skip")
    heads = [path for path, leaf in shapes_of(net).items() if path.startswith("Conv_") and leaf.shape[-1] == 3]
    params = random_params(net)
    params |= {path: 0 * params[path] for path in heads if path.endswith("kernel")}
    biases = [params[path] for path in heads if path.endswith("bias")]
    assert len(biases) == 2
    assert_close(apply(net, params), jnp.broadcast_to(sum(biases), X.shape), 1e-6)


def test_concatenation_widens_and_sum_does_not():
    widths = {
        method: shapes_of(unet(progressive_input="input_skip", progressive_combine=method))["ResBlock_2/Conv_0/kernel"]
        for method in ("sum", "cat")
    }
    assert {m: s.shape[2] for m, s in widths.items()} == {"sum": 8, "cat": 16}


def test_blocks_of_ddpm_leave_the_resolution_to_layers_between_them():
    names = {path.split("/")[0] for path in shapes_of(unet(resblock_type="ddpm"))}
    assert {"Downsample_0", "Upsample_0"} < names
    assert len([n for n in names if n.startswith("ResBlock")]) == 2 * 1 + 2 + 2 * 2  # two fewer than BigGAN's
    plain = {path.split("/")[0] for path in shapes_of(unet(resblock_type="ddpm", resamp_with_conv=False))}
    assert plain == names - {"Downsample_0", "Upsample_0"}


@pytest.mark.parametrize("each", [False, True])
def test_attention_on_the_way_up(each):
    names = {path.split("/")[0] for path in shapes_of(unet(attend_each_up=each, num_res_blocks=2))}
    assert sum(n.startswith("AttentionBlock") for n in names) == 2 + 1 + (3 if each else 1)


# --- labels


def test_no_class_is_the_null_class():
    net = unet(num_classes=3)
    params = random_params(net)
    null = apply(net, params)
    mixed, known = (apply(net, params, X, LABEL, jnp.array(c)) for c in ([0, 3], [1, 2]))
    assert_close(mixed[1], null[1], 0)
    assert differ(mixed[0], null[0]) and differ(known[0], null[0]) and differ(known[0], mixed[0])


def test_not_augmented_is_zero():
    net = unet(augment_dim=2)
    params = random_params(net)
    assert_close(apply(net, params, X, LABEL, augment_label=jnp.zeros((2, 2))), apply(net, params), 0)
    assert differ(apply(net, params, X, LABEL, augment_label=jnp.ones((2, 2))), apply(net, params))


def test_classes_that_come_first_enter_where_augmentation_does():
    fields = dict(ch_mult=(1,), attn_resolutions=(), embedding_type="fourier")  # whose embedding is twice as wide
    net, other = unet(num_classes=3, class_first=True, **fields), unet(augment_dim=4, **fields)
    params = random_params(net)
    table = params["classes/embedding"]
    same = {**params, "augment/kernel": table}
    same.pop("classes/embedding")
    assert_close(apply(net, params, X, LABEL, CLASS), apply(other, same, X, LABEL, augment_label=jnp.eye(4)[CLASS]))
    null = jnp.eye(4)[jnp.array([3, 3])]
    assert_close(apply(net, params), apply(other, same, X, LABEL, augment_label=null))


# --- blocks


def block_params(block, *inputs):
    """Random ones, and the jitted function of them."""
    shapes = jax.eval_shape(block.init, jax.random.key(0), *inputs)["params"]
    draw = np.random.default_rng(1).standard_normal
    params = jax.tree.map(lambda leaf: draw(leaf.shape).astype(np.float32), shapes)
    return params, jax.jit(lambda params: block.apply({"params": params}, *inputs))


def test_scale_shift():
    """GN(h) (1 + a) + b: with a = -1 nothing of the image is left in the branch, only b."""
    x, temb = images(2, 4, 4, 8), images(2, 5)
    params, run = block_params(ResBlock(8, dropout=0.0, skip_rescale=False, init_scale=1.0, scale_shift=True), x, temb)
    shift = np.arange(8.0, dtype=np.float32)
    params["Dense_0"] = {
        "kernel": np.zeros((5, 16), np.float32),
        "bias": np.concatenate([np.full_like(shift, -1), shift]),
    }
    params["GroupNorm_1"]["bias"] = np.zeros_like(shift)
    branch = run(params) - x
    want = shift / (1 + np.exp(-shift)) @ params["Conv_1"]["kernel"].sum((0, 1)) + params["Conv_1"]["bias"]
    np.testing.assert_allclose(branch[:, 1:-1, 1:-1], np.broadcast_to(want, (2, 2, 2, 8)), atol=1e-3)  # of about 50
    params["Dense_0"]["bias"] = 0 * params["Dense_0"]["bias"]
    assert differ(run(params) - x, branch)


def test_skip_rescale_keeps_the_variance():
    """Of two independent branches of variance 1: x, and a branch of nothing but its random last bias."""
    x, temb = images(8, 2, 2, 256), jnp.zeros((8, 5))
    params, run = block_params(ResBlock(256, dropout=0.0, skip_rescale=True, init_scale=0.0), x, temb)
    params["Conv_1"]["kernel"] *= 0
    # both variances are known: of x to 2 %, of the bias exactly
    params["Conv_1"]["bias"] /= params["Conv_1"]["bias"].std()
    assert abs(float(jnp.var(run(params))) - 1.0) < 0.1


def test_attention_heads():
    """Each head is the plain formula on its own channels."""
    x = images(2, 2, 3, 8)
    params, run = block_params(AttentionBlock(skip_rescale=False, init_scale=1.0, head_channels=4), x)

    g = np.asarray(x, np.float64).reshape(2, 6, 2, 4)
    h = (g - g.mean((1, 3), keepdims=True)) / np.sqrt(g.var((1, 3), keepdims=True) + 1e-6)
    h = h.reshape(2, 6, 8) * params["GroupNorm_0"]["scale"] + params["GroupNorm_0"]["bias"]
    q, k, v, out = (lambda h, p=params[f"Dense_{i}"]: h @ p["kernel"] + p["bias"] for i in range(4))
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = np.exp(q(h)[..., part] @ k(h)[..., part].transpose(0, 2, 1) / math.sqrt(4))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v(h)[..., part])
    np.testing.assert_allclose(run(params), x + out(np.concatenate(heads, -1)).reshape(x.shape), atol=1e-3)


# --- precision and memory


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def traced(net, params):
    return list(equations(jax.make_jaxpr(lambda p: apply(net, p))(params).jaxpr))


FULL = dict(**NCSNPP, progressive_input="residual", num_classes=2)


def test_bfloat16_is_close_and_float32_outside():
    small = dict(ch_mult=(1,), num_classes=2)
    net, low = unet(**small), unet(**small, dtype="bfloat16")
    assert shapes_of(low) == shapes_of(net)  # parameters are float32
    params = random_params(net)
    plain, out = apply(net, params), apply(low, params)
    assert out.dtype == jnp.float32
    error = float(jnp.linalg.norm(out - plain) / jnp.linalg.norm(plain))
    assert 1e-4 < error < 5e-2  # bfloat16 rounds by up to 4e-3


@pytest.mark.parametrize("fields", [FULL, dict(**OUTPUT_SKIP, **DDPM)], ids=["ncsnpp", "ddpm"])
def test_bfloat16_is_where_it_should_be(fields):
    net = unet(**fields, dtype="bfloat16")
    found = traced(net, random_params(net))
    convolutions = [e.outvars[0].aval for e in found if "convolution" in e.primitive.name]
    full = [aval for aval in convolutions if aval.dtype == jnp.float32]
    assert {aval.shape[-1] for aval in full} == {3}  # the last ones alone
    assert len(full) < len(convolutions)
    acts = [e.outvars[0].aval for e in found if e.primitive.name == "logistic" and e.outvars[0].aval.ndim == 4]
    assert sum(aval.dtype == jnp.float32 for aval in acts) == len(full)  # and what goes into them
    products = [e.outvars[0].aval for e in found if e.primitive.name == "dot_general"]
    # the time embedding and what the blocks make of it are float32, attention's logits too
    assert all(aval.dtype == jnp.float32 for aval in products if aval.ndim == 2)
    assert any(aval.dtype == jnp.bfloat16 for aval in products)
    sums = [e.invars[0].aval.dtype for e in found if e.primitive.name == "reduce_sum"]
    assert sums and set(sums) == {jnp.dtype("float32")}  # statistics and softmax


def test_remat_marks_every_block():
    params = random_params(unet())
    assert shapes_of(unet(remat=True)) == shapes_of(unet())
    marked = [e for e in traced(unet(remat=True), params) if "prevent_cse" in e.params]
    assert len(marked) == (2 * 1 + 2 + 2 * 2 + 2) + 3  # residual blocks and attention


@pytest.mark.slow
def test_remat_gives_the_same_gradients():
    """Dropout included: what is computed twice is computed alike."""

    def grad(remat):
        net = unet(remat=remat, ch_mult=(1,), attn_resolutions=(8,))
        out = lambda p: apply(net, p, X, LABEL, train=True, rngs={"dropout": jax.random.key(5)})  # noqa: E731
        return jax.jit(jax.grad(lambda p: jnp.sum(out(p) * jnp.cos(X))))(random_params(net))

    plain, again = grad(False), grad(True)
    scale = max(float(jnp.abs(g).max()) for g in plain.values())  # a bias of the keys has no gradient but rounding
    for path, want in plain.items():
        np.testing.assert_allclose(again[path], want, rtol=1e-3, atol=1e-6 * scale, err_msg=path)


# --- options that do not fit


@pytest.mark.parametrize("fields, words", [
    (dict(resblock_type="resnet"), "expected resblock_type among .*biggan.*ddpm.*got 'resnet'"),
    (dict(progressive="input_skip"), "expected progressive among .*output_skip.*got 'input_skip'"),
    (dict(progressive_input="output_skip"), "expected progressive_input among .*got 'output_skip'"),
    (dict(progressive_combine="mean"), "expected progressive_combine among .*got 'mean'"),
    (dict(dtype="float16"), "expected dtype among .*bfloat16.*got 'float16'"),
    (dict(fir_kernel=(1,)), r"fir_kernel of two or more numbers.*got \(1,\)"),
    (dict(fir_kernel=(1, -1)), r"fir_kernel of .* positive sum.*got \(1, -1\)"),
    (dict(resamp_with_conv=False), "resamp_with_conv=True with resblock_type='biggan'"),
    (dict(progressive_combine="cat"), "expected progressive_input='input_skip' with progressive_combine='cat'"),
    (dict(scale_by_sigma=True), "expected embedding_type='fourier' or sigma_levels with scale_by_sigma"),
    (dict(class_first=True), "expected num_classes above 0 with class_first, got 0"),
    (dict(head_channels=3), "head_channels to divide .* got 3 for width 16"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused(fields, words):
    with pytest.raises(ValueError, match=words) as refused:
        shapes_of(unet(**fields))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("fields, given, words", [
    ({}, dict(class_label=CLASS), "num_classes above 0, got .*num_classes=0"),
    (dict(num_classes=3), dict(class_label=CLASS[:1]), "class_label"),
    ({}, dict(augment_label=jnp.zeros((2, 1))), r"augment_label of shape \(2, 0\), got \(2, 1\)"),
    (dict(augment_dim=3), dict(augment_label=jnp.zeros((2, 1))), r"augment_label of shape \(2, 3\), got \(2, 1\)"),
])  # fmt: skip
def test_labels_that_do_not_fit_are_refused(fields, given, words):
    net = unet(**fields)
    with pytest.raises((ValueError, TypeError), match=words):
        jax.eval_shape(lambda: net.init(jax.random.key(0), X, LABEL, **given))
