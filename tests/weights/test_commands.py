"""The command: runs that every mode takes, what is refused, and what it prints."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from score_sde import main as command_line
from score_sde.config import build
from score_sde.main import load
from score_sde.weights.__main__ import HELP, main
from score_sde.weights.conventions import PUBLISHED, config_of
from score_sde.weights.errors import WeightsError
from score_sde.weights.naming import as_file, shapes, slots
from score_sde.weights.opening import CONFIG_KEY, STEP_KEY, Found, open_weights
from score_sde.weights.tensors import write_safetensors
from tests.weights.networks import restored, write_config

TINY = dict(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), dropout=0.0, resblock_type="ddpm")
TINY |= dict(skip_rescale=False, attend_each_up=True, norm_groups=4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, random weights) of a tiny network in folder/tiny.safetensors, with its config."""
    return save(tmp_path_factory.mktemp("weights"), TINY)


def save(folder, fields):
    return save_of(folder, load(str(write_config(folder / "config.py", fields))))


def save_of(folder, config):
    experiment, draw = build(config).experiment, np.random.default_rng(0)
    net, shape = experiment.network, experiment.shape
    flat = {path: np.float32(0.1 * draw.standard_normal(s)) for path, s in shapes(net, shape).items()}
    params = traverse_util.unflatten_dict(flat, sep="/")
    header = {CONFIG_KEY: json.dumps({"config": json.loads(config.to_json())}), STEP_KEY: "70"}
    write_safetensors(folder / "tiny.safetensors", as_file(slots(net, shape, "ours"), params), header)
    return folder, params


@pytest.mark.slow
def test_in_and_out_again(exported, capsys):
    folder, params = exported
    run, again, diffusers = folder / "run", folder / "again.safetensors", folder / "diffusers"
    assert main(["import", str(folder / "tiny.safetensors"), str(run), "--config.training.learning_rate=1e-5"]) == 0
    objects, state = restored(run)
    assert (int(state.step), objects.training.learning_rate) == (70, 1e-5)
    for tree in (state.params, state.ema):
        jax.tree.map(np.testing.assert_array_equal, tree, params)
    assert main(["export", str(run), str(again)]) == 0 == main(["export", str(run), str(diffusers)])
    first, second, third = (open_weights(p) for p in (folder / "tiny.safetensors", again, diffusers))
    assert second.step == 70 and second.tensors.keys() == first.tensors.keys()
    assert all(np.array_equal(second.tensors[k], first.tensors[k]) for k in first.tensors)
    assert third.unet["norm_num_groups"] == 4 and len(third.tensors) == len(first.tensors)
    capsys.readouterr()
    assert main(["inspect", str(diffusers)]) == 0
    said = capsys.readouterr().out
    assert "matches" in said and f"{len(first.tensors)} of the network's {len(first.tensors)}" in said

    for path in (again, diffusers):  # and nothing is overwritten
        assert main(["export", str(run), str(path)]) == 1
    assert main(["import", str(again), str(run)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all("overwrites nothing" in line for line in said)


def test_a_network_that_is_no_unet_has_one_layout(tmp_path, capsys):
    config = load(str(Path(__file__).parents[2] / "configs" / "vp_toy.py"))
    with config.unlocked():
        config.model.features = (8,)
    save_of(tmp_path, config)
    first, run, again = (tmp_path / name for name in ("tiny.safetensors", "run", "again.safetensors"))
    assert main(["import", str(first), str(run)]) == 0 == main(["export", str(run), str(again)])
    tensors = [open_weights(path).tensors for path in (first, again)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(np.array_equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert main(["export", str(run), str(tmp_path / "diffusers")]) == 1
    assert "no mlp. Export to a .safetensors" in (said := capsys.readouterr().err) and said.count("\n") == 1
    with pytest.raises(WeightsError, match="expected a UNet for the names of diffusers, got MLP"):
        slots(build(config).experiment.network, (2,), "diffusers")


@pytest.mark.slow
def test_every_mode_takes_an_imported_run(tmp_path, capsys):
    """Sampling needs no data; the others say what they need, and go on from the weights."""
    folder, params = save(tmp_path, TINY | dict(ch_mult=(1,)))
    run, images = tmp_path / "run", tmp_path / "images"
    images.mkdir()
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    flags = ["--config.training.learning_rate=1e-4", "--config.training.warmup=0"]
    assert main(["import", str(folder / "tiny.safetensors"), str(run), *flags]) == 0
    sampling = [f"--workdir={run}", "--mode=sample", "--config.sampling.steps=2"]
    assert command_line.main(sampling) == 0
    assert np.load(run / "samples" / "sample_00000070.npz")["samples"].shape == (4, 8, 8, 3)
    assert command_line.main([f"--workdir={run}", "--mode=eval"]) == 1
    assert "data.dir" in capsys.readouterr().err
    data = f"--config.data.dir={images}"
    quick = [
        "--config.eval.rtol=0.1",
        "--config.eval.atol=0.1",
        "--config.eval.bound=none",
        "--config.eval.round_trip=0",
    ]
    assert command_line.main([f"--workdir={run}", "--mode=eval", data, *quick]) == 0
    training = [f"--workdir={run}", "--mode=train", data, "--config.training.steps=72"]
    assert command_line.main(training) == 0
    state = restored(run)[1]
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (state.params, params)), strict=True)]
    assert int(state.step) == 72 and 0 < max(moved) < 1e-3


def test_a_file_that_does_not_fit_leaves_nothing_behind(exported, capsys):
    folder, _ = exported
    before = sorted(folder.iterdir())
    path, other = str(folder / "tiny.safetensors"), str(folder / "other")
    assert main(["import", path, other, "--config.model.nf=16"]) == 1
    said = capsys.readouterr().err
    assert "shapes that fit" in said and said.count("\n") == 1
    assert main(["import", path, other, "--config.model.attn_resolutions=(4,)"]) == 1
    assert "expected all tensors of the network" in capsys.readouterr().err
    assert main(["inspect", path, "--config.model.nf=16"]) == 1
    assert "misshapen" in capsys.readouterr().out
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "words, message",
    [
        (["look", "x"], "inspect, import or export"),
        (["import", "x"], "PATH and WORKDIR"),
        (["export", "x", "y", "--config.seed=1"], "no flag but"),
        (["export", "nowhere", "y"], "no run at nowhere"),
        (["inspect", "{}/tiny.safetensors", "--config.sed=1"], "unknown config key 'sed'"),
        (["inspect", "{}/tiny.safetensors", "--config=none.py"], "no config file"),
    ],
)
def test_mistakes_are_told_in_one_line(exported, words, message, capsys):
    assert main([word.format(exported[0]) for word in words]) == 1
    assert message in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_help_teaches(capsys):
    assert main(["--help"]) == 0 and capsys.readouterr().out == HELP + "\n"
    assert main([]) == 2


@pytest.mark.parametrize("parameters", PUBLISHED)
def test_weights_that_do_not_say_their_network_are_told_by_their_size(parameters):
    tensors = {"all_modules.0.weight": np.broadcast_to(np.float32(0), (parameters,)), "sigmas": np.zeros(10)}
    found = Found("Score-SDE checkpoint of PyTorch", "torch", tensors, tensors)
    with pytest.raises(WeightsError, match="give --config=FILE.py.*" + PUBLISHED[parameters][1]):
        config_of(found, Path("checkpoint"), None)
