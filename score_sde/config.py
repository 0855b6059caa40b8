"""From a config to objects: the only room where strings become things.

`base_config()` is a complete config; a file under configs/ starts from it, sets what its experiment needs and returns
it from `get_config()`.  Settings of one particular SDE, network, weighting ... are None unless set; setting one that
the chosen kind does not have is an error, as is every other value that makes no sense: `build` reports all problems in
one message, before anything runs.
"""

import dataclasses
import inspect
import json
import pkgutil
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from score_sde import data, likelihood, models, predictions, sampling, sdes
from score_sde.evaluation.likelihood import EvalOptions
from score_sde.evaluation.samples import SamplingOptions
from score_sde.objectives import times, weightings
from score_sde.plots import suits
from score_sde.presets import PRESETS
from score_sde.sampling import grids
from score_sde.training.experiment import Experiment
from score_sde.training.loop import TrainingOptions
from score_sde.validation import (
    Problems,
    batch_problems,
    check_counts,
    check_numbers,
    check_sizes,
    did_you_mean,
    wrong_types,
)  # fmt: skip


class ConfigError(ValueError):
    """The config makes no sense; the message lists every problem found."""


def _diffrax_solver(name: str) -> Any:
    import diffrax

    return getattr(diffrax, name)()


SDES = {
    "ve": sdes.VE,
    "vp": sdes.VP,
    "subvp": sdes.SubVP,
    "cosine_vp": sdes.CosineVP,
    "edm": sdes.EDM,
    "rectified_flow": sdes.RectifiedFlow,
}
MODELS = {"unet": models.UNet, "mlp": models.MLP}
PREDICTIONS = {
    "score": predictions.Score,
    "noise": predictions.Noise,
    "data": predictions.Data,
    "velocity": predictions.Velocity,
    "edm": predictions.EDM,
}
WEIGHTINGS = {
    "sigma_squared": weightings.SigmaSquared,
    "likelihood": weightings.Likelihood,
    "edm": weightings.EDM,
    "output": weightings.Output,
}
TIMES = {
    "uniform": times.Uniform,
    "stratified": times.Stratified,
    "log_snr": times.LogSNR,
    "log_normal": times.LogNormal,
    "logit_normal": times.LogitNormal,
}
SAMPLERS = {
    "euler_maruyama": sampling.EulerMaruyama,
    "reverse_diffusion": sampling.ReverseDiffusion,
    "ancestral": sampling.Ancestral,
    "ddim": sampling.DDIM,
    "sde_dpm_solver_pp": sampling.SDEDPMSolverPP,
    "edm_stochastic": sampling.EDMStochastic,
    "probability_flow_euler": sampling.ProbabilityFlowEuler,
    "runge_kutta": sampling.RungeKutta,
    "heun": sampling.Heun,
    "dpm_solver": sampling.DPMSolver,
    "dpm_solver_pp": sampling.DPMSolverPP,
    "dpm_solver_pp_2s": sampling.DPMSolverPP2S,
    "deis": sampling.DEIS,
    "unipc": sampling.UniPC,
    "sa_solver": sampling.SASolver,
    "ipndm": sampling.IPNDM,
}
# Beside them: no predictor at all (with a corrector), and solvers of diffrax that choose their steps.
OTHER_SAMPLERS = {
    "none": "No predictor: the corrector alone samples.",
    "adaptive_ode": "Probability flow by an adaptive Runge-Kutta solver; `rtol` and `atol` in place of `steps`.",
    "adaptive_sde": "Reverse SDE by an adaptive solver of strong order 1.5; `rtol` and `atol` in place of `steps`.",
}
CORRECTORS = {"langevin": sampling.Langevin, "annealed_langevin": sampling.AnnealedLangevin}
GRIDS = {"uniform": grids.uniform, "quadratic": grids.quadratic, "log_snr": grids.log_snr, "edm": grids.edm}
BOUNDS = ("continuous", "discrete", "none")
CLIPS = {"none": None, "static": sampling.Clipped, "dynamic": sampling.DynamicThreshold}
# Settings whose plain names mean something else in the section.
SAMPLER_KEYS = {"corrector": "unipc_corrector"}
CORRECTOR_KEYS = {"steps": "corrector_steps", "levels": "corrector_levels"}

