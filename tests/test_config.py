"""Configs: those that ship build, the names reach everything public, and what makes no sense is refused at once."""

import inspect
import os
import runpy
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import score_sde as ss
from score_sde import config as configs
from score_sde import data, likelihood, models, modes, sampling
from score_sde.config import ConfigError, base_config, build, flatten, get_config, names
from score_sde.config.datasets import DATASETS
from score_sde.config.memory import most_memory
from score_sde.config.presets import PRESETS
from score_sde.config.template import type_of
from score_sde.data.fetch import PUBLISHED
from tests.catalogue import PREDICTIONS, TIMES, WEIGHTINGS, instances

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(p for p in FOLDER.glob("*.py") if p.name != "__init__.py")
each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)


@pytest.fixture(autouse=True)
def configs_import_their_neighbours(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


def load(path):
    return runpy.run_path(str(path))["get_config"]()


def toy(**settings):
    """A small config on 2-D points, with settings such as model__features=(8,)."""
    c = base_config()
    c.data.name, c.model.name = "swiss_roll", "mlp"
    return changed(c, settings)


def small_unet(**settings):
    c = base_config()
    c.data.name, c.model.nf, c.model.ch_mult, c.model.num_res_blocks = "digits", 4, (1,), 1
    return changed(c, settings)


def changed(c, settings):
    for key, value in settings.items():
        section, _, name = key.rpartition("__")
        (c[section] if section else c)[name] = value
    return c


# --- the files under configs/ ----------------------------------------------------------------------------------------


def test_there_are_configs():
    assert {"vp_cifar", "vp_digits", "vp_toy"} <= {p.stem for p in FILES}


@pytest.fixture(scope="session")
def own_data(tmp_path_factory):
    """name -> folder or file of generated examples, as users would have them."""
    folder = tmp_path_factory.mktemp("own")
    for n in range(3):
        Image.fromarray(np.full((40, 36, 3), 50 * n, np.uint8)).save(folder / f"{n}.png")
    np.save(folder / "vectors.npy", np.random.default_rng(0).standard_normal((30, 4)))
    return {"images": folder, "arrays": folder / "vectors.npy"}


def with_data(c, own_data):
    """The config, with files where it wants the user's."""
    if c.data.name in own_data:
        c.data.dir = str(own_data[c.data.name])
    return c


@each_file
def test_a_shipped_config_builds_and_names_its_command(path, own_data):
    run = build(with_data(load(path), own_data))
    assert run.training.steps > 0
    assert f"python -m score_sde.main --config=configs/{path.name} --mode=train" in runpy.run_path(str(path))["__doc__"]


@each_file
def test_a_config_comes_back_from_its_json(path, tmp_path):
    c = load(path)
    modes.save_config(tmp_path, c, {})
    assert get_config(str(tmp_path / "config.json")).to_dict() == c.to_dict()  # == tells tuples from lists


def test_everything_comes_back_from_json(tmp_path):
    c = toy(model__features=(3, 5), sde__beta_min=0.2, eval__num_examples=7, sampling__t_end=0.01)
    c.data.range, c.eval.gaussian = (0.0, 1.0), False
    modes.save_config(tmp_path, c, {})
    back = get_config(str(tmp_path / "config.json"))
    assert back.model.features == (3, 5) and back.sde.beta_max is None
    assert {k: (type(v), v) for k, v in flatten(back).items()} == {k: (type(v), v) for k, v in flatten(c).items()}
    assert back.is_locked


def test_vp_cifar_has_the_published_size():
    network = build(load(FOLDER / "vp_cifar.py")).experiment.network
    x, label = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32"), jax.ShapeDtypeStruct((1,), "float32")
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, label)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 61_804_419


