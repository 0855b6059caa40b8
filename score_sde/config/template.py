"""The complete config, and configs as files hold them."""

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from score_sde.files import json_digest, read_of_run
from score_sde.training.loop import TrainingOptions

from .kinds import section
from .names import (
    CORRECTOR_KEYS,
    CORRECTORS,
    DIVERGENCES,
    METHODS,
    MODELS,
    OPERATORS,
    PREDICTIONS,
    SAMPLER_KEYS,
    SAMPLERS,
    SDES,
    TIMES,
    WEIGHTINGS,
)
from .trust import Trust, check_names
from .validation import ConfigError

_log = logging.getLogger(__name__)
CHECKSUM = "sha256"  # key of config.json: of all the others


def base_config() -> ConfigDict:
    """A complete config with the published settings of VP on CIFAR-10; every key there is, with its type."""
    objective = {
        **section(PREDICTIONS, "prediction", "noise"),
        **section(WEIGHTINGS, "weighting", "sigma_squared"),
        **section(TIMES, "times", "uniform"),
        "label_dropout": 0.1,
        "augment_probability": 0.12,
    }
    config = ConfigDict(
        {
            "seed": 0,
            "sde": section(SDES, "name", "vp"),
            "model": section(MODELS, "name", "unet"),
            "objective": objective,
            "data": {
                "name": "cifar10", "dir": placeholder(str), "flip": False, "range": (-1.0, 1.0),
                "channels": placeholder(int), "size": placeholder(int), "levels": placeholder(int),
            },
            "training": {**dataclasses.asdict(TrainingOptions()), "cpu_devices": 0, "final_eval": False},
            "sampling": {
                "preset": placeholder(str),
                **section(SAMPLERS, "sampler", "euler_maruyama", SAMPLER_KEYS),
                "steps": 1000, "t_end": placeholder(float), "grid": "uniform", "grid_rho": placeholder(float),
                "rtol": placeholder(float), "atol": placeholder(float),
                **section(CORRECTORS, "corrector", "none", CORRECTOR_KEYS), "corrector_first": placeholder(bool),
                "temperature": 1.0, "clip": "none", "denoise": True, "trajectory": 0,
                "num_samples": 64, "batch_size": 64, "seed": 0, "label": placeholder(int),
            },
            "guidance": {
                "kind": "none", "scale": 1.0, "interval": placeholder(tuple), "workdir": placeholder(str),
                "step": placeholder(int),
            },
            "restore": {
                **section(OPERATORS, "operator", "inpaint"), **section(METHODS, "method", "pigdm"),
                "noise": 0.05, "examples": 4, "samples": 8, "input": placeholder(str), "measured": False,
            },
            "eval": {
                "split": "test", "batch_size": 64, "num_examples": placeholder(int),
                **section(DIVERGENCES, "divergence", "hutchinson"),
                "solver": "cash_karp", "rtol": 3e-5, "atol": 3e-5, "whole_batch": False, "passes": 1,
                "bound": "continuous", "bound_draws": 50, "round_trip": 16, "seed": 0,
            },
        }
    )  # fmt: skip
    return config.lock()


def get_config(path: str | Path, *, trust: Trust = False) -> ConfigDict:
    """The config saved in a run's config.json, on the template of `base_config` (which knows the types).

    Raises:
        ConfigError: the file is damaged or was changed, or names code that is not the user's (`trust.check_names`).
        WorkdirError: it is no file that can be read.
    """
    text = read_of_run(path)
    try:
        saved = json.loads(text)
        summed = CHECKSUM in saved
        if summed and saved[CHECKSUM] != checksum(saved):
            raise ConfigError(
                f"{path} was changed or damaged after it was written: its checksum does not match. Restore a copy, or "
                "use another --workdir; values are changed by flags, --config.KEY=VALUE."
            )
        config = from_json(text, path, trust=trust)
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged: {str(error).strip(chr(34))!s:.200}. Restore it, or use another --workdir."
        ) from error
    if not summed:
        _tell_unsummed(path)
    return config


def checksum(saved: dict[str, Any]) -> str:
    """The checksum of a config.json: the digest of what it holds besides."""
    return json_digest({key: value for key, value in saved.items() if key != CHECKSUM})


@functools.cache  # told once
def _tell_unsummed(path: str | Path) -> None:
    _log.warning("note: %s has no checksum, as in versions before there was one: changes in it go unnoticed.", path)


def from_json(text: str | bytes, file: str | Path, *, trust: Trust = False) -> ConfigDict:
    """The config in the text of a config.json, which `file` holds; many kinds of error where it is none.

    Raises:
        ConfigError: it names code that is not the user's (`trust.check_names`).
    """
    config = base_config()
    _fill(config, json.loads(text)["config"])
    check_names(flatten(config), Path(file), text.encode() if isinstance(text, str) else text, trust)
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


def type_of(config: ConfigDict, key: str) -> type:
    """The type of the values of `section.name`, also where it is None."""
    section, _, name = key.rpartition(".")
    return (config[section] if section else config).get_type(name)