# Makers, since diffrax is imported late.
SOLVERS = {
    "cash_karp": likelihood.cash_karp,
    **{name.lower(): partial(_diffrax_solver, name) for name in ("Tsit5", "Dopri5", "Dopri8", "Bosh3")},
}
DIVERGENCES = {"hutchinson": likelihood.Hutchinson, "exact": likelihood.ExactDivergence}


def _toy(draw: Callable, split: str) -> data.Source:
    """50,000 points to train on, 5,000 others to test on."""
    return draw(50_000, seed=0) if split == "train" else draw(5_000, seed=1)


# name -> (load(split, directory), shape, levels) of what is published; users' own data are in `_data`.
DATASETS = {
    "digits": (lambda split, directory: data.digits(split), (8, 8, 1), 17),
    "cifar10": (data.cifar10, (32, 32, 3), 256),
    "fashion_mnist": (data.fashion_mnist, (28, 28, 1), 256),
    "mnist": (data.mnist, (28, 28, 1), 256),
    **{
        draw.__name__: (lambda split, directory, draw=draw: _toy(draw, split), (2,), None)
        for draw in (data.swiss_roll, data.two_moons, data.checkerboard, data.eight_gaussians)
    },
}
# name -> settings of the data section; `module:function` beside them, a function(split, directory) -> Source.
OWN_DATA = {"images": ("channels", "size"), "arrays": ("levels",)}
TRAINING_ONLY = ("cpu_devices", "final_eval")  # of the command line rather than of the loop


def _settings(cls: type) -> dict[str, Any]:
    """Names and default values of what can be set of a class: its dataclass fields."""
    if not dataclasses.is_dataclass(cls):
        return {}
    return {
        f.name: f.default for f in dataclasses.fields(cls) if f.name not in ("parent", "name", "evaluations") and f.init
    }


def _section(kinds: dict[str, type], key: str, default: str, keys: dict[str, str] = {}) -> dict[str, Any]:  # noqa: B006
    """A config section: the name of the kind, and every setting that any kind has, None; `keys` renames settings."""
    section: dict[str, Any] = {key: default}
    for cls in kinds.values():
        for name, value in _settings(cls).items():
            section[keys.get(name, name)] = placeholder(float if value is None else type(value))
    return section


def base_config() -> ConfigDict:
    """A complete config with the published settings of VP on CIFAR-10; every key there is, with its type."""
    objective = {
        **_section(PREDICTIONS, "prediction", "noise"),
        **_section(WEIGHTINGS, "weighting", "sigma_squared"),
        **_section(TIMES, "times", "uniform"),
    }
    config = ConfigDict(
        {
            "seed": 0,
            "sde": _section(SDES, "name", "vp"),
            "model": _section(MODELS, "name", "unet"),
            "objective": objective,
            "data": {
                "name": "cifar10", "dir": placeholder(str), "flip": False, "range": (-1.0, 1.0),
                "channels": placeholder(int), "size": placeholder(int), "levels": placeholder(int),
            },
            "training": {**dataclasses.asdict(TrainingOptions()), "cpu_devices": 0, "final_eval": False},
            "sampling": {
                "preset": placeholder(str),
                **_section(SAMPLERS, "sampler", "euler_maruyama", SAMPLER_KEYS),
                "steps": 1000, "t_end": placeholder(float), "grid": "uniform", "grid_rho": placeholder(float),
                "rtol": placeholder(float), "atol": placeholder(float),
                **_section(CORRECTORS, "corrector", "none", CORRECTOR_KEYS), "corrector_first": placeholder(bool),
                "temperature": 1.0, "clip": "none", "denoise": True, "trajectory": 0,
                "num_samples": 64, "batch_size": 64, "seed": 0,
            },
            "eval": {
                "split": "test", "batch_size": 64, "num_examples": placeholder(int),
                **_section(DIVERGENCES, "divergence", "hutchinson"),
                "solver": "cash_karp", "rtol": 3e-5, "atol": 3e-5, "whole_batch": False, "passes": 1,
                "bound": "continuous", "bound_draws": 50, "round_trip": 16, "seed": 0,
            },
        }
    )  # fmt: skip
    return config.lock()


