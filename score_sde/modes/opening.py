"""What every mode begins with: the config that holds, its objects and their checks, the weights of the run."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from score_sde import discrete
from score_sde.config import ConfigError, Run, build, choose_sampler, flatten
from score_sde.config import get_config as saved_config
from score_sde.config.template import CHECKSUM, checksum
from score_sde.config.trust import own, remember
from score_sde.config.validation import batch_problems
from score_sde.evaluation import provenance
from score_sde.evaluation.examples import examples_of
from score_sde.files import WorkdirError, check_run, read_of_run, write_json
from score_sde.models.cpu import set_up_cpu
from score_sde.training.checkpoints import Checkpoints
from score_sde.training.experiment import Classification
from score_sde.training.loop import abstract_state
from score_sde.training.progress import tell
from score_sde.training.resume import SETTINGS

# What may change between two commands on one run; all else makes it another run.
FREE = ("sampling.", "guidance.", "restore.", "eval.", "data.dir", "training.steps", "training.log_every")
FREE += ("training.checkpoint_every", "training.snapshot_every", "training.max_bad_steps", "training.final_eval")
FREE += ("training.cpu_devices", "training.tensorboard", "training.new_data")
FREE += tuple(f"training.{name}" for name in SETTINGS)  # training says so, and notes it


def binding(config: Any) -> dict[str, Any]:
    """Of the config, all that makes the run what it is."""
    return {key: value for key, value in flatten(config).items() if not key.startswith(FREE)}


def saved_every(workdir: Path) -> int | None:
    """The `checkpoint_every` of the run in `workdir`, None where there is none."""
    path = workdir / "config.json"
    # Nothing is built of it, so no name in it needs trust.
    return saved_config(path, trust=True).training.checkpoint_every if path.is_file() else None


def settle(mode: str, workdir: Path, config: Any, overrides: dict, *, trust: bool = False) -> Any:
    """The config that holds: `_of_run`, with the sampler that the command line names.

    Raises: as `_of_run`; ConfigError for an unknown preset.
    """
    config = _of_run(mode, workdir, config, overrides, trust)
    with config.unlocked():
        # The posterior of a sharp measurement is stiff: steps that follow the predicted data are stable there.
        choose_sampler(config, overrides, "restore" if mode == "restore" else None)
    return config


def _of_run(mode: str, workdir: Path, config: Any, overrides: dict, trust: bool) -> Any:
    """The config that holds, given the one that the run in `workdir` has.

    Training goes on only with the run's own settings.  Evaluation and sampling use the run's config with the overrides
    of the command line, and say where the given file differs.

    Raises:
        WorkdirError: the workdir holds another config's run, or (eval, sample) no run, or what cannot be read.
        ConfigError: an override would change what the run is; the run's config.json is damaged, or names code that is
            not the user's.
    """
    check_run(workdir)
    path = workdir / "config.json"
    if not path.is_file():
        if mode != "train":
            raise WorkdirError(f"no run at {workdir}: expected {path}. Train it first, with --mode=train.")
        return config
    new = flatten(config)
    saved = saved_config(path, trust=trust or own(new, overrides))
    old = flatten(saved)
    different = [k for k in new if new[k] != old[k]]
    bound = [k for k in different if not k.startswith(FREE)]
    listed = ", ".join(f"{k} = {old[k]} there, {new[k]} here" for k in bound)
    if mode == "train":
        if bound:
            raise WorkdirError(f"{workdir} holds another run ({listed}). Use another --workdir, or the run's settings.")
        return config
    clash = [k for k in bound if k in overrides]
    if clash:
        names = ", ".join(clash)
        raise ConfigError(f"{names} cannot change in --mode={mode}: {workdir} was trained otherwise ({listed}).")
    if bound:
        tell(f"note: using the config saved in {workdir}; the given one differs ({listed}).")
    with saved.unlocked():
        for key in different:
            if key in overrides:
                section, _, name = key.rpartition(".")
                target = saved[section] if section else saved
                target[name] = (config[section] if section else config)[name]
    return saved


def prepare(config: Any) -> Run:
    """The objects of the config, then devices.

    Raises:
        ConfigError: the config makes no sense, in itself or on these devices; nothing has been compiled.
    """
    run = build(config)
    batches = tuple(config[s].batch_size for s in ("training", "sampling", "eval"))
    set_up_cpu(batches, config.training.cpu_devices, onednn=math.prod(run.experiment.shape[:-1]) >= 16 * 16)
    try:
        devices = jax.device_count()
    except RuntimeError as error:  # JAX_PLATFORMS names what is not there
        raise ConfigError(f"no device: {str(error).splitlines()[0]}. Check JAX_PLATFORMS and the driver.") from error
    problems = batch_problems(config, devices) + _rehearse(run)
    if problems:
        raise ConfigError("; ".join(p.rstrip(".") for p in problems) + ".")
    return run


def _rehearse(run: Run) -> list[str]:
    """What only shows while a program is traced, told before one is compiled; a score of zeros makes it quick."""
    e = run.experiment
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    t = jax.eval_shape(lambda: jnp.zeros(2))

    def sample(keys):
        return run.sampling.solve(keys, e.sde, lambda x, t: jnp.zeros_like(x), (2, *e.shape)).x

    if isinstance(e, Classification):
        return []
    attempts = [("sampling", sample, keys), ("objective", partial(e.weighting, e.sde, e.prediction), t)]
    if run.evaluation.bound == "discrete":
        attempts.append(("eval", lambda _: discrete.of_sde(e.sde, run.evaluation.bound_draws), t))
    problems = []
    for section, attempt, example in attempts:
        try:
            jax.eval_shape(attempt, example)
        except (ValueError, TypeError) as error:
            problems.append(f"{section}: {str(error).splitlines()[0]}")
    return problems


def check_examples(run: Run) -> None:
    """Raise ConfigError where the evaluation asks for more examples than its split has, DataError where it has none."""
    there, asked = examples_of(run.experiment, run.evaluation.split).of, run.evaluation.num_examples
    if asked is not None and asked > there:
        raise ConfigError(
            f"eval.num_examples must be at most {there}, the size of the {run.evaluation.split} split, got {asked}. "
            "Leave it out to evaluate all of them."
        )


def save_config(workdir: Path, config: Any, overrides: dict, place: Path | None = None) -> None:
    """Write config.json, with the versions and devices that go with it, and record the code that it names.

    place: where the workdir will be, if it is made elsewhere.
    """
    versions, devices = provenance.versions(), provenance.devices()
    path = workdir / "config.json"
    if path.is_file():
        there = json.loads(read_of_run(path))
        if there.get("devices") != devices or there.get("versions") != versions:
            tell("note: devices or versions differ from those of the run so far; it goes on, but not to the same bits.")
    saved = {
        "config": json.loads(config.to_json()),
        "overrides": {k: list(v) if isinstance(v, tuple) else v for k, v in overrides.items()},
        "versions": versions,
        "devices": devices,
    }
    write_json(path, saved | {CHECKSUM: checksum(saved)})
    remember((place or workdir) / "config.json", path.read_bytes(), flatten(config))


def origin_of(workdir: Path, step: int | None, params: Any = None) -> provenance.Origin:
    """Where results come from: the run in `workdir`, its step and weights."""
    return provenance.origin_of(workdir, step, params, free=FREE)


def weights_of(run: Run, workdir: Path, step: int | None = None) -> tuple[Any, int]:
    """EMA weights and step of the newest undamaged checkpoint, or of that of `step`.

    Raises:
        WorkdirError: there is none.
    """
    found = newest(run, workdir, step)
    if found is None:
        raise WorkdirError(
            f"no checkpoint in {workdir / 'checkpoints'}. Train first, with --mode=train; or, if it was trained, "
            "put its checkpoints back."
        )
    return found


def newest(run: Run, workdir: Path, step: int | None = None) -> tuple[Any, int] | None:
    """`weights_of`, or None where there is no checkpoint."""
    check_run(workdir)
    if not (workdir / "checkpoints").is_dir():
        return None
    with Checkpoints(workdir, read_only=True) as checkpoints:
        state = checkpoints.restore(abstract_state(run.experiment, run.training, run.seed), step)
    return state and (state.ema, int(state.step))
