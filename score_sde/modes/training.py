"""--mode=train and --mode=plot."""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from score_sde.config import ConfigError, Run
from score_sde.data import DataError, describe
from score_sde.data.identity import fingerprint
from score_sde.evaluation.levels import loss_by_level
from score_sde.evaluation.pictures import write_learning_curve, write_loss_by_level
from score_sde.evaluation.provenance import Provenance
from score_sde.evaluation.samples import generate, write_samples
from score_sde.extras import MissingExtra
from score_sde.files import WorkdirError, check_free, check_space, check_writable, locked, remove_temporaries
from score_sde.plots import check_matplotlib, suits
from score_sde.training.checkpoints import KEEP
from score_sde.training.experiment import Classification
from score_sde.training.loop import Interrupted, abstract_state, train
from score_sde.training.progress import EventFiles, clock, tell
from score_sde.training.resume import check

from .evaluation import evaluate, tell_accuracy
from .opening import binding, check_examples, newest, origin_of, prepare, save_config, saved_every


def train_mode(workdir: Path, config: Any, overrides: dict, *, command: str, started: float) -> int:
    """Train (or go on training) in `workdir`; 0, or 128 + the number of the signal that stopped it."""
    run = prepare(config)
    check_free(workdir)
    if run.training.tensorboard:
        EventFiles.check()
    source = run.experiment.load("train")  # missing data are told before anything compiles
    if not len(source):
        raise DataError("the training split has no examples. Check how they are read or filtered.")
    wanted = run.experiment.num_classes
    if wanted and source.num_classes != wanted:
        raise ConfigError(f"model.num_classes must be that of the data, {source.num_classes or 0}, got {wanted}.")
    if run.final_eval:
        check_examples(run)
    _check_ends(run)
    _check_own(workdir)
    if run.own_data:
        tell(str(describe(source, run.experiment.data_range)))
    identity = {"config": binding(config), "data": fingerprint(source)}
    check(workdir, run.training, identity, saved_every=saved_every(workdir))
    with locked(workdir):
        remove_temporaries(workdir)
        state = abstract_state(run.experiment, run.training, run.seed)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        there = sum(p.stat().st_size for p in (workdir / "checkpoints").rglob("*") if p.is_file())
        check_space(workdir, size * (KEEP + 2) - there)  # those kept, a good one besides, and the one being written
        save_config(workdir, config, overrides)

        def stem_of(step: int) -> Path:
            return workdir / "samples" / f"step_{step:08d}"

        def has_snapshot(step: int) -> bool:
            suffixes = [".npz", ".png"] if suits(run.experiment.shape, run.experiment.levels) else [".npz"]
            return all(stem_of(step).with_suffix(suffix).is_file() for suffix in suffixes)

        def snapshot(step: int, state) -> bytes | None:
            how = dataclasses.replace(run.sampling, trajectory=0)
            found = generate(run.experiment, state.ema, how, seed=run.sampling_seed, progress=False)
            settings, origin = how.settings(run.experiment, seed=run.sampling_seed), origin_of(workdir, step, state.ema)
            made = Provenance("snapshot", f"{len(found.x)} samples from fixed noise", origin, settings)
            written = write_samples(run.experiment, found, stem_of(step), made, replace=True)
            tell(f"samples at step {step}: {written[-1]}")
            return written[-1].read_bytes() if written[-1].suffix == ".png" else None

        count = f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
        tell(f"training {workdir} for {run.training.steps} steps on {count}")
        try:
            state = train(
                run.experiment, run.training, workdir, seed=run.seed, flip=run.flip,
                snapshot=None if isinstance(run.experiment, Classification) else snapshot,
                has_snapshot=has_snapshot, identity=identity,
            )  # fmt: skip
        except Interrupted as stop:
            name = signal.Signals(stop.signum).name
            done = "saved" if stop.step else "stopped"  # in the first snapshot there is nothing to save
            tell(f"{name}: {done} at step {stop.step} of {run.training.steps}. Resume with the command:\n  {command}")
            if stop.abandoned:  # its thread would be waited for
                sys.stdout.flush()
                os._exit(128 + stop.signum)
            return 128 + stop.signum
    print(f"trained {run.training.steps} steps; results in {workdir}")
    if run.final_eval:
        if isinstance(run.experiment, Classification):
            tell_accuracy(run, state.ema, int(state.step), workdir)
        else:
            quick = dataclasses.replace(run.evaluation, bound="none", round_trip=0)
            print(evaluate(run, quick, state.ema, int(state.step), workdir)[0].line())
    try:
        _plot(run, workdir, (state.ema, int(state.step)))
    except (MissingExtra, DataError) as error:
        tell(f"note: not all pictures of the training are drawn: {error}")
    print(f"elapsed {clock(time.monotonic() - started)}")
    return 0


def _plot(run: Run, workdir: Path, newest: tuple[Any, int] | None) -> None:
    """The learning curve and, of weights and their step, the loss by noise level; says where they are."""
    folder, how = workdir / "plots", run.evaluation
    written = write_learning_curve(workdir / "metrics.jsonl", folder / "learning_curve", origin_of(workdir, None))
    if newest and not isinstance(run.experiment, Classification):  # whose accuracy --mode=eval draws
        params, step = newest
        found = loss_by_level(
            run.experiment, params, split=how.split, batch_size=how.batch_size, seed=run.eval_seed
        )  # fmt: skip
        written += write_loss_by_level(found, folder, origin_of(workdir, step, params))
    print(f"pictures of the training: {', '.join(str(p) for p in written if p.suffix == '.png')}")


def plot_mode(workdir: Path, config: Any) -> int:
    """Pictures of how training goes, also while it does; without a checkpoint the learning curve alone."""
    run = prepare(config)
    check_matplotlib()
    check_writable(workdir / "plots")
    found = newest(run, workdir)
    _plot(run, workdir, found)
    if found is None:
        tell(f"note: no checkpoint in {workdir} yet, so no loss by noise level.")
    return 0


def _check_ends(run: Run) -> None:
    """Raise ConfigError where the loss is not finite at an end of the SDE's times."""
    e = run.experiment
    if isinstance(e, Classification):
        return
    for t in (e.sde.t_min, e.sde.t_max):
        weight = float(e.weighting(e.sde, e.prediction, jnp.full((1,), t))[0])
        if not 0 <= weight < float("inf"):
            raise ConfigError(
                f"objective.weighting of {type(e.sde).__name__} is {weight} at t = {float(t):g}, an end of its times: "
                "no training. Use another weighting or prediction, or a smaller range of noise."
            )


def _check_own(workdir: Path) -> None:
    """Raise WorkdirError where a workdir without a config has what training would overwrite."""
    found = [name for name in ("checkpoints", "metrics.jsonl") if (workdir / name).exists()]
    if found and not (workdir / "config.json").is_file():
        raise WorkdirError(
            f"{workdir} has {' and '.join(found)} of something else, since there is no config.json. Restore that, or "
            "use another --workdir."
        )
