"""The U-Net as a list of its parts, in the order in which every published implementation creates them.

A published file names its tensors after that order (`all_modules.17`, `ResnetBlockBigGANpp_8`) or after the place in
the network (`down_blocks.1.resnets.0`).  `parts` walks through a `UNet` once and says both of each part, beside the
name that Flax gives it here; `naming.py` turns that into names of tensors.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from score_sde.models import UNet

# Kinds of parts, and the names of their classes here; resamplers without parameters have none.
CLASSES = {
    "fourier": "FourierEmbedding",
    "dense": "Dense",
    "conv": "Conv",
    "norm": "GroupNorm",
    "res": "ResBlock",
    "attention": "AttentionBlock",
    "combine": "Combine",
    "down": "Downsample",
    "up": "Upsample",
}


class Part(NamedTuple):
    """kind: a key of CLASSES, or 'classes'; ours: its name in the parameters, None without any; place: diffusers' name,
    None where it has no such part; listed: whether Score-SDE's `all_modules` counts it."""

    kind: str
    ours: str | None
    place: str | None = None
    listed: bool = True


def parts(net: UNet, size: int) -> Iterator[Part]:
    """The parts of `net` for images of height `size`, in the order of their creation."""
    counters: Counter[str] = Counter()
    learned = net.resamp_with_conv

    def part(kind: str, place: str | None = None, *, parameters: bool = True, listed: bool = True) -> Part:
        name = f"{CLASSES[kind]}_{counters[kind]}" if parameters else None
        counters[kind] += parameters
        return Part(kind, name, place, listed)

    def change(kind: str, block: str, level: str) -> Part:
        if net.resblock_type == "biggan":
            return part("res", f"{level}.resnet_{kind}")
        return part(kind, f"{level}.{block}.0", parameters=learned)

    if net.embedding_type == "fourier":
        yield part("fourier", "time_proj")
    yield part("dense", "time_embedding.linear_1")
    yield part("dense", "time_embedding.linear_2")
    if net.num_classes:
        yield Part("classes", "classes", "class_embedding", listed=False)
    yield part("conv", "conv_in")

    last = len(net.ch_mult) - 1
    attend_down, attend_up = net.attends(size)
    for level, attend in enumerate(attend_down):
        at = f"down_blocks.{level}"
        for j in range(net.num_res_blocks):
            yield part("res", f"{at}.resnets.{j}")
            if attend:
                yield part("attention", f"{at}.attentions.{j}")
        if level < last:
            yield change("down", "downsamplers", at)
            if net.progressive_input == "input_skip":
                yield part("down", parameters=False, listed=False)
                yield part("combine", f"{at}.skip_conv")
            elif net.progressive_input == "residual":
                yield part("down")

    yield part("res", "mid_block.resnets.0")
    if net.attend_middle != "none":
        yield part("attention", "mid_block.attentions.0")
    yield part("res", "mid_block.resnets.1")

    for level, attend in reversed(list(enumerate(attend_up))):
        at = f"up_blocks.{last - level}"
        for j in range(net.num_res_blocks + 1):
            yield part("res", f"{at}.resnets.{j}")
            if attend and net.attend_each_up:
                yield part("attention", f"{at}.attentions.{j}")
        if attend and not net.attend_each_up:
            yield part("attention", f"{at}.attentions.0")
        if net.progressive == "output_skip":
            if level < last:
                yield part("up", parameters=False, listed=False)
            yield part("norm", f"{at}.skip_norm" if level else "conv_norm_out")
            yield part("conv", f"{at}.skip_conv" if level else "conv_out")
        elif net.progressive == "residual" and level == last:
            yield part("norm")
            yield part("conv")
        elif net.progressive == "residual":
            yield part("up")
        if level:
            yield change("up", "upsamplers", at)
    if net.progressive != "output_skip":
        yield part("norm", "conv_norm_out")
        yield part("conv", "conv_out")
