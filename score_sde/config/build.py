"""From a config to the objects that it stands for."""

from dataclasses import dataclass, replace
from functools import partial

import jax
from ml_collections import ConfigDict

from score_sde.evaluation.likelihood import EvalOptions
from score_sde.evaluation.restoration import RestoreOptions
from score_sde.evaluation.samples import SamplingOptions
from score_sde.plots import suits
from score_sde.training.experiment import Classification, Experiment, Task
from score_sde.training.loop import TrainingOptions

from .datasets import DATASETS, data_set
from .kinds import Builder
from .memory import memory_problems
from .names import BOUNDS, CLASSIFIERS, DIVERGENCES, MODELS, PREDICTIONS, SDES, SOLVERS, TIMES, WEIGHTINGS
from .samplers import guidance_options, restore_options, sampling_options
from .template import ConfigError, base_config, flatten, type_of
from .validation import batch_problems, check_counts, check_numbers, check_sizes, wrong_types

TRAINING_ONLY = ("cpu_devices", "final_eval")  # of the command line rather than of the loop


@dataclass(frozen=True, eq=False)
class Run:
    """All objects that a config stands for."""

    experiment: Task
    training: TrainingOptions
    sampling: SamplingOptions
    restoration: RestoreOptions
    evaluation: EvalOptions
    seed: int
    sampling_seed: int
    eval_seed: int
    flip: bool
    final_eval: bool
    own_data: bool  # the user's, worth a description


def build(config: ConfigDict, *, devices: int = 1) -> Run:
    """The objects of a config, for a number of devices.

    Raises:
        ConfigError: the values make no sense; all problems in one message.
    """
    base, values = base_config(), flatten(config)
    types = {key: type_of(base, key) for key in flatten(base)}
    if wrong := wrong_types(values, types, {key for key, value in flatten(base).items() if value is not None}):
        raise ConfigError("; ".join(wrong) + ".")
    make = Builder()
    check_numbers(make, values)
    check_counts(make, config)
    c = config
    sde = make.make("sde", c.sde, "name", SDES)
    network = make.make("model", c.model, "name", MODELS)
    prediction = make.make("objective", c.objective, "prediction", PREDICTIONS)
    weighting = make.make("objective", c.objective, "weighting", WEIGHTINGS)
    make.used["objective"] |= {"label_dropout", "augment_probability"}
    dropout = c.objective.label_dropout
    make.check(0 <= dropout <= 1, f"objective.label_dropout must be in [0, 1], got {dropout}")
    augment = c.objective.augment_probability
    make.check(0 <= augment <= 1, f"objective.augment_probability must be in [0, 1], got {augment}")
    law = make.make("objective", c.objective, "times", TIMES)
    divergence = make.make("eval", c.eval, "divergence", DIVERGENCES)
    make.check(
        not c.model.scale_by_sigma or c.sde.name == "ve",
        f"model.scale_by_sigma needs sde.name=ve, whose label is log sigma, got {c.sde.name!r}",
    )
    make.check(
        not c.model.sigma_levels or c.sde.name == "ve",
        f"model.sigma_levels needs sde.name=ve, whose label is log sigma, got {c.sde.name!r}",
    )
    how_to_sample = sampling_options(make, c.sampling, sde, c.data.range)
    how_to_sample = replace(how_to_sample, guidance=guidance_options(make, c))
    restoration = restore_options(make, c.restore)
    dataset = data_set(make, c.data)
    make.unused("sde", c.sde, ["name"])
    make.unused("model", c.model, ["name"])
    make.unused("objective", c.objective, ["prediction", "weighting", "times"])
    make.used["eval"] |= set(EvalOptions.__dataclass_fields__) | {"seed"}
    make.unused("eval", c.eval, ["divergence"])

    training = TrainingOptions(**{k: v for k, v in c.training.items() if k not in TRAINING_ONLY})
    make.problems += [f"training.{problem}" for problem in training.problems()]
    make.problems += batch_problems(c, devices)
    solver = make.choose("eval.solver", SOLVERS, c.eval.solver)
    make.choose("eval.bound", dict.fromkeys(BOUNDS, True), c.eval.bound)
    make.check(c.eval.split in ("train", "test"), f"eval.split must be train or test, got {c.eval.split!r}")
    make.check(
        len(c.data.range) == 2
        and all(isinstance(end, (int, float)) for end in c.data.range)
        and c.data.range[0] < c.data.range[1],
        f"data.range must be two rising numbers, got {c.data.range}",
    )
    if dataset is not None:
        shape = dataset[1]
        grey = c.sampling.clip == "none" or dataset[2] is not None
        make.check(grey, f"sampling.clip={c.sampling.clip} needs grey levels, which have a range; use none")
        drawn = not c.sampling.trajectory or suits(shape, dataset[2])
        make.check(drawn, f"sampling.trajectory needs images or 2-D points, and {c.data.name} has shape {shape}")
        make.check(not c.data.flip or len(shape) == 3, f"data.flip needs images, and {c.data.name} has shape {shape}")
        if network is not None and check_sizes(make, c.model):
            parameters = 0
            try:
                x = jax.ShapeDtypeStruct((1, *shape), "float32")
                label = jax.ShapeDtypeStruct((1,), "float32")
                made = jax.eval_shape(network.init, jax.eval_shape(partial(jax.random.key, 0)), x, label)
                parameters = sum(leaf.size for leaf in jax.tree.leaves(made))
            except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
                make.problems.append(f"model: {str(error).splitlines()[0]}")
            if not make.problems:
                make.problems += memory_problems(c, shape, dataset[2], parameters)
    if make.problems:
        message = "; ".join(dict.fromkeys(p.rstrip(".") for p in make.problems))
        raise ConfigError(message if message.endswith("?") else message + ".")

    load, shape, levels = dataset
    common = dict(sde=sde, network=network, times=law, load=load, shape=shape, levels=levels)
    common["data_range"] = tuple(float(end) for end in c.data.range)
    if c.model.name in CLASSIFIERS:
        experiment = Classification(**common, num_classes=network.num_classes)
    else:
        classes = c.model.num_classes or 0
        experiment = Experiment(
            **common,
            prediction=prediction,
            weighting=weighting,
            num_classes=classes,
            label_dropout=dropout,
            augment_probability=augment if c.model.augment_dim else None,
        )
    return Run(
        experiment=experiment,
        training=training,
        sampling=how_to_sample,
        restoration=restoration,
        evaluation=EvalOptions(
            divergence=divergence,
            solver=solver,
            **{k: c.eval[k] for k in EvalOptions.__dataclass_fields__ if k not in ("divergence", "solver")},
        ),
        seed=c.seed,
        sampling_seed=c.sampling.seed,
        eval_seed=c.eval.seed,
        flip=c.data.flip,
        final_eval=c.training.final_eval,
        own_data=c.data.name not in DATASETS,
    )  # fmt: skip
