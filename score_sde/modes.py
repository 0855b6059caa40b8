"""The modes of the command line: train, eval, sample, plot."""

import dataclasses
import importlib.metadata
import json
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from score_sde import discrete
from score_sde.config import ConfigError, Run, build, choose_sampler, flatten
from score_sde.config import get_config as saved_config
from score_sde.config.validation import batch_problems
from score_sde.data import DataError, describe
from score_sde.evaluation.guided import by_classifier, classifier_problems, most_evaluations, weaker_problems
from score_sde.evaluation.levels import accuracy_by_level, bound_by_level, loss_by_level
from score_sde.evaluation.likelihood import EvalOptions, LikelihoodReport, evaluate_likelihood, write_likelihood
from score_sde.evaluation.pictures import (
    write_accuracy_by_level,
    write_bound_by_level,
    write_learning_curve,
    write_loss_by_level,
)
from score_sde.evaluation.samples import generate, write_samples, write_trajectory
from score_sde.extras import MissingExtra
from score_sde.files import WorkdirError, check_free, check_space, check_writable, locked, write_json
from score_sde.plots import check_matplotlib
from score_sde.training.checkpoints import KEEP, Checkpoints
from score_sde.training.experiment import Classification
from score_sde.training.loop import Interrupted, abstract_state, train
from score_sde.training.mesh import use_host_devices
from score_sde.training.progress import EventFiles, clock

PACKAGES = ("score_sde", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "grain", "numpy")
# What may change between two commands on one run; all else makes it another run.
FREE = ("sampling.", "guidance.", "eval.", "data.dir", "training.steps", "training.log_every")
FREE += ("training.checkpoint_every", "training.snapshot_every", "training.max_bad_steps", "training.final_eval")
FREE += ("training.cpu_devices", "training.tensorboard")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def settle(mode: str, workdir: Path, config: Any, overrides: dict) -> Any:
    """The config that holds: `_of_run`, with the sampler that the command line names.

    Raises: as `_of_run`; ConfigError for an unknown preset.
    """
    config = _of_run(mode, workdir, config, overrides)
    with config.unlocked():
        choose_sampler(config, overrides)
    return config


def _of_run(mode: str, workdir: Path, config: Any, overrides: dict) -> Any:
    """The config that holds, given the one that the run in `workdir` has.

    Training goes on only with the run's own settings.  Evaluation and sampling use the run's config with the overrides
    of the command line, and say where the given file differs.

    Raises:
        WorkdirError: the workdir holds another config's run, or (eval, sample) no run.
        ConfigError: an override would change what the run is; the run's config.json is damaged.
    """
    path = workdir / "config.json"
    if not path.is_file():
        if mode != "train":
            raise WorkdirError(f"no run at {workdir}: expected {path}. Train it first, with --mode=train.")
        return config
    saved = saved_config(str(path))
    new, old = flatten(config), flatten(saved)
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
        _say(f"note: using the config saved in {workdir}; the given one differs ({listed}).")
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
    use_host_devices(tuple(config[s].batch_size for s in ("training", "sampling", "eval")), config.training.cpu_devices)
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


def _check_examples(run: Run) -> None:
    """Raise ConfigError where the evaluation asks for more examples than its split has."""
    there, asked = len(run.experiment.load(run.evaluation.split)), run.evaluation.num_examples
    if asked is not None and asked > there:
        raise ConfigError(
            f"eval.num_examples must be at most {there}, the size of the {run.evaluation.split} split, got {asked}. "
            "Leave it out to evaluate all of them."
        )


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


def save_config(workdir: Path, config: Any, overrides: dict) -> None:
    """Write config.json, with the versions and devices that go with it."""
    devices = [f"{d.platform}:{d.device_kind}" for d in jax.devices()]
    path = workdir / "config.json"
    if path.is_file():
        there = json.loads(path.read_text())
        if there.get("devices") != devices or there.get("versions") != _versions():
            _say("note: devices or versions differ from those of the run so far; it goes on, but not to the same bits.")
    write_json(
        path,
        {
            "config": json.loads(config.to_json()),
            "overrides": {k: list(v) if isinstance(v, tuple) else v for k, v in overrides.items()},
            "versions": _versions(),
            "devices": devices,
        },
    )


def _versions() -> dict[str, str]:
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in PACKAGES}}


def _check_own(workdir: Path) -> None:
    """Raise WorkdirError where a workdir without a config has what training would overwrite."""
    found = [name for name in ("checkpoints", "metrics.jsonl") if (workdir / name).exists()]
    if found and not (workdir / "config.json").is_file():
        raise WorkdirError(
            f"{workdir} has {' and '.join(found)} of something else, since there is no config.json. Restore that, or "
            "use another --workdir."
        )


