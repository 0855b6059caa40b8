"""What the tensors of a U-Net are called in each layout, and how they lie there.

    ours        ResBlock_3/Conv_0/kernel           convolutions (kh, kw, in, out), matrices (in, out)
    diffusers   down_blocks.1.resnets.0.conv1.weight            (out, in, kh, kw), (out, in)
    torch       all_modules.8.Conv_0.weight                     the same; but NIN_0.W (in, out)
    flax        ResnetBlockBigGANpp_3.Conv_0.kernel             as ours; NIN_0.W (in, out); old norms (1, 1, 1, C)

torch and flax are the two published Score-SDE code bases; theirs is "Score-SDE's own layout".
"""

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from score_sde.models import UNet
from score_sde.weights.errors import WeightsError
from score_sde.weights.parts import Part, parts

LAYOUTS = ("ours", "diffusers", "torch", "flax")
AS_OURS = ("same", "classes")  # the ways to lie in a file whose axes are ours

# Ours -> diffusers', inside a block.
_RES = {"GroupNorm_0": "norm1", "Conv_0": "conv1", "Dense_0": "time_emb_proj", "GroupNorm_1": "norm2"}
_RES |= {"Conv_1": "conv2", "Conv_2": "conv_shortcut"}
_ATTENTION = {"GroupNorm_0": ("group_norm",), "Dense_0": ("to_q", "query"), "Dense_1": ("to_k", "key")}
_ATTENTION |= {"Dense_2": ("to_v", "value"), "Dense_3": ("to_out.0", "proj_attn")}
# The class names in Flax of published parts, which vary with the kind of network.
_FLAX = {
    "fourier": ("GaussianFourierProjection",),
    "res": ("ResnetBlockBigGANpp", "ResnetBlockDDPMpp", "ResnetBlockDDPM"),
    "attention": ("AttnBlockpp", "AttnBlock"),
    "dense": ("Dense",), "conv": ("Conv",), "norm": ("GroupNorm",), "combine": ("Combine",),
    "down": ("Downsample",), "up": ("Upsample",),
}  # fmt: skip


class Slot(NamedTuple):
    """One of our tensors: its path and shape, the names that it may have in a file, and how it lies there: as 'same',
    'torch' (axes reversed, from (out, in, ...)), 'flipped' (that, and the two halves of the inputs swapped), 'classes'
    (a table of embeddings, whose last row, of the null class, may be absent: zeros)."""

    path: str
    shape: tuple[int, ...]
    names: tuple[tuple[str, str], ...]  # (name, how)


class Matched(NamedTuple):
    """params: the tree, None unless all was found; used: how many of its tensors were; the rest: sentences of what does
    not fit."""

    params: dict | None
    used: int
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]


