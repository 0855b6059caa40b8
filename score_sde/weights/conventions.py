"""The config that goes with published weights: network, process, label, scaling of the data, and how to sample."""

import math
from pathlib import Path

from ml_collections import ConfigDict

from score_sde.config import ConfigError, base_config, from_json, use_preset
from score_sde.config.trust import Trust
from score_sde.weights.errors import WeightsError, reason
from score_sde.weights.opening import UNUSED, Found
from score_sde.weights.schedulers import read_scheduler
from score_sde.weights.unet2d import fields

# What a count of parameters says, and the configs that belong to it.
PUBLISHED = {
    61_804_419: ("DDPM++ on CIFAR-10", "configs/vp_cifar.py or configs/subvp_cifar.py"),
    106_632_579: ("deep DDPM++ on CIFAR-10", "configs/vp_cifar_deep.py"),
    62_758_915: ("NCSN++ on CIFAR-10", "configs/ve_cifar.py"),
    107_587_075: ("deep NCSN++ on CIFAR-10", "configs/ve_cifar_deep.py"),
    65_574_549: ("NCSN++ for 256x256 pixels", "a config of your own"),
    105_785_896: ("NCSN++ for 1024x1024 pixels", "a config of your own"),
    62_693_251: ("NCSN++ on CIFAR-10 of discrete levels", "configs/ve_cifar_discrete.py"),
    35_746_307: ("DDPM on CIFAR-10", "configs/ddpm_cifar.py"),
    35_218_947: ("DDPM on CIFAR-10 as Score-SDE has it", "configs/vp_cifar_ddpm.py"),
}
# A folder without a scheduler: the process of DDPM, which is diffusers' default, and its published variance.
ASSUMED = {"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}
PREDICTIONS = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}
MORE_STEPS = 100_000  # of fine-tuning, unless the command line says otherwise


def count(found: Found) -> int:
    """Parameters in the file, the frozen Fourier frequencies included."""
    return sum(math.prod(tensor.shape) for name, tensor in found.tensors.items() if name not in UNUSED)


def config_of(
    found: Found, path: Path, given: ConfigDict | None, sigma_max_given: bool = False, trust: Trust = False
) -> ConfigDict:
    """The config of a file at `path`: the `given` one, else its own, else what diffusers' files say.

    The network of a diffusers folder is always what its config.json says: a given config has the rest.

    Raises:
        ConfigError: its own names code that is not the user's (`config.trust`).
        WeightsError: the file does not say enough, or something that cannot be expressed.
    """
    if given is None and found.config is not None:
        try:
            config = from_json(found.config, path, trust=trust)
        except ConfigError:
            raise
        except Exception as error:  # of a damaged text: many types
            raise WeightsError(f"the config in the header is damaged: {reason(error)}. Give --config.") from error
    elif found.unet is not None:
        try:
            config = _of_diffusers(found.unet, found.scheduler, given, sigma_max_given)
        except WeightsError:
            raise
        except (ArithmeticError, TypeError, ValueError, KeyError, AttributeError) as error:  # a value of another kind
            raise WeightsError(f"the config of the {found.kind} makes no sense: {reason(error)}.") from error
    elif given is not None:
        config = given
    else:
        name, file = PUBLISHED.get(count(found), ("no published network", "a config of your own"))
        raise WeightsError(
            f"a {found.kind} does not say its network and process: give --config=FILE.py. It has {count(found):,} "
            f"parameters, as has {name}: {file}."
        )
    with config.unlocked():
        if found.step:
            config.training.steps = max(config.training.steps, found.step + MORE_STEPS)
    return config


def check_label(found: Found, config: ConfigDict) -> None:
    """Refuse a config by which a network of Score-SDE would be told another time than its code tells it.

    Raises:
        WeightsError: a Fourier embedding outside VE, or a positional one within, without the field that says how.
    """
    m, ve = config.model, config.sde.name == "ve"
    if found.layout not in ("torch", "flax") or found.config is not None or m.name != "unet":
        return
    if m.embedding_type == "fourier" and not ve and not m.log_label:
        raise WeightsError(
            f"expected model.log_label=True with model.embedding_type=fourier and sde.name={config.sde.name}: "
            "Score-SDE embeds log(999 t) there, this config 999 t. Give --config.model.log_label=True."
        )
    if m.embedding_type != "fourier" and ve and not m.sigma_levels:
        raise WeightsError(
            "expected model.sigma_levels with a positional embedding and sde.name=ve: Score-SDE embeds the number of a "
            "noise level there, this config log sigma. Take configs/ve_cifar_discrete.py, or give "
            "--config.model.sigma_levels=SIGMA_MAX,SIGMA_MIN,N and --config.model.scale_by_sigma=True."
        )


