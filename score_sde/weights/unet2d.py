"""`UNet2DModel` of diffusers and our `UNet`: the options of one in those of the other, or why there are none.

Two kinds can be expressed both ways: that of DDPM (`DownBlock2D`, `AttnDownBlock2D` and their mirrors) and that of
NCSN++ from 256 pixels on (`SkipDownBlock2D`, `AttnSkipDownBlock2D` and theirs).  A key that is absent has the value
that today's diffusers takes for it, but for `attention_head_dim`: files of its first versions meant one head by leaving
it out, which today is 8 channels a head.
"""

from collections.abc import Mapping
from typing import Any

from score_sde.models import UNet
from score_sde.models.blocks import group_count
from score_sde.weights.errors import WeightsError, refuse_unknown
from score_sde.weights.naming import shapes

_DEFAULTS = {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "center_input_sample": False,
    "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
    "mid_block_type": "UNetMidBlock2D", "layers_per_block": 2, "mid_block_scale_factor": 1, "downsample_padding": 1,
    "dropout": 0.0, "act_fn": "silu", "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None, "num_class_embeds": None,
    "downsample_type": "conv", "upsample_type": "conv", "block_out_channels": (224, 448, 672, 896),
    "num_train_timesteps": None, "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
    "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
}  # fmt: skip
_FIR = (1, 3, 3, 1)
_SKIP = dict(
    resblock_type="biggan", skip_rescale=True, fir_kernel=_FIR, progressive="output_skip",
    progressive_input="input_skip", progressive_combine="sum", attend_each_up=False,
)  # fmt: skip
_PLAIN = dict(
    resblock_type="ddpm", skip_rescale=False, fir_kernel=(), resamp_with_conv=True, progressive="none",
    progressive_input="none", attend_each_up=True,
)  # fmt: skip


