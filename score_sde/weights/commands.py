"""What the command does: inspect, import, export."""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde.config import Run, base_config, build, flatten, get_config
from score_sde.config.trust import own, remember
from score_sde.files import WorkdirError, check_run, check_space, write_bytes, writing
from score_sde.main import load, overridden, read_flags, take, take_switch
from score_sde.models import UNet
from score_sde.modes import prepare, save_config, weights_of
from score_sde.reading import printable
from score_sde.training.checkpoints import KEEP, Checkpoints
from score_sde.training.loop import abstract_state, state_of
from score_sde.weights.conventions import PUBLISHED, assumed, check_label, config_of, count
from score_sde.weights.errors import WeightsError
from score_sde.weights.naming import Matched, as_file, match, slots
from score_sde.weights.opening import CONFIG_KEY, STEP_KEY, UNUSED, Found, open_weights
from score_sde.weights.tensors import write_safetensors
from score_sde.weights.unet2d import cos_first, diffusers_config

_BLOCKS = 50  # which any network may have


class Reading(NamedTuple):
    """A file, the config by which it is read, and what the two have in common."""

    found: Found
    config: ConfigDict
    overrides: dict
    slots: list
    weights: Matched
    assumed: list[str]  # what the file does not say

    def averages(self) -> Matched:
        """The moving averages, which are the weights themselves where there are none."""
        same = self.found.ema is self.found.tensors
        return self.weights if same else match(self.slots, self.found.ema, UNUSED)


def read(path: Path, flags: list[str], *, prepared: bool) -> tuple[Reading, Run]:
    """Open the file and match it with the network of its config; `prepared` sets up devices too.

    Raises:
        WeightsError, ConfigError, UsageError: as they say.
    """
    found = open_weights(path)
    flags, file = take(flags, "config")
    flags, trust = take_switch(flags, "trust")
    given, keys = None if file is None else load(file), overridden(flags)
    config = config_of(found, path, given, "sde.sigma_max" in keys, trust or own({}, keys))
    _, overrides = read_flags(flags, config)
    _check_blocks(found, config)
    check_label(found, config)
    run = (prepare if prepared else build)(config)
    net, shape = run.experiment.network, run.experiment.shape
    if found.layout != "ours" and not isinstance(net, UNet):
        raise WeightsError(f"{path}: expected model.name=unet in the config, got {config.model.name}.")
    wanted = slots(net, shape, found.layout, cos_first=found.unet is not None and cos_first(found.unet))
    fit = match(wanted, found.tensors, UNUSED)
    return Reading(found, config, overrides, wanted, fit, assumed(found, given, config)), run


def _check_blocks(found: Found, config: ConfigDict) -> None:
    """Refuse a network of far more blocks than the file has tensors, which would take minutes to build."""
    blocks = len(config.model.ch_mult or ()) * (config.model.num_res_blocks or 0)
    if blocks > (most := max(_BLOCKS, len(found.tensors))):
        raise WeightsError(
            f"the config's network has {blocks:,} residual blocks on its way down (model.ch_mult, num_res_blocks), and "
            f"the file {len(found.tensors):,} tensors: expected at most {most:,} blocks."
        )


def inspect(path: Path, flags: list[str]) -> int:
    """Print what a file holds and whether it fits its config; 0 where it does."""
    found = open_weights(path)
    total = count(found)
    print(f"file        {printable(path)}: {found.kind}, {len(found.tensors)} tensors")
    print(f"parameters  {total:,}" + (f", as has {PUBLISHED[total][0]}" if total in PUBLISHED else ""))
    averages = "as trained and averaged (EMA)" if found.ema is not found.tensors else "one set of weights"
    print(f"training    {averages}; {f'step {found.step:,}' if found.step else 'no step is said'}")
    reading, run = read(path, flags, prepared=False)
    config, fit = reading.config, reading.weights
    fresh = flatten(base_config())
    for section in ("model", "sde", "objective", "data", "sampling"):
        there = {k: v for k, v in flatten(config).items() if k.startswith(f"{section}.")}
        told = {k.partition(".")[2]: v for k, v in there.items() if v != fresh[k] or k.endswith(".name")}
        print(f"{section:<12}{printable('  '.join(f'{k}={v}' for k, v in told.items() if v is not None), 1000)}")
    for note in reading.assumed:
        print(f"assumed     {note}")
    print(f"images      {run.experiment.shape}")
    print(f"matches     {fit.used} of the network's {len(reading.slots)} tensors")
    for title, names in (
        ("not there", fit.missing), ("not wanted", fit.unexpected), ("misshapen", fit.misshapen),
    ):  # fmt: skip
        for name in names[:10]:
            print(f"{title:<12}{printable(name)}")
        if names[10:]:
            print(f"{'':<12}and {len(names) - 10} more")
    return 0 if fit.params is not None and not fit.unexpected else 1


