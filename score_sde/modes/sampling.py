"""--mode=sample and --mode=restore."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.config import ConfigError, Run, build, flatten
from score_sde.config import get_config as saved_config
from score_sde.config.trust import Trust, own
from score_sde.data import DataError
from score_sde.evaluation.guided import by_classifier, classifier_problems, most_evaluations, weaker_problems
from score_sde.evaluation.measured import name_of, settings_of
from score_sde.evaluation.restoration import assess, measured_shape, read_input, restore, write_restored
from score_sde.evaluation.samples import generate, write_samples, write_trajectory
from score_sde.files import WorkdirError, check_writable
from score_sde.training.experiment import Classification

from .opening import prepare, weights_of


def sample_mode(workdir: Path, config: Any, *, trust: bool = False) -> int:
    """config.sampling.num_samples samples of the EMA weights, as an array and, where there is one, a picture."""
    run = _prepare(workdir, config)
    params, step = weights_of(run, workdir)
    guide = _guide(run, workdir, trust or own(flatten(config)))
    check_writable(workdir / "samples")
    samples, nfe, states = generate(
        run.experiment, params, run.sampling, seed=run.sampling_seed, progress=True, guide=guide
    )
    stem = _unused(workdir / "samples" / f"sample_{step:08d}")
    written = write_samples(samples, run.experiment.levels, stem)
    written += [] if states is None else write_trajectory(run.experiment, states, stem)
    cost = _cost(nfe.mean(), _networks(run, params, guide))
    print(f"{len(samples)} samples of step {step}, {cost}: {', '.join(str(p) for p in written)}")
    return 0


def restore_mode(workdir: Path, config: Any, *, trust: bool = False) -> int:
    """Posterior samples of the EMA weights given measurements of test examples or of a file, and their picture."""
    run = _prepare(workdir, config)
    options = run.restoration
    x = _examples_to_restore(run)
    params, step = weights_of(run, workdir)
    guide = _guide(run, workdir, trust or own(flatten(config)))
    check_writable(workdir / "restored")
    started = time.monotonic()
    restored = restore(
        run.experiment, params, run.sampling, options, x, seed=run.sampling_seed, progress=True, guide=guide
    )
    seconds = time.monotonic() - started
    networks = options.method.networks * _networks(run, params, guide)
    what = f"{settings_of(options.operator)}, noise {options.noise:g}; {settings_of(options.method)}, step {step}"
    stem = _unused(workdir / "restored" / f"{name_of(options.operator)}_{name_of(options.method)}_{step:08d}")
    report = assess(run.experiment, options, restored)
    written = write_restored(run.experiment, options, restored, report, stem, what)
    print(what)
    print(report.table())
    count = f"{len(x)} x {options.samples} samples in {seconds:.0f} s with compilation, {_cost(restored.nfe, networks)}"
    print(f"{count}: {', '.join(str(p) for p in written)}")
    return 0


def _prepare(workdir: Path, config: Any) -> Run:
    run = prepare(config)
    if isinstance(run.experiment, Classification):
        raise ConfigError(f"{workdir} holds a classifier, which does not sample. Name a run that learned a score.")
    return run


def _examples_to_restore(run: Run) -> np.ndarray:
    """The examples or measurements of the restore section, after all that can be told without a network.

    Raises:
        ConfigError: operator, method and data do not go together.
        DataError: the input cannot be used.
    """
    e, options = run.experiment, run.restoration
    try:
        y = jax.ShapeDtypeStruct((2, *measured_shape(e, options)), "float32")
        if options.input is not None:
            x = read_input(e, options)
        else:
            source = e.load("test")
            if options.examples > len(source):
                raise ValueError(
                    f"expected restore.examples of at most {len(source)}, the test split, got {options.examples}"
                )
            x = source[np.arange(options.examples)]["x"]

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
    return x


def _cost(nfe: float, networks: int) -> str:
    return f"{nfe:.4g} NFE" + (f" of up to {networks} networks each" if networks > 1 else "")


def _guide(run: Run, workdir: Path, trust: Trust) -> tuple[Any, Any] | None:
    """(task, EMA weights) of the classifier or the weaker run that the guidance needs, or None.

    Raises:
        WorkdirError: there is no such run or checkpoint.
        ConfigError: it does not go with this run, or names code that is not the user's.
    """
    how = run.sampling.guidance
    if how.workdir is None and how.step is None:
        return None
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
    return other.experiment, weights_of(other, folder, how.step)[0]


def _networks(run: Run, params: Any, guide: tuple | None) -> int:
    """The most networks that an evaluation of the score takes."""
    sde, task_and_weights = run.experiment.sde, guide or (None, None)
    score = run.sampling.guidance.score(run.experiment, params, task_and_weights)
    return most_evaluations(score, jnp.linspace(sde.t_min, sde.t_max, 101))


def _unused(stem: Path) -> Path:
    """`stem`, or where samples of it are there already, the first free of stem_2, stem_3, ..."""
    found, n = stem, 1
    while found.with_suffix(".npz").exists():
        found, n = stem.with_name(f"{stem.name}_{n + 1}"), n + 1
    return found