def train_mode(workdir: Path, config: Any, overrides: dict, *, command: str, started: float) -> int:
    """Train (or go on training) in `workdir`; 0, or 128 + the number of the signal that stopped it."""
    run = prepare(config)
    check_free(workdir)
    if run.training.tensorboard:
        EventFiles.check()
    source = run.experiment.load("train")  # missing data are told before anything compiles
    wanted = run.experiment.num_classes
    if wanted and source.num_classes != wanted:
        raise ConfigError(f"model.num_classes must be that of the data, {source.num_classes or 0}, got {wanted}.")
    if run.final_eval:
        _check_examples(run)
    _check_ends(run)
    _check_own(workdir)
    if run.own_data:
        _say(str(describe(source, run.experiment.data_range)))
    with locked(workdir):
        state = abstract_state(run.experiment, run.training, run.seed)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        there = sum(p.stat().st_size for p in (workdir / "checkpoints").rglob("*") if p.is_file())
        check_space(workdir, size * (KEEP + 1) - there)
        save_config(workdir, config, overrides)

        def snapshot(step: int, state) -> bytes | None:
            if isinstance(run.experiment, Classification):
                return None
            how = dataclasses.replace(run.sampling, trajectory=0)
            samples = generate(run.experiment, state.ema, how, seed=run.sampling_seed, progress=False).x
            written = write_samples(samples, run.experiment.levels, workdir / "samples" / f"step_{step:08d}")
            _say(f"samples at step {step}: {written[-1]}")
            return written[-1].read_bytes() if written[-1].suffix == ".png" else None

        count = f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
        _say(f"training {workdir} for {run.training.steps} steps on {count}")
        try:
            state = train(
                run.experiment, run.training, workdir, seed=run.seed, flip=run.flip, snapshot=snapshot
            )  # fmt: skip
        except Interrupted as stop:
            name = signal.Signals(stop.signum).name
            _say(f"{name}: saved at step {stop.step} of {run.training.steps}. Resume with the command:\n  {command}")
            return 128 + stop.signum
    print(f"trained {run.training.steps} steps; results in {workdir}")
    if run.final_eval:
        if isinstance(run.experiment, Classification):
            _tell_accuracy(run, state.ema, int(state.step), workdir)
        else:
            quick = dataclasses.replace(run.evaluation, bound="none", round_trip=0)
            print(_evaluate(run, quick, state.ema, int(state.step), workdir).line())
    try:
        _plot(run, workdir, (state.ema, int(state.step)))
    except (MissingExtra, DataError) as error:
        _say(f"note: not all pictures of the training are drawn: {error}")
    print(f"elapsed {clock(time.monotonic() - started)}")
    return 0


def _restore(run: Run, workdir: Path, step: int | None = None) -> tuple[Any, int]:
    """EMA weights and step of the newest good checkpoint, or of that of `step`.

    Raises:
        WorkdirError: there is none.
    """
    found = _newest(run, workdir, step)
    if found is None:
        raise WorkdirError(f"no checkpoint in {workdir} yet. Train it first, with --mode=train.")
    return found


def _newest(run: Run, workdir: Path, step: int | None = None) -> tuple[Any, int] | None:
    if not (workdir / "checkpoints").is_dir():
        return None
    with Checkpoints(workdir, read_only=True) as checkpoints:
        state = checkpoints.restore(abstract_state(run.experiment, run.training, run.seed), step)
    return state and (state.ema, int(state.step))


def _evaluate(run: Run, options: EvalOptions, params: Any, step: int, workdir: Path) -> LikelihoodReport:
    stem = workdir / "eval" / f"likelihood_{options.split}"
    report, arrays = evaluate_likelihood(
        run.experiment, params, options, step=step, seed=run.eval_seed, partial_file=stem.with_suffix(".partial.npz")
    )
    write_likelihood(report, arrays, stem)
    return report


def _tell_accuracy(run: Run, params: Any, step: int, workdir: Path) -> None:
    """Print and keep how well a classifier tells the classes of the split, by noise level."""
    how = run.evaluation
    examples = how.num_examples or len(run.experiment.load(how.split))
    found = accuracy_by_level(
        run.experiment, params, split=how.split, batch_size=how.batch_size, seed=run.eval_seed, examples=examples
    )
    print(f"{how.split} accuracy {found.values['accuracy'][-1]:.1%} at the least noise ({found.examples} examples)")
    print(f"  {'log-SNR':>9}  {'accuracy':>8}  cross-entropy, nats")
    for row in zip(found.log_snr, found.values["accuracy"], found.values["loss"], found.errors["loss"], strict=True):
        print("  {:9.2f}  {:8.1%}  {:.3f} +- {:.3f}".format(*row))
    stem = workdir / "eval" / f"accuracy_{how.split}"
    try:
        write_accuracy_by_level(found, stem, split=how.split, step=step)
    except MissingExtra as error:
        _say(f"note: no picture of the accuracy by noise level: {error}")


def eval_mode(workdir: Path, config: Any) -> int:
    """Likelihood of the split that config.eval names, under the EMA weights; a classifier's accuracy."""
    run = prepare(config)
    _check_examples(run)
    params, step = _restore(run, workdir)
    check_writable(workdir / "eval")
    if isinstance(run.experiment, Classification):
        _tell_accuracy(run, params, step, workdir)
        print(f"step {step}; by noise level in {workdir / 'eval'}")
        return 0
    report = _evaluate(run, run.evaluation, params, step, workdir)
    print(report.line())
    print(report.table())
    if run.evaluation.bound == "continuous":
        print(f"  {'bound by noise level':<36}{_plot_bound(run, params, report, workdir).name}")
    print(f"step {step}; per example, and their histogram, in {workdir / 'eval'}")
    return 0 if not report.not_converged else 1