def test_build_leaves_the_number_of_devices_to_be_chosen():
    """Tracing the network must not start a backend: the command line splits the CPU after that."""
    code = (
        "import runpy, jax\nfrom score_sde.config import build\n"
        "build(runpy.run_path('configs/vp_digits.py')['get_config']())\n"
        "jax.config.update('jax_num_cpu_devices', 2)\nassert jax.device_count() == 2\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER.parent, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_build_compiles_nothing(own_data):
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.clear_caches()  # what is compiled already would not show
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for path in FILES:
            if "deep" not in path.name:  # more of the same blocks
                build(with_data(load(path), own_data))
        found = len(compiled)
        jax.jit(lambda x: x + 1)(jnp.ones(3))
        assert len(compiled) > found, "the listener is deaf"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert found == 0


# --- names -----------------------------------------------------------------------------------------------------------


def classes_of(objects):
    return {type(o) for o in objects}


def public_functions(module):
    found = [f for n, f in vars(module).items() if inspect.isfunction(f) and not n.startswith("_")]
    return {f for f in found if f.__module__ == module.__name__}


@pytest.mark.parametrize(
    "table, public",
    [
        (names.SDES, classes_of(instances(ss, ss.AffineSDE))),
        (names.PREDICTIONS, classes_of(PREDICTIONS)),
        (names.WEIGHTINGS, classes_of(WEIGHTINGS)),
        (names.TIMES, classes_of(TIMES)),
        (names.DIVERGENCES, classes_of(instances(likelihood, likelihood.Divergence))),
        (names.SAMPLERS, classes_of(instances(sampling, sampling.Sampler)) - {ss.PredictorCorrector}),
        (names.CORRECTORS, classes_of(instances(sampling, sampling.Corrector))),
        (names.GRIDS, public_functions(ss.grids)),
        (names.MODELS, {m for m in vars(models).values() if inspect.isclass(m) and issubclass(m, nn.Module)}),
    ],
    ids="sdes predictions weightings times divergences samplers correctors grids models".split(),
)
def test_every_public_class_has_a_name(table, public):
    assert public and set(table.values()) == public


def test_every_data_set_has_a_name():
    toys = {f.__name__ for f in public_functions(data.toys)}
    assert len(toys) >= 4 and {*toys, "digits", *PUBLISHED} == set(DATASETS)


@pytest.mark.parametrize("name", [n for n in DATASETS if n not in PUBLISHED])
def test_the_table_of_data_sets_is_true(name):
    load_split, shape, levels = DATASETS[name]
    for split in ("train", "test"):
        source = load_split(split, "nowhere")
        assert (source.shape, source.levels) == (shape, levels)


@pytest.mark.parametrize("section, key, table", [
    ("sde", "name", names.SDES), ("objective", "prediction", names.PREDICTIONS),
    ("objective", "weighting", names.WEIGHTINGS), ("objective", "times", names.TIMES),
    ("eval", "divergence", names.DIVERGENCES), ("sampling", "sampler", names.SAMPLERS),
    ("sampling", "corrector", names.CORRECTORS),
])  # fmt: skip
def test_each_name_builds_its_class(section, key, table):
    for name, kind in table.items():
        run = build(toy(**{f"{section}__{key}": name}))
        e = run.experiment
        built = {"name": e.sde, "prediction": e.prediction, "weighting": e.weighting, "times": e.times}
        sampler = run.sampling.solve.keywords["sampler"]
        built |= {"divergence": run.evaluation.divergence, "sampler": sampler}
        built |= {"corrector": getattr(sampler, "corrector", None)}
        assert type(built[key]) is kind


def test_settings_arrive():
    run = build(
        toy(
            sde__name="ve", sde__sigma_max=7.0, model__features=(8, 4), objective__prediction="edm",
            objective__sigma_data=0.7, objective__times="log_normal", objective__mean=-1.0, eval__probes=3,
            eval__rtol=1e-3, eval__split="train", sampling__t_end=0.01, training__clip_norm=0.5,
            seed=5, eval__seed=6, sampling__seed=7,
        )
    )  # fmt: skip
    e = run.experiment
    assert (e.sde.sigma_min, e.sde.sigma_max, e.network.features) == (0.01, 7.0, (8, 4))
    assert (e.prediction.sigma_data, e.times.mean, e.times.std) == (0.7, -1.0, 1.2)
    assert (run.evaluation.divergence.probes, run.evaluation.rtol, run.evaluation.split) == (3, 1e-3, "train")
    assert (run.sampling.solve.keywords["t_end"], run.training.clip_norm) == (0.01, 0.5)
    assert (run.seed, run.eval_seed, run.sampling_seed) == (5, 6, 7)


def sampler_of(data="swiss_roll", **settings):
    """(function, its arguments, transform) that a sampling section stands for."""
    options = build(toy(data__name=data, **{f"sampling__{k}": v for k, v in settings.items()})).sampling
    return options.solve.func, options.solve.keywords, options.transform


def test_settings_of_samplers_arrive():
    solve, given, transform = sampler_of(
        sampler="unipc", order=2, unipc_corrector=False, bh=1, published=True, steps=7, temperature=0.5, denoise=False,
        grid="edm", grid_rho=5.0, corrector="langevin", snr=0.2, corrector_steps=3, corrector_levels=100.0,
        batch_norm=True, corrector_first=True, clip="dynamic", data="digits",
    )  # fmt: skip
    assert solve is ss.sample
    assert given["sampler"] == ss.PredictorCorrector(
        ss.UniPC(2, False, 1, published=True), ss.Langevin(0.2, 100.0, 3, batch_norm=True), corrector_first=True
    )
    assert (given["steps"], given["temperature"], given["denoise"]) == (7, 0.5, False)
    assert given["grid"].func is ss.grids.edm and given["grid"].keywords == {"rho": 5.0}
    assert transform.func is ss.DynamicThreshold and transform.keywords == {"low": -1.0, "high": 1.0}


def test_a_corrector_may_sample_alone_and_no_clip_is_no_transform():
    _, given, transform = sampler_of(sampler="none", corrector="annealed_langevin")
    assert given["sampler"] == ss.PredictorCorrector(None, ss.AnnealedLangevin()) and transform is None


@pytest.mark.parametrize("name, solve", [("adaptive_ode", ss.sample_adaptive), ("adaptive_sde", ss.sample_sde)])
def test_adaptive_solvers_take_tolerances(name, solve):
    found, given, _ = sampler_of(sampler=name, rtol=1e-3, t_end=0.1)
    assert found is solve and given == {"rtol": 1e-3, "t_end": 0.1, "temperature": 1.0, "denoise": True}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_the_whole_sampler(name):
    c = toy(sampling__sampler="unipc", sampling__order=2, sampling__num_samples=3, sampling__clip="static")
    configs.use_preset(c, name)
    assert c.sampling.num_samples == 3 and c.sampling.clip == "none"
    values = PRESETS[name][1]
    assert {k: c.sampling[k] for k in values} == values
    build(c)


def test_the_command_line_wins_over_its_preset():
    c = toy(sampling__preset="song_ve", sampling__snr=0.1, sampling__order=3)
    configs.choose_sampler(c, {"sampling.preset": "song_ve", "sampling.snr": 0.1})
    assert (c.sampling.sampler, c.sampling.snr, c.sampling.order) == ("reverse_diffusion", 0.1, None)


def test_another_sampler_on_the_command_line_drops_the_settings_of_the_config_s():
    c = toy(sampling__steps=33, sampling__grid="log_snr")
    configs.use_preset(c, "song_ve")
    c.sampling.sampler, c.sampling.order, c.sampling.steps = "unipc", 2, 33
    configs.choose_sampler(c, {"sampling.sampler": "unipc", "sampling.order": 2})
    assert (c.sampling.order, c.sampling.corrector, c.sampling.snr, c.sampling.preset) == (2, "none", None, None)
    assert c.sampling.steps == 33
    build(c)


def test_what_can_be_named_is_described():
    text = configs.describe_sampling()
    for table in (names.SAMPLERS, names.OTHER_SAMPLERS, names.CORRECTORS, names.GRIDS, PRESETS):
        assert all(f"\n  {name} " in text for name in table)


# --- refusals --------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
REFUSED = [  # key, value, part of the message
    ("seed", -1, "seed must be in 0..2^32 - 1, got -1"),
    ("eval__seed", 2**32, "eval.seed must be in"),
    ("sde__name", "vpp", "Did you mean 'vp'?"),
    ("model__name", "ml", "Did you mean 'mlp'?"),
    ("objective__prediction", "nois", "Did you mean 'noise'?"),
    ("objective__weighting", "likelyhood", "Did you mean 'likelihood'?"),
    ("objective__times", "log-normal", "Did you mean 'log_normal'?"),
    ("eval__divergence", "Exact", "Did you mean 'exact'?"),
    ("sampling__sampler", "euler-maruyama", "Did you mean 'euler_maruyama'?"),
    ("sampling__sampler", "euler", "Did you mean 'euler_maruyama'?"),
    ("sampling__sampler", "none", "sampling.sampler=none needs a sampling.corrector"),
    ("sampling__order", 3, "sampling.order is not a setting of sampler=euler_maruyama, corrector=none, grid=uniform"),
    ("sampling__snr", 0.2, "sampling.snr is not a setting of"),
    ("sampling__corrector", "langevn", "Did you mean 'langevin'?"),
    ("sampling__corrector_first", True, "sampling.corrector_first is not a setting of"),
    ("sampling__grid", "logsnr", "Did you mean 'log_snr'?"),
    ("sampling__grid_rho", 7.0, "sampling.grid_rho is not a setting of"),
    ("sampling__clip", "dynamics", "Did you mean 'dynamic'?"),
    ("sampling__clip", "static", "needs grey levels"),
    ("sampling__temperature", -1.0, "sampling.temperature must be at least 0, got -1.0"),
    ("sampling__rtol", 1e-3, "sampling.rtol is not a setting of"),
    ("data__name", "swissroll", "Did you mean 'swiss_roll'?"),
    ("data__name", "qqq", "got 'qqq'."),
    ("data__name", "image", "Did you mean 'images'?"),
    ("data__channels", 3, "data.channels is not a setting of name=swiss_roll"),
    ("data__name", "images", "data.dir must say where the images are, got None"),
    ("data__name", "images", "data.channels must be 1 (grey) or 3 (RGB) for images, got None"),
    ("data__name", "no_such_module:f", "got ModuleNotFoundError"),
    ("data__name", "score_sde.data:nothing", "got AttributeError"),
    ("data__name", "builtins:print", "got TypeError"),
    ("sde__sigma_min", 0.01, "sde.sigma_min is not a setting of name=vp"),
    ("model__nf", 8, "model.nf is not a setting of name=mlp"),
    ("objective__sigma_data", 0.5, "objective.sigma_data is not a setting of prediction=noise, weighting=sigma"),
    ("eval__chunk", 3, "eval.chunk is not a setting of divergence=hutchinson"),
    ("sde__beta_min", NAN, "sde.beta_min must be finite, got nan"),
    ("sde__beta_min", -0.1, "beta_min must be positive, got -0.1"),
    ("sde__beta_max", 0.05, "beta_max must be at least beta_min"),
    ("sde__beta_max", INF, "sde.beta_max must be finite, got inf"),
    ("data__range", (1.0, 1.0), "data.range must be two rising numbers"),
    ("data__range", (1.0,), "data.range must be two rising numbers"),
    ("data__range", ("a", "b"), "data.range must be two rising numbers"),
    ("data__range", (0.0, INF), "data.range must be finite"),
    ("data__flip", True, "data.flip needs images"),
    ("training__steps", None, "training.steps must be set, got None"),
    ("training__steps", True, "training.steps must be of type int, got True"),
    ("data__range", None, "data.range must be set"),
    ("training", None, "training.steps is missing"),
    ("model__features", (2**40,), "positive whole numbers up to 65536"),
    ("training__batch_size", 0, "training.batch_size must be at least 1, got 0"),
    ("training__steps", 0, "training.steps must be at least 1, got 0"),
    ("training__steps", -5, "training.steps must be at least 1, got -5"),
    ("training__steps_per_dispatch", 3, "must be a multiple of steps_per_dispatch = 3"),
    ("training__learning_rate", 0.0, "training.learning_rate must be positive, got 0.0"),
    ("training__learning_rate", NAN, "training.learning_rate must be finite, got nan"),
    ("training__learning_rate", INF, "training.learning_rate must be finite, got inf"),
    ("training__warmup", -1, "training.warmup must be at least 0"),
    ("training__clip_norm", NAN, "training.clip_norm must be finite"),
    ("training__clip_norm", -1.0, "training.clip_norm must be at least 0"),
    ("training__ema_rate", 1.0, "training.ema_rate must be in [0, 1), got 1.0"),
    ("training__eps", 0.0, "training.eps must be positive"),
    ("training__log_every", 0, "training.log_every must be at least 1"),
    ("training__checkpoint_every", 0, "training.checkpoint_every must be at least 1"),
    ("training__cpu_devices", -1, "training.cpu_devices must be at least 0, got -1"),
    ("sampling__steps", 0, "sampling.steps must be at least 1, got 0"),
    ("sampling__num_samples", 0, "sampling.num_samples must be at least 1, got 0"),
    ("sampling__batch_size", -2, "sampling.batch_size must be at least 1, got -2"),
    ("sampling__t_end", 2.0, "sampling.t_end must be in [t_min, t_max]"),
    ("sampling__t_end", NAN, "sampling.t_end must be finite"),
    ("eval__split", "valid", "eval.split must be train or test, got 'valid'"),
    ("eval__batch_size", 0, "eval.batch_size must be at least 1, got 0"),
    ("eval__num_examples", 0, "eval.num_examples must be at least 1, got 0"),
    ("eval__rtol", 0.0, "eval.rtol must be positive, got 0.0"),
    ("eval__atol", -1e-3, "eval.atol must be positive"),
    ("eval__atol", NAN, "eval.atol must be finite"),
    ("eval__probes", 0, "probes must be at least 1, got 0"),
    ("eval__passes", 0, "eval.passes must be at least 1, got 0"),
    ("eval__bound", "continous", "Did you mean 'continuous'?"),
    ("eval__bound_draws", 0, "eval.bound_draws must be at least 1, got 0"),
    ("eval__round_trip", -1, "eval.round_trip must be at least 0, got -1"),
    ("model__features", (), "model.features must be one or more positive whole numbers up to 65536, got ()"),
    ("model__features", (8, 0), "model.features must be one or more positive whole numbers"),
    ("model__embedding_dim", 1, "model.embedding_dim must be at least 2, got 1"),
    ("model__embedding_type", "sines", "expected embedding_type among"),
    ("model__fourier_scale", NAN, "model.fourier_scale must be finite"),
]


@pytest.mark.parametrize("key, value, message", REFUSED, ids=[f"{k}={v}" for k, v, _ in REFUSED])
def test_values_that_make_no_sense_are_refused(key, value, message):
    build(toy())
    with pytest.raises(ConfigError) as error:
        build(toy(**{key: value}))
    assert message in str(error.value)
    assert "\n" not in str(error.value) and not str(error.value).endswith("?.")


@pytest.mark.parametrize("settings, message", [
    (dict(sampler="unipc", order=4), "UniPC: order must be one of 1, 2, 3; got 4"),
    (dict(sampler="ddim", eta=1.5), "DDIM: eta must be in [0, 1], got 1.5"),
    (dict(sampler="edm_stochastic", s_min=3.0, s_max=2.0), "s_min must not exceed s_max"),
    (dict(corrector="langevin", snr=-0.1), "Langevin: snr must be at least 0, got -0.1"),
    (dict(corrector="langevin", corrector_steps=0), "Langevin: steps must be at least 1, got 0"),
    (dict(sampler="adaptive_ode", rtol=0.0), "sampling.rtol must be positive, got 0.0"),
    (dict(sampler="adaptive_sde", corrector="langevin"), "sampler=adaptive_sde takes no corrector, got 'langevin'"),
    (dict(sampler="adaptive_ode", order=3), "sampling.order is not a setting of sampler=adaptive_ode"),
    (dict(sampler="adaptive_ode", trajectory=5), "sampling.sampler=adaptive_ode keeps no trajectory"),
    (dict(steps=10, trajectory=1), "sampling.trajectory must be 0 or in 2..11 (steps + 1), got 1"),
    (dict(steps=10, trajectory=12), "sampling.trajectory must be 0 or in 2..11 (steps + 1), got 12"),
    (dict(grid="edm", grid_rho=0.0), "sampling.grid_rho must be positive, got 0.0"),
])  # fmt: skip
def test_samplers_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        sampler_of(**settings)
    assert message in str(error.value)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'song_vp'"):
        configs.use_preset(toy(), "song_pv")


@pytest.mark.parametrize("key, value, message", [
    ("model__ch_mult", (1, 1, 1, 1, 1), "height and width divisible by 16 for the 5 levels of ch_mult, got 8x8"),
    ("model__ch_mult", (), "model.ch_mult must be one or more positive whole numbers up to 65536, got ()"),
    ("model__nf", 0, "model.nf must be at least 2, got 0"),
    ("model__nf", -4, "model.nf must be at least 2, got -4"),
    ("model__num_res_blocks", -1, "model.num_res_blocks must be at least 1, got -1"),
    ("model__dropout", 1.0, "model.dropout must be in [0, 1), got 1.0"),
    ("model__dropout", -0.5, "model.dropout must be in [0, 1), got -0.5"),
    ("model__init_scale", -1.0, "model.init_scale must be at least 0"),
    ("model__features", (8,), "model.features is not a setting of name=unet"),
    ("model__head_channels", -1, "model.head_channels must be at least 0, got -1"),
    ("model__num_classes", -1, "model.num_classes must be at least 0, got -1"),
    ("model__augment_dim", 5, "model.augment_dim must be 0, or 9"),
    ("restore__noise", -0.1, "restore.noise must be at least 0, got -0.1"),
    ("restore__samples", 0, "restore.samples must be at least 1, got 0"),
    ("restore__measured", True, "restore.measured needs restore.input"),
    ("restore__factor", 2, "restore.factor is not a setting of operator=inpaint, method=pigdm"),
    ("restore__operator", "inpant", "Did you mean 'inpaint'?"),
    ("restore__method", "pgdm", "Did you mean 'pigdm'?"),
    ("objective__label_dropout", 1.5, "objective.label_dropout must be in [0, 1], got 1.5"),
    ("model__scale_by_sigma", True, "model.scale_by_sigma needs sde.name=ve, whose label is log sigma, got 'vp'"),
    ("model__progressive", "skip", "expected progressive among"),
    ("model__fir_kernel", (1,), "expected a fir_kernel of two or more numbers"),
])  # fmt: skip
def test_networks_and_measurements_that_cannot_be_are_refused(key, value, message):
    build(small_unet())
    with pytest.raises(ConfigError) as error:
        build(small_unet(**{key: value}))
    assert message in str(error.value)


def test_a_unet_on_points_is_refused():
    with pytest.raises(ConfigError, match="expected images|UNet.__call__"):
        build(small_unet(data__name="two_moons"))


@pytest.mark.parametrize("key", ["training__batch_size", "sampling__batch_size", "eval__batch_size"])
def test_batches_that_the_devices_cannot_share_are_refused(key):
    c = toy(training__batch_size=8, sampling__batch_size=8, eval__batch_size=8)
    build(c, devices=4)
    with pytest.raises(ConfigError, match=rf"{key.replace('__', '.')} must be a multiple of the 4 devices, got 6"):
        build(changed(c, {key: 6}), devices=4)


def test_all_problems_come_in_one_message():
    with pytest.raises(ConfigError) as error:
        build(toy(sde__name="vpp", training__steps=0, eval__rtol=NAN, model__nf=8))
    for part in ("sde.name", "training.steps must", "eval.rtol must be finite", "model.nf is not a setting"):
        assert str(error.value).count(part) == 1


def test_types_are_kept():
    with pytest.raises(TypeError):
        toy(training__steps="many")
    with pytest.raises(KeyError, match='Did you mean "steps"'):
        toy(training__stepz=3)


@pytest.mark.parametrize("text", ["", "[]", '{"config": 3}', '{"config": {"sde": {"nme": "vp"}}}', '{"seed": 1}',
                                  '{"config": {"seed": "one"}}', '{"config": {"sde": 3}}'])  # fmt: skip
def test_a_damaged_file_is_refused(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="config.json is damaged"):
        get_config(str(path))


# Whole numbers that may be as large as they can be: they take time, or nothing.
ONLY_TIME = {
    "training.steps", "training.warmup", "training.log_every", "training.checkpoint_every", "training.snapshot_every",
    "training.max_bad_steps", "eval.num_examples", "eval.round_trip", "sampling.label", "seed", "sampling.seed",
    "eval.seed", "guidance.step",
}  # fmt: skip


def test_no_number_asks_for_more_memory_than_there_is(monkeypatch):
    monkeypatch.setenv("SCORE_SDE_MAX_MEMORY", str(2**33))
    whole = {key for key in flatten(base_config()) if type_of(base_config(), key) is int}
    for key in whole - ONLY_TIME:
        with pytest.raises(ConfigError, match=r"^\w+(\.\w+)?\b.* (asks for at least|must|not a setting)"):
            build(toy(**{key.replace(".", "__"): 2**31 - 8}))


def test_the_limit_of_memory_can_be_raised(monkeypatch):
    huge = toy(sampling__batch_size=2**31 - 8)
    monkeypatch.setenv("SCORE_SDE_MAX_MEMORY", str(2**33))
    with pytest.raises(ConfigError, match="sampling.batch_size asks for at least 51.5 GB of memory, and there are 8.6"):
        build(huge)
    monkeypatch.setenv("SCORE_SDE_MAX_MEMORY", str(2**36))
    assert build(huge).sampling.batch_size == 2**31 - 8
    monkeypatch.setenv("SCORE_SDE_MAX_MEMORY", "much")
    with pytest.raises(ConfigError, match="SCORE_SDE_MAX_MEMORY must be a whole number of bytes, got 'much'"):
        build(huge)
    monkeypatch.delenv("SCORE_SDE_MAX_MEMORY")
    assert 2**28 < most_memory() < 2**50


# --- users' own data -------------------------------------------------------------------------------------------------


def own(name, path, **settings):
    return toy(data__name=name, data__dir=str(path), **settings)


def test_images_tell_their_shape_before_they_are_decoded(own_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path))
    run = build(own("images", own_data["images"], data__channels=1))
    assert (run.experiment.shape, run.experiment.levels, run.own_data) == ((40, 36, 1), 256, True)
    assert not list(tmp_path.iterdir())
    source = run.experiment.load("train")
    assert len(source) == 2 and source is run.experiment.load("train") and list(tmp_path.iterdir())
    assert build(own("images", own_data["images"], data__channels=3, data__size=8)).experiment.shape == (8, 8, 3)


