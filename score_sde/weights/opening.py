"""A file or folder of published weights, opened: which format it is, and what it says beside its tensors."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from score_sde.reading import RegularFile, printable, read_text
from score_sde.weights.edm_unet import open_edm
from score_sde.weights.errors import WeightsError, damaged
from score_sde.weights.lazy import LazyTensor
from score_sde.weights.msgpack import is_map, read_msgpack
from score_sde.weights.pickles import read_torch
from score_sde.weights.tensors import is_safetensors, read_safetensors

CONFIG_KEY, STEP_KEY = "score_sde_config", "score_sde_step"  # in the header of our safetensors
STEM = "diffusion_pytorch_model"  # of the weights in a diffusers folder
_SHARD = re.compile(r"-\d+-of-\d+\.")
UNUSED = frozenset({"sigmas"})  # the table of noise levels that score_sde_pytorch saves with its networks


class Found(NamedTuple):
    """What a file holds; of its tensors only the shapes have been read.

    layout: of `naming.LAYOUTS`; tensors, ema: by name (ema as tensors where there is none); step: of training;
    config: ours, as JSON; unet, scheduler: config.json and scheduler_config.json of diffusers.
    """

    kind: str
    layout: str
    tensors: Mapping[str, LazyTensor]
    ema: Mapping[str, LazyTensor]
    step: int = 0
    config: str | None = None
    unet: dict | None = None
    scheduler: dict | None = None


def open_weights(path: Path) -> Found:
    """What is at `path`.  Nothing in it is executed.

    Raises:
        WeightsError: there is nothing, it is damaged, or of a format that is not known here.
    """
    try:
        if path.is_dir():
            return _folder(path)
        with RegularFile(path) as file:
            head = file.read(16)
        if head.startswith(b"PK\x03\x04"):
            return _torch_file(path)
        if is_safetensors(head):
            return _safetensors(path)
        if is_map(head):
            return _flax_file(path)
        if head[:1] == b"\x80":
            kind, tensors, config = open_edm(path)
            return Found(kind, "torch", tensors, tensors, config=config)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}. Give a file or folder of weights.") from error
    raise WeightsError(
        f"{path}: expected weights, got a file of another format, or the rest of a damaged one. Fetch it again, or "
        "give a .pth, .safetensors, .pkl of NVlabs' edm, checkpoint_N or a diffusers folder."
    )


def _folder(path: Path) -> Found:
    """A diffusers folder, or that of a pipeline with the network in unet/."""
    unet = path / "unet" if (path / "unet").is_dir() else path
    if not (unet / "config.json").is_file():
        raise WeightsError(f"{path}: expected a diffusers folder, with config.json or unet/config.json, got neither.")
    config = _json(unet / "config.json")
    if "config" in config:
        raise WeightsError(f"{path} is a workdir of score_sde. Use it with --workdir, or export it.")
    scheduler = next((p for p in (path / "scheduler", path, path.parent / "scheduler") if _has_scheduler(p)), None)
    file = _weights_file(unet)
    found = _safetensors(file) if file.suffix == ".safetensors" else _torch_file(file)
    return found._replace(
        kind=f"diffusers folder ({printable(file.name)})",
        unet=config,
        scheduler=scheduler and _json(scheduler / "scheduler_config.json"),
    )


def _weights_file(unet: Path) -> Path:
    """The weights of a diffusers folder: whole precision before a variant, such as fp16, of which there must be one."""
    for variants in ("", ".*"):
        for suffix in (".safetensors", ".bin"):
            found = sorted(p for p in unet.glob(f"{STEM}{variants}{suffix}") if not _SHARD.search(p.name))
            if found[1:]:
                names = printable(", ".join(path.name for path in found))
                raise WeightsError(f"{unet}: expected one variant of {STEM}{suffix}, got {names}. Leave one there.")
            if found:
                return found[0]
    if found := sorted(unet.glob(f"{STEM}*.index*.json")):
        raise WeightsError(
            f"{unet}: expected weights in one file, got shards, as {printable(found[0].name)} says. Load them in "
            "diffusers and save them with save_pretrained(..., max_shard_size='1TB')."
        )
    raise WeightsError(f"{unet}: expected {STEM}.safetensors or {STEM}.bin beside config.json.")


def _has_scheduler(folder: Path) -> bool:
    return (folder / "scheduler_config.json").is_file()


def _json(path: Path) -> dict:
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(found, dict):
        raise damaged(path, f"expected an object, got {type(found).__name__}")
    return found


def _safetensors(path: Path) -> Found:
    tensors, metadata = read_safetensors(path)
    step = metadata.get(STEP_KEY, "0")
    layout, config = _layout(path, tensors), metadata.get(CONFIG_KEY)
    return Found("safetensors", layout, tensors, tensors, _step(int(step) if step.isdecimal() else 0), config)


def _step(value: Any) -> int:
    """The step of training that a file tells, or 0 where it tells none that can be."""
    if isinstance(value, LazyTensor) and value.shape in ((), (1,)):
        value = np.asarray(value).item()
    return value if type(value) is int and 0 <= value < 2**31 else 0


def _layout(path: Path, tensors: Mapping[str, Any]) -> str:
    marks = {"diffusers": "conv_in.", "torch": "all_modules.", "ours": "/"}
    for layout, mark in marks.items():
        if any(mark in name for name in tensors):
            return layout
    some = printable(", ".join(list(tensors)[:3])) or "none at all"
    raise WeightsError(f"{path}: expected the tensors of a U-Net by Score-SDE, diffusers or score_sde, got {some}.")


def _torch_file(path: Path) -> Found:
    """A checkpoint of score_sde_pytorch, or a state dict."""
    saved = read_torch(path)
    model = saved.get("model", saved) if isinstance(saved, dict) else None
    if not isinstance(model, dict) or not model or not all(isinstance(v, LazyTensor) for v in model.values()):
        raise WeightsError(
            f"{path}: expected a score_sde_pytorch checkpoint (model, ema, step) or a state dict, got "
            f"{printable(', '.join(map(str, saved)), 100) if isinstance(saved, dict) else type(saved).__name__}."
        )
    model = {str(name).removeprefix("module."): tensor for name, tensor in model.items()}
    layout, ema = _layout(path, model), saved.get("ema")
    return Found(
        "Score-SDE checkpoint of PyTorch" if layout == "torch" else "PyTorch state dict",
        layout,
        model,
        model if ema is None else _by_position(path, model, ema),
        _step(saved.get("step")),
    )


def frozen(name: str, tensor: Any) -> bool:
    """Whether a tensor of Score-SDE's layout is never trained: the table of sigmas, the Fourier frequencies."""
    return name in UNUSED or name.endswith(".W") and len(tensor.shape) == 1