def assumed(found: Found, given: ConfigDict | None, config: ConfigDict) -> list[str]:
    """What a file does not say, and what its `config` holds instead: sentences for the user."""
    if config.model.class_first and not config.objective.label_dropout:
        return ["no image without its class was seen in training: sample with --config.sampling.label"]
    if found.unet is None or found.config is not None:
        return []
    notes, classes = [], config.model.num_classes
    if given is None and found.scheduler is None and config.sde.name == "vp":
        betas = f"{config.sde.beta_min / 1000:g} to {config.sde.beta_max / 1000:g}"
        notes.append(
            f"no scheduler_config.json: a noise predictor of DDPM's chain, betas from {betas}; if it is another, "
            "--config=FILE.py says so"
        )
    if classes and classes == found.unet.get("num_class_embeds"):
        notes.append(
            f"none of the {classes} classes is the null class: sample with --config.sampling.label; if the last is, "
            f"--config.model.num_classes={classes - 1}"
        )
    return notes


def _of_diffusers(unet: dict, scheduler: dict | None, given: ConfigDict | None, sigma_max_given: bool) -> ConfigDict:
    c = base_config() if given is None else given
    model, (size, _, channels) = fields(unet)
    with c.unlocked():
        for name, value in model.items():
            c.model[name] = value
        if given is not None:
            return c
        if (size, channels) == (32, 3):
            c.data.name = "cifar10"
        else:
            c.data.name, c.data.size, c.data.channels = "images", size, channels
        c.data.flip = True
        if model["embedding_type"] == "fourier":
            _ve(c, scheduler, sigma_max_given)
        else:
            _ddpm(c, scheduler)
    return c


def _ddpm(c: ConfigDict, scheduler: dict | None) -> None:
    """DDPM's chain in continuous time: label 999 t, data in [-1, 1]."""
    given = ASSUMED if scheduler is None else scheduler
    s = read_scheduler(given, ("DDPMScheduler", "DDIMScheduler"))
    c.sde.name, c.sde.beta_min, c.sde.beta_max = "vp", 1000 * s["beta_start"], 1000 * s["beta_end"]
    c.objective.prediction, c.data.range = PREDICTIONS[s["prediction_type"]], (-1.0, 1.0)
    if s["class"] == "DDIMScheduler":
        use_preset(c, "ddim")
        c.sampling.grid = "uniform"
    else:
        use_preset(c, "ddpm")
        c.sampling.forward_variance = s["variance_type"] == "fixed_large"
    c.sampling.clip = "static" if s["clip_sample"] else "none"


def _ve(c: ConfigDict, scheduler: dict | None, sigma_max_given: bool) -> None:
    """VE with the label log sigma, the score predicted, data in [0, 1], predictor and corrector."""
    if "sigma_max" not in (scheduler or {}) and not sigma_max_given:
        raise WeightsError(
            "no scheduler_config.json says sigma_max of this VE network: give --config.sde.sigma_max (348 for "
            "CelebA-HQ and FFHQ, 380 for LSUN church, 378 for bedroom, all of 256 pixels; 1348 for 1024)."
        )
    given = {"_class_name": "ScoreSdeVeScheduler", "snr": 0.16, "sigma_max": 50.0} if scheduler is None else scheduler
    s = read_scheduler(given, ("ScoreSdeVeScheduler",))
    c.sde.name, c.sde.sigma_min, c.sde.sigma_max = "ve", float(s["sigma_min"]), float(s["sigma_max"])
    c.objective.prediction, c.data.range, c.training.ema_rate = "score", (0.0, 1.0), 0.999
    c.model.fourier_scale = 16.0
    use_preset(c, "song_ve")
    c.sampling.steps = int(s["num_train_timesteps"])
    c.sampling.snr, c.sampling.corrector_steps = float(s["snr"]), int(s["correct_steps"])
    c.sampling.t_end = float(s["sampling_eps"])
