"""The list of parts against the network itself, and the options of diffusers' networks in ours."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from score_sde.models import UNet
from score_sde.weights.errors import WeightsError
from score_sde.weights.naming import as_file, match, parts, shapes, slots
from score_sde.weights.unet2d import diffusers_config, fields

FIR = (1, 3, 3, 1)
SHAPE = (16, 16, 3)
NETWORKS = {
    "DDPM++": dict(),
    "NCSN++": dict(fir_kernel=FIR, progressive_input="residual", embedding_type="fourier", scale_by_sigma=True),
    "NCSN++, images": dict(fir_kernel=FIR, progressive="output_skip", progressive_input="input_skip",
                           embedding_type="fourier", scale_by_sigma=True),
    "concatenated": dict(progressive="output_skip", progressive_input="input_skip", progressive_combine="cat"),
    "residual": dict(progressive="residual", progressive_input="residual", resblock_type="ddpm"),
    "unlearned": dict(resblock_type="ddpm", resamp_with_conv=False, progressive_input="input_skip"),
    "DDPM": dict(resblock_type="ddpm", skip_rescale=False, attend_each_up=True),
    "three levels": dict(ch_mult=(1, 1, 2), attn_resolutions=(16, 4), scale_shift=True, head_channels=4),
    "attention elsewhere": dict(up_attn_resolutions=(16,), attend_middle="plain", attend_each_up=True),
    "no attention": dict(attn_resolutions=(), attend_middle="none"),
    "classes": dict(num_classes=3),
}  # fmt: skip


def network(name):
    small = dict(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,), dropout=0.0)
    return UNet(**small | NETWORKS[name])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_parts_are_those_of_the_network(name):
    net = network(name)
    listed = [part.ours for part in parts(net, 16) if part.ours]
    assert len(listed) == len(set(listed))
    assert set(listed) == {path.partition("/")[0] for path in shapes(net, SHAPE)}


@pytest.mark.parametrize("layout", ["torch", "flax", "diffusers"])
@pytest.mark.parametrize("name", NETWORKS)
def test_names_are_one_to_one_and_come_back(name, layout):
    """And so do the numbers, which a wrong axis would move."""
    net = network(name)
    if layout != "diffusers" and net.num_classes:
        with pytest.raises(WeightsError, match="no classes"):
            slots(net, SHAPE, layout)
        return
    draw = np.random.default_rng(0).standard_normal
    flat = {path: draw(shape).astype(np.float32) for path, shape in shapes(net, SHAPE).items()}
    params = traverse_util.unflatten_dict(flat, sep="/")
    if layout == "diffusers" and "residual" in (net.progressive, net.progressive_input):
        with pytest.raises(WeightsError, match="no counterpart"):
            slots(net, SHAPE, layout)
        return
    wanted = slots(net, SHAPE, layout, cos_first=layout == "diffusers" and net.embedding_type == "positional")
    tensors = as_file(wanted, params)
    assert len(tensors) == len(wanted) == len(jax.tree.leaves(params))
    fit = match(wanted, tensors)
    assert not (fit.missing or fit.unexpected or fit.misshapen)
    jax.tree.map(np.testing.assert_array_equal, fit.params, params)


def test_what_does_not_fit_is_named():
    wanted = slots(network("DDPM++"), SHAPE, "torch")
    tensors = as_file(wanted, fit_params(wanted))
    first, *_, last = tensors
    tensors["extra"] = tensors.pop(first)
    tensors[last] = tensors[last][:-1]
    fit = match(wanted, tensors)
    assert fit.params is None and fit.used == len(wanted) - 2
    assert [line.split()[0] for line in (*fit.missing, *fit.unexpected, *fit.misshapen)] == [first, "extra", last]


def fit_params(wanted):
    return traverse_util.unflatten_dict({s.path: np.ones(s.shape, np.float32) for s in wanted}, sep="/")


DDPM = dict(
    _class_name="UNet2DModel", sample_size=32, block_out_channels=[128, 256, 256, 256], layers_per_block=2,
    down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], norm_num_groups=32, norm_eps=1e-6,
    attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
)  # fmt: skip
WIDTHS = [128, 128, 256, 256, 256, 256, 256]
SKIP = dict(
    sample_size=256, block_out_channels=WIDTHS, layers_per_block=2, time_embedding_type="fourier",
    down_block_types=["SkipDownBlock2D"] * 4 + ["AttnSkipDownBlock2D"] + ["SkipDownBlock2D"] * 2,
    up_block_types=["SkipUpBlock2D"] * 2 + ["AttnSkipUpBlock2D"] + ["SkipUpBlock2D"] * 4, norm_num_groups=None,
    norm_eps=1e-6, attention_head_dim=None, mid_block_scale_factor=2**0.5, center_input_sample=True,
)  # fmt: skip


@pytest.mark.parametrize("config, tensors, parameters", [(DDPM, 328, 35_746_307), (SKIP, 645, 65_574_549)])
def test_published_networks_have_their_published_tensors(config, tensors, parameters):
    found, shape = fields(config)
    net = UNet(**found)
    wanted = slots(net, shape, "diffusers")
    assert (len(wanted), sum(int(np.prod(slot.shape)) for slot in wanted)) == (tensors, parameters)
    again, same = fields(diffusers_config(net, shape))
    assert UNet(**again) == net and same == shape


@pytest.mark.parametrize("version, good", [("0.0.4", True), ("0.11.0", False)])
def test_the_trap_of_the_absent_head_size(version, good):
    """Today's diffusers reads 8, files of its first versions meant one head: never a guess."""
    config = {k: v for k, v in DDPM.items() if k != "attention_head_dim"} | {"_diffusers_version": version}
    if good:
        assert fields(config)[0]["head_channels"] == 0
    else:
        with pytest.raises(WeightsError, match="attention_head_dim, got none"):
            fields(config)