def _by_position(path: Path, model: dict[str, LazyTensor], ema: Any) -> dict[str, LazyTensor]:
    """The moving averages by name: they are a list, in the order of the parameters that are trained."""
    names = [name for name, tensor in model.items() if not frozen(name, tensor)]
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(shadow, list) or not all(isinstance(v, LazyTensor) for v in shadow) or len(shadow) != len(names):
        count = len(shadow) if isinstance(shadow, list) else "no list"
        raise WeightsError(
            f"{path}: expected {len(names)} averages in ema.shadow_params, one a parameter, got {count}."
        )
    for name, tensor in zip(names, shadow, strict=True):
        if tensor.shape != model[name].shape:
            raise WeightsError(
                f"{path}: expected averages in the order of the parameters, got {tensor.shape} for {name} "
                f"{model[name].shape}."
            )
    return model | dict(zip(names, shadow, strict=True))


def _flax_file(path: Path) -> Found:
    """A checkpoint of the published JAX code."""
    saved = read_msgpack(path)
    target = saved.get("optimizer", {}) if isinstance(saved, dict) else {}
    target = target.get("target") if isinstance(target, dict) else None
    if not isinstance(target, dict) or not isinstance(saved.get("params_ema"), dict):
        raise WeightsError(f"{path}: expected a Score-SDE checkpoint with optimizer/target and params_ema in msgpack.")
    tensors, ema = (_flat(path, tree.get("params", tree)) for tree in (target, saved["params_ema"]))
    return Found("Score-SDE checkpoint of JAX", "flax", tensors, ema, _step(saved.get("step")))


def _flat(path: Path, tree: Any) -> dict[str, LazyTensor]:
    flat = traverse_util.flatten_dict(tree, sep=".") if isinstance(tree, dict) else {}
    if not flat or not all(isinstance(v, LazyTensor) for v in flat.values()):
        raise WeightsError(f"{path}: expected arrays in its parameters, got something else. Fetch it again.")
    return flat
