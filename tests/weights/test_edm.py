"""Pickles of NVlabs' edm: read without torch, nothing of them run, the same outputs as the original networks.

The files here are written as theirs are, with a stub where they embed the source of their classes.
"""

import importlib.util
import io
import pickle
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.weights.commands import read
from score_sde.weights.edm_pickles import MAGIC, read_edm
from score_sde.weights.errors import WeightsError

OPTIONS = dict(img_resolution=8, in_channels=3, out_channels=3, model_channels=8, channel_mult=[1, 2], num_blocks=1)
OPTIONS |= dict(attn_resolutions=[4], augment_dim=9, label_dim=0)
STUB = "raise AssertionError('the source of a file is not executed')"


class Call:
    """What a pickle calls, with what."""

    def __init__(self, name, *args):
        self.name, self.args = name, args


class Pickler(pickle._Pickler):
    def persistent_id(self, obj):
        return obj.args if isinstance(obj, Call) and obj.name == "storage" else None

    def save(self, obj, *args, **kwargs):
        if not isinstance(obj, Call) or obj.name == "storage":
            return super().save(obj, *args, **kwargs)
        module, _, name = obj.name.rpartition(".")
        self.write(f"c{module}\n{name}\n".encode())
        if obj.args != ("class",):
            super().save(obj.args)
            self.write(b"R")


def dumps(value, protocol):
    Pickler(buffer := io.BytesIO(), protocol).dump(value)
    return buffer.getvalue()