REFUSED = [
    (DDPM, dict(_class_name="UNet2DConditionModel"), "_class_name"),
    (DDPM, dict(sample_size=None), "sample_size"),
    (DDPM, dict(block_out_channels=[128, 192, 256, 256]), "block_out_channels"),
    (DDPM, dict(down_block_types=["ResnetDownsampleBlock2D"] * 4), "down_block_types"),
    (DDPM, dict(up_block_types=["UpBlock2D"] * 3), "up_block_types"),
    (DDPM, dict(up_block_types=["SkipUpBlock2D"] * 4), "up_block_types"),
    (DDPM, dict(mid_block_type=None), "mid_block_type"),
    (DDPM, dict(act_fn="gelu"), "act_fn"),
    (DDPM, dict(resnet_time_scale_shift="spatial"), "resnet_time_scale_shift"),
    (DDPM, dict(attn_norm_num_groups=8), "attn_norm_num_groups"),
    (DDPM, dict(num_class_embeds=0), "num_class_embeds"),
    (DDPM, dict(num_class_embeds=10, class_embed_type="timestep"), "class_embed_type"),
    (DDPM, dict(class_embed_type="identity"), "class_embed_type"),
    (DDPM, dict(add_attention=None), "add_attention"),
    (DDPM, dict(upsample_type="resnet"), "upsample_type"),
    (DDPM, dict(of_a_later_version=1), "settings that are known here, got of_a_later_version"),
    (DDPM, dict(time_embedding_type="learned"), "time_embedding_type"),
    (DDPM, dict(mid_block_scale_factor=2**0.5), "mid_block_scale_factor"),
    (DDPM, dict(freq_shift=2), "freq_shift"),
    (DDPM, dict(out_channels=6), "out_channels"),
    (SKIP, dict(in_channels=1, out_channels=1), "in_channels"),
    (SKIP, dict(block_out_channels=[64] * 7), "block_out_channels"),
    (SKIP, dict(norm_num_groups=32), "norm_num_groups"),
]


WITHIN = [
    dict(resnet_time_scale_shift="scale_shift"),
    dict(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=32),
    dict(num_class_embeds=11, add_attention=False),
    dict(up_block_types=["UpBlock2D"] * 4),
    dict(down_block_types=["DownBlock2D"] * 4),
    dict(down_block_types=["AttnDownBlock2D"] * 4, up_block_types=["UpBlock2D", *["AttnUpBlock2D"] * 3]),
]


@pytest.mark.parametrize("change", WITHIN)
def test_what_our_network_can_express_comes_back(change):
    found, shape = fields(DDPM | change)
    again = diffusers_config(UNet(**found), shape)
    classes = change.get("num_class_embeds")  # with a null class behind them
    assert {k: again[k] for k in change} == change | ({"num_class_embeds": classes + 1} if classes else {})


@pytest.mark.parametrize("config, change, key", REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_our_network_cannot_express_is_refused_by_its_key(config, change, key):
    with pytest.raises(WeightsError, match=f"expected {key}( |$)") as refused:
        fields(config | change)
    assert "\n" not in str(refused.value)


UNEXPORTED = [
    (dict(), "skip_rescale|fir_kernel"),
    (dict(NETWORKS["DDPM"], skip_rescale=True), "skip_rescale"),
    (dict(NETWORKS["DDPM"], attend_each_up=False), "attend_each_up"),
    (dict(NETWORKS["DDPM"], attend_middle="plain"), "attend_middle"),
    (dict(NETWORKS["DDPM"], resamp_with_conv=False), "resamp_with_conv"),
    (dict(NETWORKS["DDPM"]), "norm_groups"),  # 2 and 4 and 6 groups of 8, 16 and 24 channels
    (dict(NETWORKS["NCSN++"]), "progressive"),
    (dict(NETWORKS["NCSN++, images"]), "norm_groups"),  # 16 channels where there is attention
]


@pytest.mark.parametrize("options, name", UNEXPORTED)
def test_what_diffusers_cannot_express_is_refused_by_its_option(options, name):
    net = UNet(**dict(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,)) | options)
    with pytest.raises(WeightsError, match=f"no model.({name})=") as refused:
        diffusers_config(net, SHAPE)
    assert "\n" not in str(refused.value)
