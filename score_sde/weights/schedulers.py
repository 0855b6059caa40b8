"""What the scheduler of a diffusers folder says: the process that the network was trained on, and how to sample.

A network does not tell noise from velocity, nor 999 t from sigma; read as something else it samples, and all of it is
wrong.  So there is a table of the classes that are understood and of the values of each of their settings, and whatever
is not in it is refused by its name: another class (flow matching, EDM, consistency), a setting of a later diffusers, a
value that changes the process (zero terminal SNR, other betas) or the sampler in a way that is not held here.
"""

import math
from collections.abc import Mapping
from typing import Any

from score_sde.weights.errors import WeightsError, refuse_unknown

FILE = "scheduler_config.json"
REMEDY = "Give --config=FILE.py, whose process and sampler then hold; the network is still read from config.json."

# Setting -> the values that are understood, the default of diffusers first; ... stands for any other positive number,
# a whole one where the default is.
_CHAIN = {
    "num_train_timesteps": (1000,),
    "beta_start": (1e-4, ...),
    "beta_end": (0.02, ...),
    "beta_schedule": ("linear",),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "predict_epsilon": (True,),  # of early versions
    "clip_sample": (True, False),
    "clip_sample_range": (1.0,),
    "thresholding": (False,),
    "timestep_spacing": ("leading", "linspace", "trailing"),  # which of the chain's times are visited: ours are
    "steps_offset": (0,),
}
SCHEDULERS: dict[str, dict[str, tuple]] = {
    "DDPMScheduler": _CHAIN | {"variance_type": ("fixed_small", "fixed_small_log", "fixed_large")},
    "DDIMScheduler": _CHAIN | {"set_alpha_to_one": (True,)},
    "ScoreSdeVeScheduler": {
        "num_train_timesteps": (2000, ...),
        "snr": (0.15, ...),
        "sigma_min": (0.01, ...),
        "sigma_max": (1348.0, ...),
        "sampling_eps": (1e-5, ...),
        "correct_steps": (1, ...),
    },
}
# Settings that do nothing unless another is on, so that any value will do; and those of early versions for arrays.
IDLE = {
    "dynamic_thresholding_ratio": "thresholding",
    "sample_max_value": "thresholding",
    "clip_sample_range": "clip_sample",
    "tensor_format": None,
}


def read_scheduler(config: Mapping[str, Any], expected: tuple[str, ...]) -> dict[str, Any]:
    """The settings of a scheduler_config.json, defaults filled in, its class under "class".

    Args:
        config: what the file holds.
        expected: the classes that can go with the network.

    Raises:
        WeightsError: a class or a value that is not understood; the message names it.
    """
    kind = config.get("_class_name")
    if kind not in expected:
        raise WeightsError(
            f"{FILE}: expected _class_name {' or '.join(expected)}, which go with this network and are understood, got "
            f"{kind!r:.80}. {REMEDY}"
        )
    table = SCHEDULERS[kind]
    refuse_unknown(FILE, config, {*table, *IDLE})
    settings = {key: config.get(key, values[0]) for key, values in table.items()}
    for key, values in table.items():
        idle = key in IDLE and not settings[IDLE[key]]
        if not idle and not _understood(settings[key], values):
            kind = "whole number" if type(values[0]) is int else "number"
            known = [f"another positive {kind}" if v is ... else repr(v) for v in values]
            raise WeightsError(f"{FILE}: expected {key} {' or '.join(known)}, got {settings[key]!r:.80}. {REMEDY}")
    return settings | {"class": kind}


def _understood(value: Any, values: tuple) -> bool:
    number = type(value) in (int, float)
    if number and ... in values:
        return math.isfinite(value) and value > 0 and (type(values[0]) is float or value == int(value))
    kinds = (int, float) if number else (type(value),)
    return any(type(v) in kinds and v == value for v in values)