def fields(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """(fields of our `UNet`, shape of its images) for the `config.json` of a `UNet2DModel`.

    Raises:
        WeightsError: it cannot be expressed; the message names the key.
    """
    c = {**_DEFAULTS, **config}

    def need(key: str, good: bool, expected: str) -> None:
        if not good:
            raise WeightsError(f"config.json: expected {key} {expected}, which our UNet can express, got {c[key]!r}.")

    refuse_unknown("config.json", config, {*_DEFAULTS, "attention_head_dim"})
    kind = config.get("_class_name", "UNet2DModel")
    if kind not in ("UNet2DModel", "UNetUnconditionalModel"):
        raise WeightsError(f"config.json: expected _class_name UNet2DModel, got {kind!r}: another kind of network.")
    size, widths = c["sample_size"], c["block_out_channels"]
    size = size[0] if isinstance(size, list) and len(set(size)) == 1 else size
    need("sample_size", type(size) is int and size > 0, "to be the height, which is the width")
    count = isinstance(widths, (list, tuple)) and len(widths) > 0 and all(type(w) is int and w > 0 for w in widths)
    need("block_out_channels", count and not any(w % widths[0] for w in widths), "to be multiples of the first")
    levels, downs, ups = len(widths), list(c["down_block_types"]), list(c["up_block_types"])[::-1]
    skip = "Skip" in str(downs[:1])
    down, attn_down = ("SkipDownBlock2D", "AttnSkipDownBlock2D") if skip else ("DownBlock2D", "AttnDownBlock2D")
    known = {"down_block_types": {down, attn_down}}
    known["up_block_types"] = {name.replace("Down", "Up") for name in known["down_block_types"]}
    for key, names in known.items():
        need(key, len(c[key]) == levels and set(c[key]) <= names, f"to be {levels} of {' and '.join(sorted(names))}")
    need("time_embedding_dim", c["time_embedding_dim"] in (None, 4 * widths[0]), f"to be {4 * widths[0]}")
    need("class_embed_type", c["class_embed_type"] is None, "to be null, a table of num_class_embeds rows")
    classes = c["num_class_embeds"]
    need("num_class_embeds", classes is None or type(classes) is int and classes > 0, "to be null or a number above 0")
    need("mid_block_type", c["mid_block_type"] == "UNetMidBlock2D", "to be UNetMidBlock2D")
    need("add_attention", type(c["add_attention"]) is bool, "to be true or false")
    need("act_fn", c["act_fn"] in ("silu", "swish"), "to be silu")
    shifts = ("default", "scale_shift")
    need("resnet_time_scale_shift", c["resnet_time_scale_shift"] in shifts, "to be default or scale_shift")
    scale_shift = c["resnet_time_scale_shift"] == "scale_shift"
    of_middle = min(widths[-1] // 4, 32) if skip else c["norm_num_groups"]
    need("attn_norm_num_groups", c["attn_norm_num_groups"] in (None, of_middle), f"to be null or {of_middle}")
    # by their code, scale_shift leaves out this normalisation, unless its groups are said
    plain = scale_shift and c["attn_norm_num_groups"] is None
    need("time_embedding_type", c["time_embedding_type"] in ("positional", "fourier"), "to be positional or fourier")
    need("out_channels", c["out_channels"] == c["in_channels"], "to be in_channels")
    need("downsample_type", c["downsample_type"] == "conv", "to be conv")
    need("upsample_type", c["upsample_type"] == "conv", "to be conv")
    scale = 2.0**0.5 if skip else 1.0
    need("mid_block_scale_factor", abs(c["mid_block_scale_factor"] - scale) < 1e-6, f"to be {scale:.7g}")
    if "attention_head_dim" not in c and not str(c.get("_diffusers_version", "")).startswith("0.0."):
        raise WeightsError(
            "config.json: expected attention_head_dim, got none: files of diffusers 0.0 meant one head, today's "
            "means heads of 8 channels. Write null (one head) or 8 into it."
        )

    def heights(names: list[str]) -> tuple[int, ...]:
        return tuple(size >> level for level, name in enumerate(names) if name.startswith("Attn"))

    found = dict(
        nf=widths[0],
        ch_mult=tuple(w // widths[0] for w in widths),
        num_res_blocks=c["layers_per_block"],
        attn_resolutions=heights(downs),
        up_attn_resolutions=() if heights(ups) == heights(downs) else heights(ups) or (0,),
        attend_middle="none" if not c["add_attention"] else "plain" if plain else "normed",
        scale_shift=scale_shift,
        num_classes=classes or 0,
        head_channels=c.get("attention_head_dim") or 0,
        dropout=float(c["dropout"]),
        norm_eps=float(c["norm_eps"]),
        center_input=bool(c["center_input_sample"]),
        embedding_type=c["time_embedding_type"],
        scale_by_sigma=c["time_embedding_type"] == "fourier",
        **(_SKIP if skip else _PLAIN),
    )
    groups = c["norm_num_groups"]
    if skip:
        need("in_channels", c["in_channels"] == 3, "to be 3 with skip blocks")
        need("norm_num_groups", groups is None, "to be null")
        # its attention has 32 groups, its blocks there min(a + b // 4, 32) for a + b channels: ours have channels // 4
        wide = all(w >= 128 for w, *names in zip(widths, downs, ups, strict=True) if "Attn" in str(names))
        need("block_out_channels", wide, "to be 128 or more wherever there is attention between skip blocks")
    else:
        need("norm_num_groups", type(groups) is int and groups > 0 and not any(w % groups for w in widths), "a divisor")
        need("downsample_padding", c["downsample_padding"] in (0, 1), "to be 0 or 1")
        found |= dict(norm_groups=groups, symmetric_padding=c["downsample_padding"] == 1)
    if found["embedding_type"] == "positional":
        need("freq_shift", c["freq_shift"] in (0, 1), "to be 0 or 1")
        found |= dict(frequency_endpoint=c["freq_shift"] == 1)
    return found, (size, size, c["in_channels"])


def cos_first(config: Mapping[str, Any]) -> bool:
    """Whether the positional embedding of a `UNet2DModel` is [cos | sin], where ours is [sin | cos]."""
    c = {**_DEFAULTS, **config}
    return c["time_embedding_type"] == "positional" and bool(c["flip_sin_to_cos"])


def diffusers_config(net: UNet, shape: tuple[int, ...]) -> dict[str, Any]:
    """The `config.json` of the `UNet2DModel` that computes what `net` does with images of `shape`.

    Raises:
        WeightsError: there is none; the message names the option.
    """

    def need(name: str, good: bool, expected: str) -> None:
        if not good:
            raise WeightsError(
                f"diffusers' UNet2DModel has no model.{name}={getattr(net, name)!r}: expected {expected}. Export to a "
                ".safetensors file, which can hold any network."
            )

    skip = net.resblock_type == "biggan"
    for name, value in (_SKIP if skip else _PLAIN).items():
        free = name == "attend_each_up" and not any(net.attends(shape[0])[1])
        need(name, free or getattr(net, name) == value, f"{value!r} with resblock_type={net.resblock_type!r}")
    need("augment_dim", not net.augment_dim, "0")
    need("class_first", not net.class_first, "False")
    need("log_label", not net.log_label, "False")
    need("sigma_levels", not net.sigma_levels, "none")
    need("attend_middle", net.attend_middle != "plain" or net.scale_shift, "normed or none without scale_shift")
    fourier = net.embedding_type == "fourier"
    need("scale_by_sigma", net.scale_by_sigma == fourier, f"{fourier} with embedding_type={net.embedding_type!r}")
    if len(shape) != 3 or shape[0] != shape[1] or skip and shape[2] != 3:
        raise WeightsError(f"expected square images{', RGB' * skip}, for diffusers' UNet2DModel, got {shape}.")
    size, widths = shape[0], tuple(net.nf * m for m in net.ch_mult)
    attend_down, attend_up = net.attends(size)
    norms = [n for path, (n, *_) in shapes(net, shape).items() if path.endswith("/scale")]
    groups = {net.norm_groups or group_count(n) for n in norms}
    if skip:
        usual = all((net.norm_groups or group_count(n)) == min(n // 4, 32) for n in norms)
        wide = all(w >= 128 for w, *attend in zip(widths, attend_down, attend_up, strict=True) if any(attend))
        need("norm_groups", usual and wide, "min(channels // 4, 32), and 128 channels or more where there is attention")
    else:
        need("norm_groups", len(groups) == 1, f"one number for all widths (here {sorted(groups)})")
    names = {
        way: ["Attn" * attend + "Skip" * skip + f"{way}Block2D" for attend in attends]
        for way, attends in (("Down", attend_down), ("Up", attend_up))
    }
    said = net.scale_shift and net.attend_middle == "normed"  # see `fields`
    return {
        **_DEFAULTS,
        "_class_name": "UNet2DModel",
        "sample_size": size,
        "in_channels": shape[2],
        "out_channels": shape[2],
        "center_input_sample": net.center_input,
        "time_embedding_type": net.embedding_type,
        "freq_shift": int(net.frequency_endpoint),
        "flip_sin_to_cos": False,
        "block_out_channels": list(widths),
        "down_block_types": names["Down"],
        "up_block_types": names["Up"][::-1],
        "add_attention": net.attend_middle != "none",
        "attn_norm_num_groups": (min(widths[-1] // 4, 32) if skip else max(groups)) if said else None,
        "resnet_time_scale_shift": "scale_shift" if net.scale_shift else "default",
        "num_class_embeds": net.num_classes + 1 if net.num_classes else None,  # the last is the null class
        "layers_per_block": net.num_res_blocks,
        "mid_block_scale_factor": 2.0**0.5 if skip else 1,
        "downsample_padding": int(net.symmetric_padding),
        "dropout": net.dropout,
        "attention_head_dim": net.head_channels or None,
        "norm_num_groups": None if skip else groups.pop(),
        "norm_eps": net.norm_eps,
    }