def _plot_bound(run: Run, params: Any, report: LikelihoodReport, workdir: Path) -> Path:
    """The picture of the bound by noise level, or, without matplotlib, its values.

    Of a quarter of the examples at most, a noise level each in 24 bins: a fiftieth of what the evaluation takes.
    """
    how, few = run.evaluation, max(min(report.examples // 4, 64), 1)
    found = bound_by_level(
        run.experiment, params, split=how.split, batch_size=how.batch_size, seed=run.eval_seed, examples=few
    )
    stem = workdir / "eval" / f"likelihood_{how.split}_by_level"
    try:
        return write_bound_by_level(found, stem, unit=report.unit, step=report.step)
    except MissingExtra as error:
        _say(f"note: no picture of the bound by noise level: {error}")
        return stem.with_suffix(".npz")


def _plot(run: Run, workdir: Path, newest: tuple[Any, int] | None) -> None:
    """The learning curve and, of weights and their step, the loss by noise level; says where they are."""
    folder, how = workdir / "plots", run.evaluation
    written = write_learning_curve(workdir / "metrics.jsonl", folder / "learning_curve.png")
    if newest and not isinstance(run.experiment, Classification):  # whose accuracy --mode=eval draws
        params, step = newest
        found = loss_by_level(
            run.experiment, params, split=how.split, batch_size=how.batch_size, seed=run.eval_seed
        )  # fmt: skip
        written += write_loss_by_level(found, folder / "loss_by_level", split=how.split, step=step)
    print(f"pictures of the training: {', '.join(map(str, written))}")


def plot_mode(workdir: Path, config: Any) -> int:
    """Pictures of how training goes, also while it does; without a checkpoint the learning curve alone."""
    run = prepare(config)
    check_matplotlib()
    check_writable(workdir / "plots")
    newest = _newest(run, workdir)
    _plot(run, workdir, newest)
    if newest is None:
        _say(f"note: no checkpoint in {workdir} yet, so no loss by noise level.")
    return 0


def _unused(stem: Path) -> Path:
    """`stem`, or where samples of it are there already, the first free of stem_2, stem_3, ..."""
    found, n = stem, 1
    while found.with_suffix(".npz").exists():
        found, n = stem.with_name(f"{stem.name}_{n + 1}"), n + 1
    return found


def _guide(run: Run, workdir: Path) -> tuple[Any, Any] | None:
    """(task, EMA weights) of the classifier or the weaker run that the guidance needs, or None.

    Raises:
        WorkdirError: there is no such run or checkpoint.
        ConfigError: it does not go with this run.
    """
    how = run.sampling.guidance
    if how.workdir is None and how.step is None:
        return None
    folder = Path(how.workdir or workdir)
    if not (folder / "config.json").is_file():
        raise WorkdirError(f"guidance.workdir: no run at {folder}: expected {folder / 'config.json'}.")
    other = build(saved_config(str(folder / "config.json")))
    if how.guide is by_classifier:
        problems = classifier_problems(run.experiment, other.experiment, how.label)
    else:
        problems = weaker_problems(run.experiment, other.experiment)
    if problems:
        raise ConfigError(f"{folder} cannot guide this run: {'; '.join(problems)}.")
    return other.experiment, _restore(other, folder, how.step)[0]


def _networks(run: Run, params: Any, guide: tuple | None) -> int:
    """The most networks that an evaluation of the score takes."""
    sde, task_and_weights = run.experiment.sde, guide or (None, None)
    score = run.sampling.guidance.score(run.experiment, params, task_and_weights)
    return most_evaluations(score, jnp.linspace(sde.t_min, sde.t_max, 101))


def sample_mode(workdir: Path, config: Any) -> int:
    """config.sampling.num_samples samples of the EMA weights, as an array and, where there is one, a picture."""
    run = prepare(config)
    if isinstance(run.experiment, Classification):
        raise ConfigError(f"{workdir} holds a classifier, which does not sample. Name a run that learned a score.")
    params, step = _restore(run, workdir)
    guide = _guide(run, workdir)
    check_writable(workdir / "samples")
    samples, nfe, states = generate(
        run.experiment, params, run.sampling, seed=run.sampling_seed, progress=True, guide=guide
    )
    stem = _unused(workdir / "samples" / f"sample_{step:08d}")
    written = write_samples(samples, run.experiment.levels, stem)
    written += [] if states is None else write_trajectory(run.experiment, states, stem)
    cost = f"{nfe.mean():.4g} NFE"
    if (networks := _networks(run, params, guide)) > 1:
        cost += f" of up to {networks} networks each"
    print(f"{len(samples)} samples of step {step}, {cost}: {', '.join(str(p) for p in written)}")
    return 0