def import_run(path: Path, workdir: Path, flags: list[str]) -> int:
    """Write a run with the weights of a file; its config.json holds their settings."""
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise WorkdirError(f"{workdir} is there already, and import overwrites nothing. Choose another.")
    reading, run = read(path, flags, prepared=True)
    found, config = reading.found, reading.config
    params = _whole(path, reading.weights)
    ema = _whole(path, reading.averages())
    like = abstract_state(run.experiment, run.training, run.seed)
    with writing(workdir):
        workdir.parent.mkdir(parents=True, exist_ok=True)
        check_space(workdir.parent, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like)))
        made = Path(tempfile.mkdtemp(dir=workdir.parent, prefix=f".{workdir.name}."))
    try:
        device = [jax.tree.map(jnp.asarray, tree) for tree in (params, ema)]
        state = state_of(*device, found.step, run.training, run.seed)
        with Checkpoints(made, KEEP) as checkpoints:
            checkpoints.save(found.step, state)
        with writing(workdir):
            save_config(made, config, reading.overrides, place=workdir)
            made.chmod(0o755)
            os.replace(made, workdir)  # whole or not at all
    finally:
        shutil.rmtree(made, ignore_errors=True)
    print(f"{found.kind} of {len(reading.slots)} tensors, {count(found):,} parameters, step {found.step}: {workdir}")
    for note in reading.assumed:
        print(f"  assumed: {note}")
    print(f"  python -m score_sde.main --workdir={workdir} --mode=sample")
    return 0


def _whole(path: Path, fit: Matched) -> dict:
    """The parameters, if all are there and nothing is left over."""
    problems = [
        (fit.misshapen, "shapes that fit"), (fit.missing, "all tensors of the network"),
        (fit.unexpected, "no others than the network's"),
    ]  # fmt: skip
    for names, expected in problems:
        if names:
            kind = "no" if names is fit.missing else "got"
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise WeightsError(
                f"{path}: expected {expected}, {kind} {names[0]}{more}. `inspect` lists them; another --config may fit."
            )
    for name, value in jax.tree_util.tree_leaves_with_path(fit.params):
        if not np.isfinite(value).all():
            raise WeightsError(f"{path}: expected finite numbers, got others in {jax.tree_util.keystr(name)}.")
    return fit.params


def export(workdir: Path, out: Path, *, trust: bool = False) -> int:
    """Write the EMA weights of a run as one .safetensors file, or as a diffusers folder."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if out.exists():
        raise WorkdirError(f"{out} is there already, and export overwrites nothing. Choose another.")
    if not (workdir / "config.json").is_file():
        raise WorkdirError(f"no run at {workdir}: expected {workdir / 'config.json'}. Train or import it first.")
    check_run(workdir)
    config = get_config(workdir / "config.json", trust=trust)
    run = prepare(config)
    net, shape = run.experiment.network, run.experiment.shape
    folder = out.suffix != ".safetensors"
    if folder and not isinstance(net, UNet):
        raise WeightsError(f"diffusers' UNet2DModel is no {config.model.name}. Export to a .safetensors file.")
    description = diffusers_config(net, shape) if folder else None
    ema, step = weights_of(run, workdir)
    text = json.dumps({"config": json.loads(config.to_json())})
    header = {"format": "pt", CONFIG_KEY: text, STEP_KEY: str(step)}
    tensors = as_file(slots(net, shape, "diffusers" if folder else "ours"), ema)
    if folder:
        write_safetensors(out / "diffusion_pytorch_model.safetensors", tensors, header)
        write_bytes(out / "config.json", (json.dumps(description, indent=2) + "\n").encode())
    else:
        write_safetensors(out, tensors, header)
        remember(out, text.encode(), flatten(config))
    print(f"EMA weights of step {step}, {sum(t.size for t in tensors.values()):,} parameters: {out}")
    return 0