def get_config(path: str) -> ConfigDict:
    """The config saved in a run's config.json, on the template of `base_config` (which knows the types).

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        return from_json(Path(path).read_text())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged: {str(error).strip(chr(34))!s:.200}. Restore it, or use another --workdir."
        ) from error


def from_json(text: str) -> ConfigDict:
    """The config in the text of a config.json; many kinds of error where it is none."""
    config = base_config()
    _fill(config, json.loads(text)["config"])
    return config


def _fill(config: ConfigDict, saved: dict) -> None:
    for key, value in saved.items():
        if key not in config:
            raise KeyError(f"this version of score_sde does not know the key {key}")
        if isinstance(value, dict):
            _fill(config[key], value)
        elif value is not None or config[key] is not None:
            config[key] = tuple(value) if isinstance(value, list) else value


def flatten(config: ConfigDict) -> dict[str, Any]:
    """`{"sde.name": "vp", ...}`, tuples as lists, as they come back from JSON."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat.update({f"{key}.{k}": v for k, v in flatten(value).items()})
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def _type_of(config: ConfigDict, key: str) -> type:
    section, _, name = key.rpartition(".")
    return (config[section] if section else config).get_type(name)


@dataclass(frozen=True, eq=False)
class Run:
    """All objects that a config stands for."""

    experiment: Experiment
    training: TrainingOptions
    sampling: SamplingOptions
    evaluation: EvalOptions
    seed: int
    sampling_seed: int
    eval_seed: int
    flip: bool
    final_eval: bool
    own_data: bool  # the user's, worth a description


def describe_sampling() -> str:
    """What --config.sampling can name: samplers, correctors, grids and presets, a line each with their settings."""

    def first_line(thing: Any) -> str:
        return inspect.getdoc(thing).splitlines()[0]

    def settings(cls: type, keys: dict[str, str] = {}) -> str:  # noqa: B006
        return "".join(f"  {keys.get(name, name)}={value}" for name, value in _settings(cls).items())

    parts = {
        "sampler": [(n, first_line(cls), settings(cls, SAMPLER_KEYS)) for n, cls in SAMPLERS.items()]
        + [(n, text, "") for n, text in OTHER_SAMPLERS.items()],
        "corrector": [(n, first_line(cls), settings(cls, CORRECTOR_KEYS)) for n, cls in CORRECTORS.items()],
        "grid": [(n, first_line(f), "  grid_rho=7.0" if n == "edm" else "") for n, f in GRIDS.items()],
        "preset": [(n, text, "") for n, (text, _) in PRESETS.items()],
    }
    lines = []
    for key, rows in parts.items():
        lines.append(f"--config.sampling.{key}=")
        for name, text, known in rows:
            lines.append(f"  {name:<23}{text}")
            lines += [f"  {'':<23}{known.strip()}"] if known else []
    return "\n".join(lines)


class _Builder(Problems):
    """Makes objects from sections and collects what goes wrong."""

    def __init__(self):
        super().__init__()
        self.used: dict[str, set[str]] = {}

    def make(
        self,
        section: str,
        values: ConfigDict,
        key: str,
        table: dict[str, type],
        keys: dict[str, str] = {},  # noqa: B006
    ) -> Any:
        """The object of the kind that `values[key]` names, with the settings of `values` that are not None."""
        cls = self.choose(f"{section}.{key}", table, values[key])
        if cls is None:
            self.used[section] = set(values)  # which settings belong is not known
            return None
        known = {name: keys.get(name, name) for name in _settings(cls)}
        self.used.setdefault(section, set()).update({key, *known.values()})
        try:
            return cls(**{name: values[at] for name, at in known.items() if values[at] is not None})
        except (ValueError, TypeError) as error:
            self.problems.append(f"{section}: {error}")
            return None

    def unused(self, section: str, values: ConfigDict, keys: list[str]) -> None:
        """Settings that are set but belong to a kind that was not chosen."""
        kinds = ", ".join(f"{key}={values[key]}" for key in keys)
        for name, value in values.items():
            if value is not None and name not in self.used[section]:
                self.problems.append(f"{section}.{name} is not a setting of {kinds}; leave it out")