def tensor(value, numel=None):
    """As torch pickles a parameter outside of its own archives: the storage is a file of the old torch.save."""
    value = np.asarray(value, np.float32)
    strides = tuple(s // 4 for s in value.strides)
    storage = Call("storage", "storage", Call("torch.FloatStorage", "class"), "94", "cpu", value.size, None)
    parts = (MAGIC, 1001, dict(protocol_version=1001, little_endian=True, type_sizes={"int": 4}), storage, ["94"])
    raw = b"".join(dumps(part, 2) for part in parts) + struct.pack("<q", numel or value.size) + value.tobytes()
    storage = Call("torch.storage._load_from_bytes", raw)
    return Call(
        "torch._utils._rebuild_tensor_v2", storage, 0, value.shape, strides, False, Call("collections.OrderedDict")
    )


def persistent(name, **state):
    meta = dict(type="class", version=6, module_src=STUB, class_name=name, state=state)
    return Call("torch_utils.persistence._reconstruct_persistent_obj", meta)


def layer(shape, name="Conv2d", bias=True):
    values = np.random.default_rng(shape).normal(size=shape)
    parameters = {
        "weight": tensor(values),
        "bias": tensor(values[(slice(None), *[0] * (len(shape) - 1))]) if bias else None,
    }
    buffers = {"resample_filter": tensor(np.full((1, 1, 2, 2), 0.25))} if name == "Conv2d" else {}
    return persistent(name, _parameters=parameters, _buffers=buffers, _modules={}, _non_persistent_buffers_set=set())


def block(cin, cout, attention=False, resample=False):
    parts = dict(norm0=layer((cin,), "GroupNorm"), conv0=layer((cout, cin, 3, 3)), affine=layer((cout, 32), "Linear"))
    parts |= dict(norm1=layer((cout,), "GroupNorm"), conv1=layer((cout, cout, 3, 3)))
    parts["skip"] = layer((cout, cin, 1, 1)) if cin != cout or resample else None
    if attention:
        parts |= dict(
            norm2=layer((cout,), "GroupNorm"), qkv=layer((3 * cout, cout, 1, 1)), proj=layer((cout, cout, 1, 1))
        )
    return persistent("UNetBlock", _parameters={}, _buffers={}, _modules=parts, skip_scale=0.5**0.5)


def network(kind="SongUNet", precond="EDMPrecond", layers=True, **options):
    """A whole network, or one of which there is no more than its options."""
    modules = modules_of(OPTIONS | options) if layers else {}
    song = persistent(kind, _modules=modules, _init_args=(), _init_kwargs=OPTIONS | options)
    return persistent(precond, _modules={"model": song}, sigma_data=0.5, sigma_min=0, sigma_max=float("inf"))


def modules_of(options):
    enc = {"8x8_conv": layer((8, 3, 3, 3)), "8x8_block0": block(8, 8), "4x4_down": block(8, 8, resample=True)}
    enc |= {"4x4_block0": block(8, 16, True)}
    dec = {"4x4_in0": block(16, 16, True), "4x4_in1": block(16, 16), "4x4_block0": block(32, 16)}
    dec |= {"4x4_block1": block(24, 16, True), "8x8_up": block(16, 16, resample=True), "8x8_block0": block(24, 8)}
    dec |= {"8x8_block1": block(16, 8), "8x8_aux_norm": layer((8,), "GroupNorm"), "8x8_aux_conv": layer((3, 8, 3, 3))}
    classes = options["label_dim"]
    modules = dict(map_noise=persistent("PositionalEmbedding", num_channels=8))
    modules |= dict(map_label=layer((8, classes), "Linear") if classes else None)
    modules |= dict(map_augment=layer((8, 9), "Linear", bias=False), map_layer0=layer((32, 8), "Linear"))
    modules |= dict(map_layer1=layer((32, 32), "Linear"), enc=persistent("ModuleDict", _modules=enc))
    return modules | dict(dec=persistent("ModuleDict", _modules=dec))


def write(path, value):
    path.write_bytes(dumps(value, 4))
    return path


@pytest.mark.parametrize("classes", [0, 3])
def test_a_network_is_read_whole_and_its_config_is_edm_s(tmp_path, classes):
    value = {"ema": network(label_dim=classes), "loss_fn": None}
    reading, run = read(write(tmp_path / "a.pkl", value), [], prepared=False)
    fit = reading.weights
    assert fit.params is not None and not fit.unexpected and reading.found.kind == "EDMPrecond of NVlabs' edm"
    qkv = np.random.default_rng((48, 16, 1, 1)).normal(size=(48, 16, 1, 1)).astype(np.float32)
    for k in range(3):  # the outputs of the fused map go in turns
        attention = fit.params["AttentionBlock_1"][f"Dense_{k}"]
        np.testing.assert_array_equal(attention["kernel"], qkv[k::3, :, 0, 0].T)
        np.testing.assert_array_equal(attention["bias"], qkv[k::3, 0, 0, 0])
    c = reading.config
    assert (c.sde.name, c.objective.prediction, c.model.augment_dim, c.sampling.preset) == ("edm", "edm", 9, "edm")
    assert run.experiment.shape == (8, 8, 3) and run.experiment.num_classes == classes
    assert bool(classes) == ("classes" in fit.params) == ("sampling.label" in str(reading.assumed))
    if classes:
        weight = np.random.default_rng((8, 3)).normal(size=(8, 3)).astype(np.float32)
        rows = [*(weight.T * 3**0.5), np.zeros(8)] + weight[:, 0]  # as `layer` makes the bias; the last is of no class
        np.testing.assert_allclose(fit.params["classes"]["embedding"], rows, rtol=1e-6)


@pytest.mark.parametrize(
    "net, message",
    [
        (network("DhariwalUNet", layers=False), "DhariwalUNet"),
        (network(precond="iDDPMPrecond", layers=False), "iDDPMPrecond"),
        (network(label_dim=-1, layers=False), "label_dim"),
        (network(channel_mult_emb=2, layers=False), "channel_mult_emb"),
        (network(precond="VEPrecond", layers=False), "embedding_type"),
        ({"step": 3}, "state_dict"),
        (MAGIC, "torch 1.6"),
        (tensor(np.ones(3), numel=2**40), "damaged"),
        (Call("os.system", "true"), "nothing was run"),
        (persistent("SongUNet", _modules={"enc": Call("builtins.eval", STUB)}), "nothing was run"),
    ],
)
def test_other_pickles_are_refused_by_name(tmp_path, net, message):
    with pytest.raises(WeightsError, match=message) as refused:
        read(write(tmp_path / "a.pkl", net if isinstance(net, dict | int) else {"ema": net}), [], prepared=False)
    assert "\n" not in str(refused.value)


def test_a_pickle_cut_short_or_changed_is_damaged(tmp_path):
    data = dumps({"ema": layer((2, 3, 1, 1))}, 4)
    path, rng = tmp_path / "a.pkl", np.random.default_rng(0)
    for n in range(200):
        wrong = bytearray(data[: rng.integers(1, len(data))] if n % 2 else data)
        for at in rng.integers(0, len(wrong), 3):
            wrong[at] = rng.integers(256)
        path.write_bytes(wrong)
        try:
            read_edm(path)
        except WeightsError as refused:
            assert "\n" not in str(refused)


NCSNPP = dict(embedding_type="fourier", channel_mult_noise=2, encoder_type="residual", resample_filter=[1, 3, 3, 1])
ORIGINALS = {
    "DDPM++, EDM": ("EDMPrecond", {"augment_dim": 9}),
    "NCSN++, EDM, classes": ("EDMPrecond", {"augment_dim": 9, "label_dim": 3, **NCSNPP}),
    "DDPM++, VP, classes": ("VPPrecond", {"label_dim": 3}),
    "NCSN++, VE": ("VEPrecond", NCSNPP),
}


@pytest.mark.skipif(
    importlib.util.find_spec("torch_utils") is None or importlib.util.find_spec("torch") is None,
    reason="golden: needs torch, and the folder of NVlabs' edm (torch_utils, training) on PYTHONPATH",
)
@pytest.mark.parametrize("name", ORIGINALS)
def test_outputs_are_those_of_the_original(name, tmp_path):
    """At four noise levels, of two classes and of none.

    Measured: at most 2.2e-6 of the largest value, and 6.4e-6 with VP, whose label 999 t rounds by 6e-5 in float32.
    """
    import torch
    from training import networks

    precond, options = ORIGINALS[name]
    small = dict(model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4], model_type="SongUNet")
    torch.manual_seed(0)
    net = getattr(networks, precond)(img_resolution=8, img_channels=3, **small, **options).eval().requires_grad_(False)
    for p in net.parameters():
        p += 0.1 * torch.randn(p.shape)
    with open(tmp_path / "a.pkl", "wb") as file:
        pickle.dump({"ema": net}, file)
    reading, run = read(tmp_path / "a.pkl", [], prepared=False)
    e, (scale, shift) = run.experiment, (0.5, 0.5) if precond == "VEPrecond" else (1, 0)

    sigma = np.array([0.03, 0.5, 3.0, 60.0], np.float32)
    x = torch.randn(4, 3, 8, 8) * torch.tensor(sigma).clamp(min=1)[:, None, None, None]
    told, extra = {}, {}
    if options.get("augment_dim"):
        told["augment_labels"] = torch.linspace(-1, 1, 36).reshape(4, 9)
        extra["augment_label"] = jnp.asarray(told["augment_labels"].numpy())
    if e.num_classes:
        told["class_labels"] = torch.eye(4)[[2, 3, 0, 3], :3]  # zeros: no class
        extra["class_label"] = jnp.array([2, 3, 0, 3])
    theirs = net(x, torch.tensor(sigma), **told).permute(0, 2, 3, 1).numpy()

    ours = jnp.asarray(x.permute(0, 2, 3, 1).numpy()) * scale + shift
    t = e.sde.inverse_log_snr(-2 * jnp.log(sigma * scale))
    noised = e.sde.alpha(t)[:, None, None, None] * ours
    seen = e.prediction.input_scale(e.sde, t)[:, None, None, None] * noised
    output = e.network.apply({"params": reading.weights.params}, seen, e.sde.label(t), **extra)
    data = (e.prediction.data_and_noise(e.sde, output, noised, t)[0] - shift) / scale
    error = np.abs(data - theirs).max((1, 2, 3)) / np.abs(theirs).max((1, 2, 3))  # for each noise level
    assert error.max() < 1e-5
