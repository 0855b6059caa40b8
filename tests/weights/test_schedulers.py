"""A diffusers folder's scheduler: each class and setting is read as what it means, or refused by its name."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.config import build
from score_sde.weights.conventions import PREDICTIONS, config_of
from score_sde.weights.errors import WeightsError
from score_sde.weights.opening import Found
from score_sde.weights.schedulers import IDLE, SCHEDULERS
from tests.weights.test_naming import DDPM, SKIP

PATH = Path("folder")
SMALL = dict(sample_size=8, block_out_channels=[32], layers_per_block=1)
EVERY = [(kind, key) for kind, table in SCHEDULERS.items() for key in table]


def read(kind, **settings):
    """The config of a folder with that scheduler."""
    scheduler = {"_class_name": kind, "_diffusers_version": "0.30.0", **settings}
    if kind == "ScoreSdeVeScheduler":
        scheduler = {"sigma_max": 348.0} | scheduler
    names = "Skip" * (kind == "ScoreSdeVeScheduler")
    small = SMALL | dict(down_block_types=[f"{names}DownBlock2D"], up_block_types=[f"{names}UpBlock2D"])
    unet = SKIP if kind == "ScoreSdeVeScheduler" else DDPM
    return config_of(Found("diffusers folder", "diffusers", {}, {}, unet=unet | small, scheduler=scheduler), PATH, None)


@pytest.mark.parametrize("kind, key", EVERY)
def test_every_setting_has_values_that_are_refused(kind, key):
    """The walk over the table: a value outside of it, of its type or of another, ends in one line with the key."""
    needed = {"clip_sample": True} if key == "clip_sample_range" else {}
    for value in ("another", 0, -1.0, float("nan"), True, False, None, [1.0]):
        if key in IDLE and value is False or any(type(v) is type(value) and v == value for v in SCHEDULERS[kind][key]):
            continue
        with pytest.raises(WeightsError, match=f"expected {key} .*Give --config=FILE.py") as refused:
            read(kind, **needed | {key: value})
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_every_value_in_the_table_makes_a_run(kind):
    table = {key: [v for v in values if v is not ...] for key, values in SCHEDULERS[kind].items()}
    for key, values in table.items():
        for value in values:
            read(kind, **{key: value})
    for place in (0, -1):
        build(read(kind, **{key: values[place] for key, values in table.items()}))


def test_counts_are_whole_numbers():
    for key in ("num_train_timesteps", "correct_steps"):
        with pytest.raises(WeightsError, match=f"expected {key} .* another positive whole number, got 1.5"):
            read("ScoreSdeVeScheduler", **{key: 1.5})
        read("ScoreSdeVeScheduler", **{key: 3.0})


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_setting_that_nobody_knows_is_not_ignored(kind):
    with pytest.raises(
        WeightsError, match="scheduler_config.json: expected settings that are known here, got use_x 0.5"
    ):
        read(kind, use_x=0.5)
    read(kind, use_x=False, use_y=None, _note="of the library")


@pytest.mark.parametrize(
    "kind, unet",
    [
        ("FlowMatchEulerDiscreteScheduler", DDPM), ("EDMEulerScheduler", DDPM), ("PNDMScheduler", DDPM),
        ("CMStochasticIterativeScheduler", DDPM), ("ScoreSdeVeScheduler", DDPM), (None, DDPM),
        ("DDPMScheduler", SKIP), ("KarrasVeScheduler", SKIP),
    ],
)  # fmt: skip
def test_another_class_is_refused_by_its_name(kind, unet):
    scheduler = {"sigma_max": 348.0} if kind is None or unet is SKIP else {}
    scheduler |= {"_class_name": kind}
    with pytest.raises(WeightsError, match=f"expected _class_name .*got {kind!r}.*Give --config"):
        config_of(Found("diffusers folder", "diffusers", {}, {}, unet=unet, scheduler=scheduler), PATH, None)


def test_the_config_that_the_refusal_asks_for_leaves_the_network_as_it_is():
    given = read("DDPMScheduler")
    with given.unlocked():
        given.sde.name, given.sde.beta_min, given.sde.beta_max = "rectified_flow", None, None
        given.objective.prediction, given.model.norm_eps, given.model.nf = "velocity", 1e-3, 64
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    found = Found("diffusers folder", "diffusers", {}, {}, unet=DDPM, scheduler=scheduler)
    config = config_of(found, PATH, given)
    assert (config.sde.name, config.objective.prediction) == ("rectified_flow", "velocity")
    assert (config.model.nf, config.model.norm_eps) == (128, 1e-6)


def test_what_a_network_predicts_is_read_off_the_scheduler():
    """v = alpha eps - sigma x_0, and the others by their names."""
    assert [read("DDPMScheduler", prediction_type=p).objective.prediction for p in PREDICTIONS] == [
        "noise",
        "data",
        "v",
    ]
    sde, t, x0, noise = ss.VP(), jnp.array([0.1, 0.9]), jnp.ones((2, 3)), jnp.arange(6.0).reshape(2, 3)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    np.testing.assert_allclose(ss.predictions.V().target(sde, x0, noise, t), alpha * noise - sigma * x0, rtol=1e-6)


def test_how_it_samples_is_read_off_the_scheduler():
    small, large, ddim = (
        read("DDPMScheduler", variance_type="fixed_small_log", clip_sample=False, clip_sample_range=3.0),
        read("DDPMScheduler", variance_type="fixed_large", beta_end=0.015),
        read("DDIMScheduler"),
    )
    assert [c.sampling.forward_variance for c in (small, large)] == [False, True]
    assert [c.sampling.clip for c in (small, large, ddim)] == ["none", "static", "static"]
    assert [c.sampling.sampler for c in (small, ddim)] == ["ancestral", "ddim"]
    assert (ddim.sampling.eta or 0.0, ddim.sampling.steps, ddim.sampling.grid) == (0.0, 50, "uniform")
    assert large.sde.beta_max == pytest.approx(15.0)


@pytest.mark.interop
def test_the_table_has_every_setting_of_diffusers_and_its_default():
    """A setting that diffusers adds, or another default, is found here; and no other class of it is read."""
    import inspect

    import diffusers

    for kind, table in SCHEDULERS.items():
        there = inspect.signature(getattr(diffusers, kind).__init__).parameters
        defaults = {key: p.default for key, p in there.items() if key != "self"}
        assert defaults.keys() <= table.keys() | IDLE.keys()
        assert {k: v for k, v in defaults.items() if k in table} == {
            k: values[0] for k, values in table.items() if k in defaults
        }
    others = {name for name in dir(diffusers) if name.endswith("Scheduler")} - SCHEDULERS.keys()
    assert len(others) > 20
    for kind in others:
        with pytest.raises(WeightsError, match=f"expected _class_name .*got '{kind}'"):
            config_of(Found("", "diffusers", {}, {}, unet=DDPM, scheduler={"_class_name": kind}), PATH, None)