def use_preset(config: ConfigDict, name: str, keep: Iterable[str] = ()) -> None:
    """Set the whole sampler to what a preset of `presets.py` says, but for the keys of the section in `keep`.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"sampling.preset must be one of {', '.join(PRESETS)}; got {name!r}.{did_you_mean(name, PRESETS)}"
        )
    values = {**base_config().sampling.to_dict(), **PRESETS[name][1], "preset": name}
    for key in set(values) - {"num_samples", "batch_size", "seed", "trajectory"} - set(keep):
        config.sampling[key] = values[key]


def choose_sampler(config: ConfigDict, overrides: Iterable[str]) -> None:
    """Let the command line's sampler or preset replace the config's, whose own settings then go.

    Raises:
        ConfigError: there is no such preset.
    """
    given = {key.removeprefix("sampling.") for key in overrides if key.startswith("sampling.")}
    c = config.sampling
    if "preset" in given and c.preset is not None:
        use_preset(config, c.preset, given)
    elif "sampler" in given:
        settings = {key for key, value in base_config().sampling.items() if value is None} - {"t_end"}
        for key in settings - given:
            c[key] = None
        if "corrector" not in given:
            c.corrector = "none"


def _sampling(make: _Builder, c: ConfigDict, sde: sdes.AffineSDE | None, data_range: tuple) -> SamplingOptions:
    """The sampling section.  Where it has problems, what is returned is of no use."""
    make.used["sampling"] = {
        "preset", "sampler", "steps", "grid", "corrector", "t_end", "temperature", "clip", "denoise", "num_samples",
        "batch_size", "seed", "trajectory",
    }  # fmt: skip
    if sde is not None and c.t_end is not None:
        try:
            sdes.check_time(sde, "sampling.t_end", c.t_end)
        except ValueError as error:
            make.problems.append(str(error))
    low_high = dict(zip(("low", "high"), data_range, strict=False))
    transform = make.choose("sampling.clip", CLIPS, c.clip)
    transform = transform and partial(transform, **low_high)
    common = {"t_end": c.t_end, "temperature": c.temperature, "denoise": c.denoise}

    make.choose("sampling.sampler", {**SAMPLERS, **OTHER_SAMPLERS}, c.sampler)
    if c.sampler in ("adaptive_ode", "adaptive_sde"):
        make.used["sampling"] |= {"rtol", "atol"}
        given = {name: c[name] for name in ("rtol", "atol") if c[name] is not None}
        for name, value in given.items():
            make.check(value > 0, f"sampling.{name} must be positive, got {value}")
        make.check(c.corrector == "none", f"sampling.sampler={c.sampler} takes no corrector, got {c.corrector!r}")
        solver = sampling.sample_adaptive if c.sampler == "adaptive_ode" else sampling.sample_sde
        make.check(not c.trajectory, f"sampling.sampler={c.sampler} keeps no trajectory; leave sampling.trajectory=0")
        solve, steps = partial(solver, **given, **common), None
    else:
        predictor = make.make("sampling", c, "sampler", SAMPLERS, SAMPLER_KEYS) if c.sampler in SAMPLERS else None
        make.choose("sampling.corrector", {"none": None, **CORRECTORS}, c.corrector)
        if c.corrector in CORRECTORS:
            make.used["sampling"].add("corrector_first")
            corrector = make.make("sampling", c, "corrector", CORRECTORS, CORRECTOR_KEYS)
            sampler = corrector and sampling.PredictorCorrector(predictor, corrector, bool(c.corrector_first))
        else:
            make.check(c.sampler != "none" or c.corrector != "none", "sampling.sampler=none needs a sampling.corrector")
            sampler = predictor
        grid = make.choose("sampling.grid", GRIDS, c.grid)
        if c.grid == "edm" and c.grid_rho is not None:
            make.check(c.grid_rho > 0, f"sampling.grid_rho must be positive, got {c.grid_rho}")
            grid = partial(grid, rho=c.grid_rho)
        make.used["sampling"] |= {"grid_rho"} if c.grid == "edm" else set()
        good = c.trajectory == 0 or 2 <= c.trajectory <= c.steps + 1
        make.check(good, f"sampling.trajectory must be 0 or in 2..{c.steps + 1} (steps + 1), got {c.trajectory}")
        solve, steps = partial(sampling.sample, sampler=sampler, steps=c.steps, grid=grid, **common), c.steps
    make.unused("sampling", c, ["sampler", "corrector", "grid"])
    return SamplingOptions(solve, c.num_samples, c.batch_size, steps, transform, c.trajectory)


DataSet = tuple[Callable[[str], data.Source], tuple[int, ...], int | None]  # load(split), shape, levels


def _data(make: _Builder, c: ConfigDict) -> DataSet | None:
    """The data section.  Of users' own files only what tells the shape is read."""
    if c.name not in DATASETS and c.name not in OWN_DATA and ":" not in c.name:
        return make.choose("data.name", {**DATASETS, **OWN_DATA, "module:function": None}, c.name)
    settings = {key: c[key] for key in OWN_DATA.get(c.name, ())}
    make.used["data"] = {"name", "dir", "flip", "range", *settings}
    make.unused("data", c, ["name"])
    if c.name in DATASETS:
        load, shape, levels = DATASETS[c.name]
        return cache(lambda split: load(split, c.dir)), shape, levels
    if c.name not in OWN_DATA:
        return _users_source(make, c.name, c.dir)
    found = len(make.problems)
    unseen = c.name == "images" and c.dir is None and c.size is not None  # which sampling does with
    make.check(unseen or c.dir is not None, f"data.dir must say where the {c.name} are, got None")
    if c.name == "images":
        make.check(c.channels in (1, 3), f"data.channels must be 1 (grey) or 3 (RGB) for images, got {c.channels}")
        make.check(c.size is None or c.size >= 1, f"data.size must be at least 1, got {c.size}")
    good = c.levels is None or 2 <= c.levels <= 2**16
    make.check(good, f"data.levels must be in 2..65536, got {c.levels}")
    if len(make.problems) > found:
        return None
    if unseen:
        return _no_images, (c.size, c.size, c.channels), 256
    try:
        if c.name == "images":
            return cache(lambda split: data.images(split, c.dir, **settings)), data.image_shape(c.dir, **settings), 256
        return cache(lambda split: data.arrays(split, c.dir, **settings)), *data.array_shape(c.dir, **settings)
    except data.DataError as error:
        make.problems.append(str(error))
        return None