@lru_cache(maxsize=16)  # a second to trace
def shapes(net: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """`{"ResBlock_0/Conv_0/kernel": (3, 3, 128, 128), ...}` of a network for images of `shape`; nothing is computed."""
    x, label = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    tree = jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)), x, label)["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def slots(net: nn.Module, shape: tuple[int, ...], layout: str, *, cos_first: bool = False) -> list[Slot]:
    """The tensors of `net` in `layout`, in the order in which the published networks register them.

    cos_first: the file's positional embedding is [cos | sin], which the first matrix makes up for.

    Raises:
        WeightsError: the layout has no name for a part of this network; only ours has names for all.
    """
    if layout == "ours":
        return [Slot(path, size, ((path, "same"),)) for path, size in shapes(net, shape).items()]
    if not isinstance(net, UNet):
        raise WeightsError(f"expected a UNet for the names of {layout}, got {type(net).__name__}.")
    below: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for path, size in shapes(net, shape).items():
        below.setdefault(path.partition("/")[0], []).append((path, size))
    found, counters = [], Counter()
    for part in parts(net, shape[0]):
        index = counters["all"]
        counters["all"] += part.listed
        number = counters[part.kind]
        counters[part.kind] += 1
        for path, size in below.get(part.ours, []) if part.ours else []:
            inside, _, leaf = path.partition("/")[2].rpartition("/")
            if part.kind == "classes":
                if layout == "torch" and net.class_first:  # EDM's, made a table by `edm_unet`
                    found.append(Slot(path, size, (("map_label", "same"),)))
                    continue
                if layout != "diffusers":
                    raise WeightsError(
                        f"expected model.num_classes 0, as Score-SDE's networks know no classes, got {net.num_classes}."
                    )
                names = [(f"{part.place}.weight", "classes")]
            elif layout == "diffusers":
                names = [_torch(name, leaf) for name in _in_diffusers(part, inside)]
            elif layout == "torch":
                names = [(f"all_modules.{index}.{name}", how) for name, how in _in_score_sde(part, inside, leaf, True)]
            else:
                own = _in_score_sde(part, inside, leaf, False)
                names = [(f"{cls}_{number}.{name}", how) for cls in _FLAX[part.kind] for name, how in own]
            if part.kind == "fourier" and layout == "diffusers":
                names = [("time_proj.weight", "same"), ("time_proj.W", "same")]
            if cos_first and path == "Dense_0/kernel":
                names = [(name, "flipped") for name, _ in names]
            found.append(Slot(path, size, tuple(names)))
    if "augment" in below:  # no published Score-SDE network has it, nor a place in their order: EDM's name
        found += [Slot(path, size, (("map_augment.weight", "torch"),)) for path, size in below["augment"]]
    return found


def _torch(module: str, leaf: str) -> tuple[str, str]:
    if leaf == "kernel":
        return f"{module}.weight", "torch"
    return f"{module}.{'weight' if leaf == 'scale' else leaf}", "same"


def _in_diffusers(part: Part, inside: str) -> list[str]:
    """diffusers' name of the module, today's first."""
    if part.place is None:
        raise WeightsError(f"diffusers' UNet2DModel has no counterpart of {part.ours} of this network.")
    if part.kind == "res":
        return [f"{part.place}.{_RES[inside]}"]
    if part.kind == "attention":
        return [f"{part.place}.{name}" for name in _ATTENTION[inside]]
    if part.kind in ("down", "up"):
        return [f"{part.place}.{name}" for name in ("conv", "Conv2d_0")]
    return [part.place]


def _in_score_sde(part: Part, inside: str, leaf: str, torch: bool) -> list[tuple[str, str]]:
    """Score-SDE's names below the part; a 1x1 map may be a convolution or one of their matrices, NIN."""
    name, how = _torch(inside, leaf) if torch else (f"{inside}.{leaf}", "same")
    plain = name.lstrip("."), how
    matrix = {"kernel": "W", "bias": "b"}.get(leaf)
    if part.kind == "attention" and inside.startswith("Dense"):
        return [(f"NIN_{inside[-1]}.{matrix}", "same")]
    if part.kind == "res" and inside == "Conv_2":
        return [plain, (f"NIN_0.{matrix}", "same")]
    if part.kind in ("down", "up"):
        fused = {"kernel": "weight", "bias": "bias"}[leaf]
        return [plain, (f"Conv2d_0.{fused}", how)]
    return [plain]


def match(wanted: list[Slot], tensors: Mapping[str, Any], unused: frozenset[str] = frozenset()) -> Matched:
    """The parameters that `wanted` finds among the `tensors` of a file; `unused` names may be left over."""
    flat, missing, misshapen, seen = {}, [], [], set()
    for slot in wanted:
        name, how = next(((name, how) for name, how in slot.names if name in tensors), (None, None))
        if name is None:
            missing.append(f"{slot.names[0][0]} {_file_shape(slot.shape, slot.names[0][1])}")
            continue
        seen.add(name)
        there = tuple(tensors[name].shape)
        if _fits(there, slot.shape, how):  # before its numbers are read
            flat[slot.path] = _placed(np.asarray(tensors[name], np.float32), slot.shape, how)
        else:
            misshapen.append(f"{name} {there}, not {_file_shape(slot.shape, how)}")
    unexpected = sorted(f"{name} {tuple(tensors[name].shape)}" for name in tensors.keys() - seen - unused)
    params = None if missing or misshapen else traverse_util.unflatten_dict(flat, sep="/")
    return Matched(params, len(flat), missing, unexpected, misshapen)


def _file_shape(shape: tuple[int, ...], how: str) -> tuple[int, ...]:
    if how in AS_OURS:
        return shape
    return (shape[-1], shape[-2], *shape[:-2])


def _fits(there: tuple[int, ...], shape: tuple[int, ...], how: str) -> bool:
    """Whether a tensor of a file can become one of `shape`: but for axes of 1 (old norms are (1, 1, 1, C))."""
    if how == "classes" and there == (shape[0] - 1, *shape[1:]):
        return True
    trim = lambda s: tuple(n for n in s if n != 1)  # noqa: E731
    return trim(there) == trim(_file_shape(shape, how))


def _placed(value: np.ndarray, shape: tuple[int, ...], how: str) -> np.ndarray:
    """A tensor of a file that fits, as ours."""
    if how == "classes" and len(value) < shape[0]:
        return np.pad(value, ((0, 1), (0, 0)))
    if how in AS_OURS:
        return value.reshape(shape)
    value = value.reshape(_file_shape(shape, how))
    value = np.moveaxis(value, (0, 1), (-1, -2))
    if how == "flipped":
        value = np.roll(value, value.shape[0] // 2, axis=0)
    return np.ascontiguousarray(value)


def as_file(wanted: list[Slot], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters as the tensors of a file in the layout of `wanted`: the inverse of `match`."""
    flat, tensors = traverse_util.flatten_dict(params, sep="/"), {}
    for slot in wanted:
        name, how = slot.names[0]
        value = np.asarray(flat[slot.path], np.float32)
        value = np.roll(value, -(value.shape[0] // 2), axis=0) if how == "flipped" else value
        tensors[name] = np.ascontiguousarray(value if how in AS_OURS else np.moveaxis(value, (-1, -2), (0, 1)))
    return tensors
