"""Networks of NVlabs' edm as ours: `SongUNet` in its three preconditionings, in Score-SDE's own layout.

`SongUNet` is the U-Net of Score-SDE with its parts in the same order: a block with attention is two of them, and its
queries, keys and values are one map, whose outputs go in turns.  The preconditionings are those of

    EDMPrecond    our EDM: D = c_skip x + c_out F(c_in x, log(sigma)/4)
    VPPrecond     VP with noise prediction: D = x - sigma F(c_in x, 999 t), the x of EDM being x_t/alpha
    VEPrecond     VE with data in [0, 1]: D = x + sigma F(x, log(sigma/2)) with data in [-1, 1] is the score F/(sigma/2)
                  of x' = (x + 1)/2, whose noise level is sigma/2

A class enters as an affine map of sqrt(classes) times its one-hot vector, no class as that of zeros: `_table`.  ADM's
networks (`DhariwalUNet`) and iDDPM's preconditioning have no counterpart here.
"""

import reprlib
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from score_sde.config import base_config, use_preset
from score_sde.reading import printable
from score_sde.weights.edm_pickles import MAGIC, MOST_TENSORS, Persistent, read_edm, tensors_of
from score_sde.weights.errors import WeightsError, damaged
from score_sde.weights.lazy import LazyTensor

# What a SongUNet is made with, and the values that it takes for what is left out.
_DEFAULTS: dict[str, Any] = dict(
    label_dim=0, augment_dim=0, model_channels=128, channel_mult=[1, 2, 2, 2], channel_mult_emb=4, num_blocks=4,
    attn_resolutions=[16], dropout=0.10, label_dropout=0, embedding_type="positional", channel_mult_noise=1,
    encoder_type="standard", decoder_type="standard", resample_filter=[1, 1],
)  # fmt: skip
_ENCODERS = {"standard": "none", "skip": "input_skip", "residual": "residual"}
_DECODERS = {"standard": "none", "skip": "output_skip"}
_BLOCK = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "affine": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1"}
_BLOCK |= {"skip": "Conv_2"}


def open_edm(path: Path) -> tuple[str, dict[str, LazyTensor], str]:
    """(what it is, its tensors by their names in Score-SDE's layout, its config as JSON) of a pickle of NVlabs' edm.

    Raises:
        WeightsError: it is damaged, another pickle, or a network that ours cannot express.
    """
    saved = read_edm(path)
    net = saved.get("ema") if isinstance(saved, dict) else saved
    if saved == MAGIC:
        raise WeightsError(
            f"{path}: expected a file of torch 1.6 or newer, got an older one. Where you trust it, write it again: "
            "torch.save(torch.load(FILE, weights_only=True), FILE)."
        )
    if not isinstance(net, Persistent):
        raise WeightsError(
            f"{path}: expected a pickle of NVlabs' edm, with a network as 'ema', got another one. Of other networks "
            "save the weights alone: torch.save(net.state_dict(), 'weights.pth')."
        )
    try:
        model = _model(path, net)
        tensors = dict(islice(tensors_of(model), MOST_TENSORS))
        config = _config(path, net, model)
        return f"{net.name} of NVlabs' edm", _in_score_sde(tensors), f'{{"config": {config.to_json()}}}'
    except WeightsError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # a value of another kind
        raise damaged(path, error) from error


def _model(path: Path, net: Persistent) -> Persistent:
    """The network inside the preconditioning, if both are known here."""
    model = net.state["_modules"].get("model")
    name = model.name if isinstance(model, Persistent) else type(model).__name__
    if name == "DhariwalUNet":
        raise WeightsError(f"{path}: expected a DDPM++ or NCSN++ network (SongUNet), got ADM's, DhariwalUNet.")
    if net.name not in _PRECONDITIONINGS or name != "SongUNet":
        raise WeightsError(
            f"{path}: expected SongUNet in {', '.join(_PRECONDITIONINGS)}, got {printable(name)} in "
            f"{printable(net.name)}: another kind of network."
        )
    return model


def _config(path: Path, net: Persistent, model: Persistent) -> ConfigDict:
    said = model.state["_init_kwargs"]
    if type(said) is not dict or model.state.get("_init_args"):
        raise ValueError("expected the options of SongUNet by their names")
    sizes = {"img_resolution", "in_channels", "out_channels"}
    o = {**_DEFAULTS, **said}

    def need(name: str, good: bool, expected: str) -> None:
        if not good:
            raise WeightsError(f"{path}: expected SongUNet's {name} {expected}, got {reprlib.repr(o.get(name))}.")

    for name in o.keys() - _DEFAULTS.keys() - sizes:
        need(name, False, "not to be there")
    size, channels, classes = o["img_resolution"], o["in_channels"], o["label_dim"]
    fourier = o["embedding_type"] == "fourier"
    need("img_resolution", type(size) is int and size > 0, "to be a number of pixels")
    need("out_channels", type(channels) is int and o["out_channels"] == channels > 0, "to be in_channels")
    need("label_dim", type(classes) is int and classes >= 0, "to be a number of classes")
    need("channel_mult_emb", o["channel_mult_emb"] == 4, "4")
    need("channel_mult_noise", o["channel_mult_noise"] == 1 + fourier, "1 with positional embedding, 2 with fourier")
    need("embedding_type", o["embedding_type"] in ("positional", "fourier"), "positional or fourier")
    need("encoder_type", o["encoder_type"] in _ENCODERS, f"to be among {', '.join(_ENCODERS)}")
    need("decoder_type", o["decoder_type"] in _DECODERS, f"to be among {', '.join(_DECODERS)}")
    fir = tuple(o["resample_filter"])
    need("resample_filter", fir in ((1, 1), (1, 3, 3, 1)), "[1, 1] or [1, 3, 3, 1]")
    c = base_config()
    with c.unlocked():
        c.model.nf, c.model.ch_mult = o["model_channels"], tuple(o["channel_mult"])
        c.model.num_res_blocks, c.model.attn_resolutions = o["num_blocks"], tuple(o["attn_resolutions"])
        c.model.dropout, c.model.augment_dim = float(o["dropout"]), o["augment_dim"]
        if classes:
            c.model.num_classes, c.model.class_first = classes, True
            c.objective.label_dropout = float(o["label_dropout"])
        c.model.embedding_type, c.model.fir_kernel = o["embedding_type"], () if fir == (1, 1) else fir
        c.model.progressive_input = _ENCODERS[o["encoder_type"]]
        c.model.progressive = _DECODERS[o["decoder_type"]]
        if (size, channels) == (32, 3):
            c.data.name = "cifar10"
        else:
            c.data.name, c.data.size, c.data.channels = "images", size, channels
        c.data.flip = True
        _PRECONDITIONINGS[net.name](c, net.state, need)
    return c


