"""What the scripts of this folder share: the machine's name, and figures that are checked against bounds."""

import argparse
import io
import os
import platform
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"


def machine() -> str:
    """The machine in words: processor, cores, Python, JAX and its devices."""
    import jax

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = ", ".join(sorted({d.device_kind for d in jax.devices()}))
    return f"{name}, {cores} cores, Python {platform.python_version()}, JAX {jax.__version__} on {devices}"


def arguments(doc: str) -> argparse.ArgumentParser:
    """A parser with --check, whose help is the script's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bound is missed")
    return parser


def config_of(name: str):
    """The config of configs/`name`.py."""
    sys.path.insert(0, str(ROOT / "configs"))
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()


def save_weights(workdir: Path, path: Path) -> None:
    """Write the EMA weights of a run as a plain .npz, named by their place in the tree."""
    import jax
    import numpy as np

    from score_sde.config import build, get_config
    from score_sde.files import write_bytes
    from score_sde.training.checkpoints import Checkpoints
    from score_sde.training.loop import abstract_state

    run = build(get_config(str(workdir / "config.json")))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        state = checkpoints.restore(abstract_state(run.experiment, run.training, run.seed))
    flat = jax.tree_util.tree_flatten_with_path(state.ema)[0]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(a) for p, a in flat})
    write_bytes(path, buffer.getvalue())


def load_weights(path: Path) -> dict:
    """The parameters that `save_weights` wrote."""
    import numpy as np
    from flax.traverse_util import unflatten_dict

    with np.load(path) as found:
        return unflatten_dict({tuple(k.split("/")): found[k] for k in found.files})


def training_step(run, options) -> tuple:
    """(state, dispatch, sharding) of a config's `run`: a fresh state, the step as training calls it, `dispatch(state,
    batches)`, compiled by its first call, and where the batches, {"x": (steps, batch, *shape)}, are put."""

    from score_sde.training import loop, mesh, state

    devices = mesh.data_mesh()
    whole, sliced = mesh.replicated(devices), mesh.batch_sharding(devices, axis=1)
    step = state.make_step(run.experiment.loss, loop._optimizer(options), options.ema_rate)
    dispatch = state.make_dispatch(step, state_sharding=whole, batch_sharding=sliced)
    return loop.initial_state(run.experiment, options, 0, whole)(), dispatch, sliced


class Figures:
    """Collects figures with their bounds, prints them, and ends the script."""

    def __init__(self):
        self.missed = False

    def at_most(self, name: str, value: float, bound: float) -> None:
        """A figure that must not exceed `bound`."""
        self._add(name, value, f"<= {bound:g}", value <= bound)

    def at_least(self, name: str, value: float, bound: float) -> None:
        """A figure that must reach `bound`."""
        self._add(name, value, f">= {bound:g}", value >= bound)

    def _add(self, name: str, value: float, bound: str, good: bool) -> None:
        self.missed |= not good
        print(f"{name:<58} {value:<12.4g} {bound:<10} {'ok' if good else 'MISSED'}")

    def end(self, check: bool) -> None:
        """Print the machine; exit with 1 if asked to check and a bound was missed."""
        print(f"machine: {machine()}")
        sys.exit(1 if check and self.missed else 0)