def test_arrays_tell_their_shape(own_data, tmp_path):
    run = build(own("arrays", own_data["arrays"]))
    assert (run.experiment.shape, run.experiment.levels, len(run.experiment.load("test"))) == ((4,), None, 3)
    np.save(tmp_path / "x.npy", np.arange(12).reshape(6, 2))
    assert build(own("arrays", tmp_path / "x.npy", data__levels=12)).experiment.levels == 12


def test_problems_of_the_data_come_with_all_others(tmp_path):
    with pytest.raises(ConfigError) as caught:
        build(own("arrays", tmp_path / "none.npy", training__steps=0))
    assert "none.npy" in str(caught.value) and "training.steps must be" in str(caught.value)
    with pytest.raises(ConfigError, match="data.levels must be in 2..65536, got 1"):
        build(own("arrays", tmp_path / "none.npy", data__levels=1))
    with pytest.raises(ConfigError, match="data.size must be at least 1, got 0"):
        build(own("images", tmp_path, data__channels=3, data__size=0))


MODULE = """
import numpy as np
from score_sde.data import ArraySource

def source(split, directory):
    assert directory is None
    return ArraySource(np.full((12 if split == "train" else 3, 2), 0.5, np.float32))

def wrong(split, directory):
    return [1, 2]

def broken(split, directory):
    return 1 / 0
"""


def test_a_user_s_source(tmp_path, monkeypatch):
    (tmp_path / "users_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    run = build(toy(data__name="users_module:source"))
    assert run.experiment.shape == (2,) and run.own_data
    assert [len(run.experiment.load(split)) for split in ("train", "test")] == [12, 3]
    with pytest.raises(ConfigError, match="TypeError .*list returned, which lacks something of score_sde.data.Source"):
        build(toy(data__name="users_module:wrong"))
    with pytest.raises(ConfigError, match="ZeroDivisionError in users_module.py, line 13: division by zero"):
        build(toy(data__name="users_module:broken"))
