"""The sampling section: presets, what the command line replaces, and the object that samples."""

import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from score_sde import sampling, sdes
from score_sde.evaluation import guided
from score_sde.evaluation.guided import GuidanceOptions
from score_sde.evaluation.restoration import RestoreOptions
from score_sde.evaluation.samples import SamplingOptions

from .kinds import Builder, settings
from .names import (
    CLIPS,
    CORRECTOR_KEYS,
    CORRECTORS,
    GRIDS,
    GUIDES,
    METHODS,
    OPERATORS,
    OTHER_SAMPLERS,
    SAMPLER_KEYS,
    SAMPLERS,
)
from .presets import PRESETS
from .template import ConfigError, base_config
from .validation import did_you_mean


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
    for key in set(values) - {"num_samples", "batch_size", "seed", "trajectory", "label"} - set(keep):
        config.sampling[key] = values[key]


def choose_sampler(config: ConfigDict, overrides: Iterable[str], default: str | None = None) -> None:
    """Let the command line's sampler or preset, or else that of `default`, replace the config's with its settings.

    Raises:
        ConfigError: there is no such preset.
    """
    given = {key.removeprefix("sampling.") for key in overrides if key.startswith("sampling.")}
    c = config.sampling
    if "preset" in given and c.preset is not None:
        use_preset(config, c.preset, given)
    elif "sampler" in given:
        settings = {key for key, value in base_config().sampling.items() if value is None} - {"t_end", "label"}
        for key in settings - given:
            c[key] = None
        if "corrector" not in given:
            c.corrector = "none"
    elif default is not None:
        use_preset(config, default, given)


def describe_sampling() -> str:
    """What --config.sampling can name: samplers, correctors, grids and presets, a line each with their settings."""

    def first_line(thing: Any) -> str:
        return inspect.getdoc(thing).splitlines()[0]

    def listed(cls: type, keys: dict[str, str] = {}) -> str:  # noqa: B006
        return "".join(f"  {keys.get(name, name)}={value}" for name, value in settings(cls).items())

    parts = {
        "sampler": [(n, first_line(cls), listed(cls, SAMPLER_KEYS)) for n, cls in SAMPLERS.items()]
        + [(n, text, "") for n, text in OTHER_SAMPLERS.items()],
        "corrector": [(n, first_line(cls), listed(cls, CORRECTOR_KEYS)) for n, cls in CORRECTORS.items()],
        "grid": [(n, first_line(f), "  grid_rho=7.0" if n == "edm" else "") for n, f in GRIDS.items()],
        "preset": [(n, text, "") for n, (text, _) in PRESETS.items()],
    }
    parts = {f"sampling.{key}": rows for key, rows in parts.items()}
    parts["guidance.kind"] = [(n, first_line(f), "  scale=1.0  interval=LOW,HIGH") for n, f in GUIDES.items()]
    parts["restore.operator"] = [(n, first_line(cls), listed(cls)) for n, cls in OPERATORS.items()]
    parts["restore.method"] = [(n, first_line(cls), listed(cls)) for n, cls in METHODS.items()]
    lines = []
    for key, rows in parts.items():
        lines.append(f"--config.{key}=")
        for name, text, known in rows:
            lines.append(f"  {name:<23}{text}")
            lines += [f"  {'':<23}{known.strip()}"] if known else []
    return "\n".join(lines)


def sampling_options(make: Builder, c: ConfigDict, sde: sdes.AffineSDE | None, data_range: tuple) -> SamplingOptions:
    """The sampling section.  Where it has problems, what is returned is of no use."""
    make.used["sampling"] = {
        "preset", "sampler", "steps", "grid", "corrector", "t_end", "temperature", "clip", "denoise", "num_samples",
        "batch_size", "seed", "trajectory", "label",
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
        solve, steps, sampler = partial(solver, **given, **common), None, None
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
    return SamplingOptions(solve, c.num_samples, c.batch_size, steps, transform, c.trajectory, sampler=sampler)


def guidance_options(make: Builder, c: ConfigDict) -> GuidanceOptions:
    """The guidance section and sampling.label.  Where it has problems, what is returned is of no use."""
    g, label, classes = c.guidance, c.sampling.label, c.model.num_classes or 0
    guide = make.choose("guidance.kind", {"none": None, **GUIDES}, g.kind)
    make.check(label is None or label >= 0, f"sampling.label must be at least 0, got {label}")
    make.check(
        label is None or not classes or label < classes, f"sampling.label must be in 0..{classes - 1}, got {label}"
    )
    if guide is None or guide is guided.by_weaker:
        make.check(
            label is None or classes > 0,
            "sampling.label needs a class-conditional network (model.num_classes) or guidance.kind=classifier",
        )
    else:
        make.check(label is not None, f"guidance.kind={g.kind} needs sampling.label, the class to ask for")
    if guide is guided.by_label:
        make.check(classes > 0, "guidance.kind=classifier_free needs a class-conditional network (model.num_classes)")
    other = [key for key in ("workdir", "step") if g[key] is not None]
    if guide is guided.by_classifier:
        make.check("workdir" in other, "guidance.kind=classifier needs guidance.workdir, of the classifier")
    elif guide is guided.by_weaker:
        make.check(bool(other), "guidance.kind=autoguidance needs guidance.step, a checkpoint, or guidance.workdir")
    else:
        make.check(not other, f"guidance.{', '.join(other)} is not a setting of guidance.kind={g.kind}")
    interval = g.interval
    if interval is not None:
        numbers = len(interval) == 2 and all(type(end) in (int, float) for end in interval)
        good = numbers and interval[0] < interval[1]
        make.check(good, f"guidance.interval must be two rising numbers, of log-SNR, got {interval}")
        interval = tuple(map(float, interval)) if good else None
    return GuidanceOptions(guide, label, g.scale, interval, g.workdir, g.step)


def restore_options(make: Builder, c: ConfigDict) -> RestoreOptions:
    """The restore section.  Where it has problems, what is returned is of no use."""
    make.used["restore"] = {"noise", "examples", "samples", "input", "measured"}
    operator = make.make("restore", c, "operator", OPERATORS)
    method = make.make("restore", c, "method", METHODS)
    make.unused("restore", c, ["operator", "method"])
    make.check(c.noise >= 0, f"restore.noise must be at least 0, got {c.noise}")
    make.check(c.input is not None or not c.measured, "restore.measured needs restore.input, what was measured")
    return RestoreOptions(operator, method, c.noise, c.examples, c.samples, c.input, c.measured)