def _no_images(split: str) -> data.Source:
    raise data.DataError("data.dir must say where the images are, got None. Give --config.data.dir=FOLDER.")


def _users_source(make: _Builder, name: str, directory: str | None) -> DataSet | None:
    """The data set of `module:function`, which is called with (split, directory) and returns a `Source`."""
    load = cache(lambda split: pkgutil.resolve_name(name)(split, directory))
    try:
        source = load("train")
        if not isinstance(source, data.Source):
            raise TypeError(f"{type(source).__name__} returned, which lacks something of score_sde.data.Source")
        data.describe(source)  # what it gives is what it says
        return load, tuple(source.shape), source.levels
    except Exception as error:  # of the user's code
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}: {error}"
        make.problems.append(
            f"data.name={name} must be a function(split, directory) -> Source of a module, got {where}"
        )
        return None


def build(config: ConfigDict, *, devices: int = 1) -> Run:
    """The objects of a config, for a number of devices.

    Raises:
        ConfigError: the values make no sense; all problems in one message.
    """
    base, values = base_config(), flatten(config)
    types = {key: _type_of(base, key) for key in flatten(base)}
    if wrong := wrong_types(values, types, {key for key, value in flatten(base).items() if value is not None}):
        raise ConfigError("; ".join(wrong) + ".")
    make = _Builder()
    check_numbers(make, values)
    check_counts(make, config)
    c = config
    sde = make.make("sde", c.sde, "name", SDES)
    network = make.make("model", c.model, "name", MODELS)
    prediction = make.make("objective", c.objective, "prediction", PREDICTIONS)
    weighting = make.make("objective", c.objective, "weighting", WEIGHTINGS)
    law = make.make("objective", c.objective, "times", TIMES)
    divergence = make.make("eval", c.eval, "divergence", DIVERGENCES)
    make.check(
        not c.model.scale_by_sigma or c.sde.name == "ve",
        f"model.scale_by_sigma needs sde.name=ve, whose label is log sigma, got {c.sde.name!r}",
    )
    how_to_sample = _sampling(make, c.sampling, sde, c.data.range)
    dataset = _data(make, c.data)
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
            try:
                x = jax.ShapeDtypeStruct((1, *shape), "float32")
                label = jax.ShapeDtypeStruct((1,), "float32")
                jax.eval_shape(network.init, jax.eval_shape(partial(jax.random.key, 0)), x, label)
            except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
                make.problems.append(f"model: {str(error).splitlines()[0]}")
    if make.problems:
        message = "; ".join(dict.fromkeys(p.rstrip(".") for p in make.problems))
        raise ConfigError(message if message.endswith("?") else message + ".")

    load, shape, levels = dataset
    return Run(
        experiment=Experiment(
            sde=sde,
            network=network,
            prediction=prediction,
            weighting=weighting,
            times=law,
            load=load,
            shape=shape,
            levels=levels,
            data_range=tuple(float(end) for end in c.data.range),
        ),
        training=training,
        sampling=how_to_sample,
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