def _edm(c: ConfigDict, state: Mapping[str, Any], need: Any) -> None:
    c.sde.name = "edm"
    c.objective.prediction, c.objective.sigma_data = "edm", float(state["sigma_data"])
    c.objective.weighting, c.objective.times = "edm", "log_normal"
    use_preset(c, "edm")


def _vp(c: ConfigDict, state: Mapping[str, Any], need: Any) -> None:
    if state["M"] != 1000:
        raise ValueError("expected M = 1000 of VPPrecond, whose label is 999 t")
    c.sde.name, c.sde.beta_min = "vp", float(state["beta_min"])
    c.sde.beta_max = float(state["beta_min"]) + float(state["beta_d"])
    c.objective.prediction = "noise"
    use_preset(c, "song_vp")


def _ve(c: ConfigDict, state: Mapping[str, Any], need: Any) -> None:
    need("embedding_type", c.model.embedding_type == "fourier", "fourier with VEPrecond")
    c.sde.name, c.data.range = "ve", (0.0, 1.0)
    c.sde.sigma_min, c.sde.sigma_max = 0.5 * float(state["sigma_min"]), 0.5 * float(state["sigma_max"])
    c.model.center_input = c.model.scale_by_sigma = True
    c.objective.prediction = "score"
    use_preset(c, "song_ve")


_PRECONDITIONINGS = {"EDMPrecond": _edm, "VPPrecond": _vp, "VEPrecond": _ve}


def _in_score_sde(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors of a SongUNet by the names that Score-SDE's torch code has for them."""
    found: dict[str, LazyTensor] = {}
    number, last = -1, None
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "resample_filter":  # fixed
            continue
        if module == "map_augment":
            found[name] = tensor
            continue
        if module == "map_label":
            found[module] = _table(tensors["map_label.weight"], tensors["map_label.bias"])
            continue
        *place, inside = module.split(".") if module.count(".") == 2 else (module, "")
        at = (*place, inside in ("norm2", "qkv", "proj"))
        number, last = number + (at != last), at
        to = f"all_modules.{number}"
        if module == "map_noise":
            found[f"{to}.W"] = tensor
        elif inside in _BLOCK:
            found[f"{to}.{_BLOCK[inside]}.{leaf}"] = tensor
        elif inside == "norm2":
            found[f"{to}.GroupNorm_0.{leaf}"] = tensor
        elif inside == "qkv":
            for k in range(3):
                found[f"{to}.NIN_{k}.{'W' if leaf == 'weight' else 'b'}"] = _matrix(tensor, k)
        elif inside == "proj":
            found[f"{to}.NIN_3.{'W' if leaf == 'weight' else 'b'}"] = _matrix(tensor)
        elif module.endswith("_aux_residual"):
            found[f"{to}.Conv2d_0.{leaf}"] = tensor
        elif module.endswith("_aux_skip"):
            found[f"{to}.Conv_0.{leaf}"] = tensor
        else:
            found[f"{to}.{leaf}"] = tensor
    return found


def _table(weight: LazyTensor, bias: LazyTensor) -> LazyTensor:
    """What their map of a class adds to the embedded label: a row for each class, sqrt(classes) weight + bias, and one
    for none, the bias."""
    features, classes = weight.shape
    if bias.shape != (features,):
        raise ValueError("expected a bias for each output of map_label")
    rows = lambda: np.pad(np.asarray(weight).T * np.sqrt(classes), ((0, 1), (0, 0))) + np.asarray(bias)  # noqa: E731
    return LazyTensor((classes + 1, features), rows)


def _matrix(tensor: LazyTensor, turn: int | None = None) -> LazyTensor:
    """A 1x1 convolution (out, in, 1, 1) as Score-SDE's matrix (in, out), or its bias; of every third output, from
    `turn` on, unless that is None."""
    rows = slice(None) if turn is None else slice(turn, None, 3)
    outputs = tensor.shape[0] if turn is None else tensor.shape[0] // 3
    shape = (tensor.shape[1], outputs) if len(tensor.shape) == 4 else (outputs,)
    return LazyTensor(shape, lambda: np.asarray(tensor)[rows].reshape(shape[::-1]).T)
