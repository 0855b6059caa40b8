"""--mode=sample and --mode=restore."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.config import ConfigError, Run, build, flatten
from score_sde.config import get_config as saved_config
from score_sde.config.trust import Trust, own
from score_sde.data import DataError
from score_sde.evaluation.examples import examples_of
from score_sde.evaluation.guided import by_classifier, classifier_problems, most_evaluations, weaker_problems
from score_sde.evaluation.measured import name_of, settings_of
from score_sde.evaluation.provenance import Origin, Provenance, arrays_digest, described
from score_sde.evaluation.restoration import (
    assess,
    keep_in_range,
    measured_shape,
    observed_range,
    read_input,
    restore,
    write_restored,
)
from score_sde.evaluation.samples import NonFiniteSamples, SamplingOptions, generate, write_samples
from score_sde.files import WorkdirError, check_writable
from score_sde.training.experiment import Classification
from score_sde.training.progress import tell

from .opening import origin_of, prepare, weights_of


def sample_mode(workdir: Path, config: Any, *, trust: bool = False) -> int:
    """config.sampling.num_samples samples of the EMA weights, as an array and, where there is one, a picture.

    1 where some of them are not finite; all are written.
    """
    run = _prepare(workdir, config)
    params, step = weights_of(run, workdir)
    guide, guide_of = _guide(run, workdir, trust or own(flatten(config)))
    check_writable(workdir / "samples")
    found, problem = _whole_or_not(
        lambda: generate(run.experiment, params, run.sampling, seed=run.sampling_seed, progress=True, guide=guide)
    )
    cost = _cost(found.nfe.mean(), _networks(run, params, guide))
    settings = run.sampling.settings(run.experiment, seed=run.sampling_seed) | {"guide": guide_of}
    made = Provenance("samples", f"{len(found.x)} samples, {cost}", origin_of(workdir, step, params), settings)
    written = write_samples(run.experiment, found, workdir / "samples" / f"sample_{step:08d}", made)
    print(f"{len(found.x)} samples of step {step}, {cost}: {', '.join(str(p) for p in written)}")
    return _tell(problem)


def restore_mode(workdir: Path, config: Any, *, trust: bool = False) -> int:
    """Posterior samples of the EMA weights given measurements of test examples or of a file, and their picture."""
    run = _prepare(workdir, config)
    options = run.restoration
    x, of_what = _examples_to_restore(run)
    params, step = weights_of(run, workdir)
    guide, guide_of = _guide(run, workdir, trust or own(flatten(config)))
    how = _kept_in_range(run)
    check_writable(workdir / "restored")
    started = time.monotonic()
    restored, problem = _whole_or_not(
        lambda: restore(run.experiment, params, how, options, x, seed=run.sampling_seed, progress=True, guide=guide)
    )
    seconds = time.monotonic() - started
    networks = options.method.networks * _networks(run, params, guide)
    what = f"{settings_of(options.operator)}, noise {options.noise:g}; {settings_of(options.method)}, step {step}"
    stem = workdir / "restored" / f"{name_of(options.operator)}_{name_of(options.method)}_{step:08d}"
    settings = how.settings(run.experiment, seed=run.sampling_seed) | {"guide": guide_of}
    settings |= {"restore": described(options), "examples": of_what}
    made = Provenance("restored", what, origin_of(workdir, step, params), settings)
    written = write_restored(run.experiment, options, restored, stem, made)
    print(what)
    if problem is None:
        print(assess(run.experiment, options, restored).table())
    count = f"{len(x)} x {options.samples} samples in {seconds:.0f} s with compilation, {_cost(restored.nfe, networks)}"
    print(f"{count}: {', '.join(str(p) for p in written)}")
    return _tell(problem)


def _whole_or_not(work: Callable[[], Any]) -> tuple[Any, NonFiniteSamples | None]:
    """What a work finds, and what is wrong with it: hours of finite samples are not lost for one that is not."""
    try:
        return work(), None
    except NonFiniteSamples as problem:
        return problem.found, problem


def _tell(problem: NonFiniteSamples | None) -> int:
    """The exit code, after the line that goes with it."""
    if problem is None:
        return 0
    tell(f"error: {problem} What there is has been written, and which are finite.")
    return 1


def _kept_in_range(run: Run) -> SamplingOptions:
    """How to sample with the predicted data kept in their range, which of real numbers the training data tell."""
    e, observed = run.experiment, None
    if e.levels is None and run.sampling.transform is None:
        try:
            observed = observed_range(e.load("train"))
            tell("predicted data are kept in {:.4g}..{:.4g}, a little more than the training data's".format(*observed))
        except DataError as error:
            tell(f"note: predicted data are not kept in range, since that of the training data is not known: {error}")
    return keep_in_range(e, run.sampling, observed)


def _prepare(workdir: Path, config: Any) -> Run:
    run = prepare(config)
    if isinstance(run.experiment, Classification):
        raise ConfigError(f"{workdir} holds a classifier, which does not sample. Name a run that learned a score.")
    return run


def _examples_to_restore(run: Run) -> tuple[np.ndarray, dict[str, Any]]:
    """The examples or measurements of the restore section, and which they are, after all that can be told without a
    network.

    Raises:
        ConfigError: operator, method and data do not go together.
        DataError: the input cannot be used.
    """
    e, options = run.experiment, run.restoration
    try:
        y = jax.ShapeDtypeStruct((2, *measured_shape(e, options)), "float32")
        if options.input is not None:
            x = read_input(e, options)
            which = {"sha256": arrays_digest({"input": x})}
        else:
            chosen = examples_of(e, "test", options.examples, shuffled=True)
            if options.examples > len(chosen):
                raise ValueError(
                    f"expected restore.examples of at most {chosen.of}, the test split, got {options.examples}"
                )
            x, which = next(chosen.batches(len(chosen)))[0]["x"], chosen.settings()

        def rehearse(keys, y):
            def zero(x, t):
                return jnp.zeros_like(x)

            operator, shape = options.operator(e.shape), (2, *e.shape)
            return options.method.solve(run.sampling, keys, e.sde, zero, operator, y, options.noise, shape)

        jax.eval_shape(rehearse, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2)), y)
    except DataError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"restore: {str(error).splitlines()[0]}") from error
    return x, which


def _cost(nfe: float, networks: int) -> str:
    return f"{nfe:.4g} NFE" + (f" of up to {networks} networks each" if networks > 1 else "")


def _guide(run: Run, workdir: Path, trust: Trust) -> tuple[tuple[Any, Any] | None, Origin | None]:
    """(task, EMA weights) of the classifier or the weaker run that the guidance needs, and where they are from; Nones
    where it needs none.

    Raises:
        WorkdirError: there is no such run or checkpoint.
        ConfigError: it does not go with this run, or names code that is not the user's.
    """
    how = run.sampling.guidance
    if how.workdir is None and how.step is None:
        return None, None
    folder = Path(how.workdir or workdir)
    if not (folder / "config.json").is_file():
        raise WorkdirError(f"guidance.workdir: no run at {folder}: expected {folder / 'config.json'}.")
    other = build(saved_config(folder / "config.json", trust=trust))
    if how.guide is by_classifier:
        problems = classifier_problems(run.experiment, other.experiment, how.label)
    else:
        problems = weaker_problems(run.experiment, other.experiment)
    if problems:
        raise ConfigError(f"{folder} cannot guide this run: {'; '.join(problems)}.")
    weights, step = weights_of(other, folder, how.step)
    return (other.experiment, weights), origin_of(folder, step, weights)


def _networks(run: Run, params: Any, guide: tuple | None) -> int:
    """The most networks that an evaluation of the score takes."""
    sde, task_and_weights = run.experiment.sde, guide or (None, None)
    score = run.sampling.guidance.score(run.experiment, params, task_and_weights)
    return most_evaluations(score, jnp.linspace(sde.t_min, sde.t_max, 101))
