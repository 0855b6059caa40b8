"""Samples of a perfect network have the moments of the closed form, one for each key, in readable files."""

import dataclasses
import io
import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import score_sde as ss
from score_sde.evaluation import samples as samples_room
from score_sde.evaluation.provenance import Origin, Provenance
from score_sde.evaluation.samples import (
    Generated,
    NonFiniteSamples,
    SamplingOptions,
    scaled_for_display,
    write_samples,
)
from score_sde.evaluation.samples import generate as generate_with_nfe
from score_sde.plots import image_grid
from tests.evaluation.stub import TARGET, experiment

X = np.zeros((4, 2), np.float32)


def options(*, num_samples=3000, batch_size=1024, transform=None, steps=100, trajectory=0, **changes):
    solve = partial(ss.sample, **{"sampler": ss.EulerMaruyama(), "steps": steps, "denoise": True, **changes})
    return SamplingOptions(solve, num_samples, batch_size, steps, transform, trajectory)


MADE = Provenance("samples", "some", Origin("run", step=1), {"seed": 0})


def write(samples, levels, stem, states=None):
    found = Generated(samples, np.full(len(samples), 9), states, np.ones(len(samples), bool))
    return write_samples(dataclasses.replace(experiment(X), levels=levels), found, stem, MADE)


def generate(*args, progress=False, **kwargs):
    return generate_with_nfe(*args, progress=progress, **kwargs)[0]


@pytest.fixture(scope="module")
def samples():
    return generate(experiment(X), {}, options(), seed=0)


def test_samples_have_the_moments_of_the_closed_form(samples):
    n, mean, covariance = 3000, np.asarray(TARGET.mean), np.asarray(TARGET.covariance)
    assert samples.shape == (n, 2) and samples.dtype == np.float32
    # 4 standard errors, and 0.02 for the bias of 100 Euler steps of at most beta dt = 0.2
    assert np.abs(samples.mean(0) - mean).max() < 4 * (0.3 / n) ** 0.5 + 0.02
    assert np.abs(np.cov(samples.T) - covariance).max() < 4 * 0.3 * (2 / n) ** 0.5 + 0.02


def test_samples_are_all_different(samples):
    assert len(np.unique(samples, axis=0)) == len(samples)


def test_sample_i_is_the_same_for_each_batch_and_number(samples):
    few = generate(experiment(X), {}, options(num_samples=7, batch_size=4), seed=0)
    assert few.shape == (7, 2)
    np.testing.assert_allclose(few, samples[:7], rtol=1e-5, atol=1e-5)  # 100 steps of rounding


@pytest.mark.slow
def test_seed_end_and_denoising_are_used():
    some = {"num_samples": 4, "batch_size": 4}
    e = experiment(X)
    first = generate(e, {}, options(**some), seed=0)
    for changed, seed in [(options(**some), 1), (options(t_end=0.1, **some), 0), (options(steps=50, **some), 0)]:
        assert np.abs(generate(e, {}, changed, seed=seed) - first).min() > 0
    noisy = generate(e, {}, options(denoise=False, **some), seed=0)
    assert 0 < np.abs(noisy - first).max() < 0.1  # sigma(1e-3) = 0.01


def test_grey_levels_come_back_as_they_are_stored():
    # N(0.5, tiny) in [-1, 1) with 16 levels is level 12: 0.5 is where it begins, and 0.56 inside
    target = ss.Gaussian(np.array([0.56, -0.94], np.float32), np.float32(1e-6))
    e = experiment(np.zeros((4, 2), np.uint8), target=target, levels=16)
    found = generate(e, {}, options(num_samples=8, batch_size=8), seed=0)
    assert found.dtype == np.uint8 and found.tolist() == [[12, 0]] * 8


class NanAbove(nn.Module):
    """A network that returns nan where the first number is above two."""

    @nn.compact
    def __call__(self, x, label, *, train=False):
        return jnp.where(x[:, :1, :1] > 2, jnp.nan, x)


def test_samples_that_are_finite_are_not_lost_for_one_that_is_not(tmp_path):
    """Half an hour of samples is worth more than an error: they are in it, and their writer says which are good."""
    shape = (4, 4, 1)
    e = dataclasses.replace(experiment(X), network=NanAbove(), levels=16, shape=shape)
    with pytest.raises(NonFiniteSamples, match="of 40 samples are not finite .* sampling.clip=static") as raised:
        generate(e, {}, options(num_samples=40, batch_size=20, steps=2), seed=0)
    found = raised.value.found
    assert found.x.shape == (40, *shape) and 0 < found.finite.sum() < 40
    told, values, png = write_samples(e, found, tmp_path / "a", MADE)
    with np.load(values, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["finite"], found.finite)
        np.testing.assert_array_equal(arrays["samples"], found.x)
    assert json.loads(told.read_text())["not_finite"] == np.flatnonzero(~found.finite).tolist() and png.is_file()


def test_a_batch_without_a_finite_sample_ends_the_work(tmp_path):
    with pytest.raises(NonFiniteSamples, match=r"4 of 4 samples are not finite \(0, 1, 2, 3\)") as raised:
        generate(experiment(X, broken=True), {}, options(num_samples=1000, batch_size=4), seed=0)
    assert [p.name for p in write_samples(experiment(X), raised.value.found, tmp_path / "a", MADE)] == [
        "a.json", "a.npz",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "solve, steps, most",
    [
        (partial(ss.sample, sampler=ss.UniPC(), steps=9, grid=ss.grids.log_snr), 9, 13),
        (partial(ss.sample_adaptive, rtol=1e-3, atol=1e-3), None, 200),
        pytest.param(partial(ss.sample_sde, rtol=1e-1, atol=1e-1, resolution=2**-8), None, 500, marks=pytest.mark.slow),
    ],
    ids=["steps", "adaptive_ode", "adaptive_sde"],
)
def test_any_solver_samples_and_its_evaluations_are_counted(solve, steps, most):
    x, nfe, *_ = generate_with_nfe(experiment(X), {}, SamplingOptions(solve, 6, 4, steps), seed=0, progress=True)
    assert x.shape == (6, 2) and nfe.shape == (6,) and 0 < nfe.min() and nfe.max() <= most
    assert np.abs(x - np.asarray(TARGET.mean)).max() < 5 * 0.3**0.5  # 5 standard deviations


def test_a_transform_acts_on_the_score():
    clip = partial(ss.Clipped, low=-0.1, high=0.1)
    found = generate(experiment(X), {}, options(num_samples=8, batch_size=8, transform=clip), seed=0)
    assert np.abs(found).max() <= 0.1 + 1e-6  # denoised: the clipped prediction itself


def test_a_second_call_compiles_nothing():
    e, o = experiment(X), options(num_samples=4, batch_size=4, steps=3)
    generate(e, {}, o, seed=0)
    run, _ = samples_room._compiled(e, o)
    assert samples_room._compiled(e, o)[0] is run


def test_progress_within_a_batch_is_shown_now_and_then(capsys):
    o = options(num_samples=6, batch_size=4, steps=100)
    bar = samples_room.Progress("sample", 6)
    watch = samples_room.within_batch(bar, 4, o, o.num_samples, pause=-1.0)
    for step in (0, 50, 30, 100):  # callbacks may arrive out of order
        watch(step)
    assert [line.split()[1:4] for line in capsys.readouterr().err.splitlines()] == [
        ["5/6", "step", "50/100"], ["5/6", "step", "100/100"],
    ]  # fmt: skip


def test_progress_counts_samples_not_batches(capsys):
    generate(experiment(X), {}, options(num_samples=6, batch_size=4, steps=2), seed=0, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["4/6", "6/6"]


@pytest.mark.parametrize(
    "samples, levels, size",
    [
        (np.zeros((5, 8, 8, 1), np.uint8), 17, (3 * 34, 2 * 34)),
        (np.zeros((5, 8, 8, 3), np.uint8), 256, (3 * 34, 2 * 34)),
        (np.zeros((150, 8, 8, 1), np.uint8), 17, (340, 340)),  # the first 100
        (np.ones((5, 2), np.float32), None, (384, 384)),
    ],
)
def test_files_are_readable(samples, levels, size, tmp_path):
    written = write(samples, levels, tmp_path / "samples" / "step_00000001")
    assert [p.name for p in written] == ["step_00000001.json", "step_00000001.npz", "step_00000001.png"]
    with np.load(written[1], allow_pickle=False) as found:
        np.testing.assert_array_equal(found["samples"], samples)
        assert found["samples"].dtype == samples.dtype
    with Image.open(written[2]) as image:
        image.load()
        assert image.size == size


def test_data_without_a_picture_make_an_array_alone(tmp_path):
    written = write(np.ones((5, 3), np.float32), None, tmp_path / "x")
    assert [p.name for p in written] == ["x.json", "x.npz"] and set(tmp_path.iterdir()) == set(written)


# --- trajectories -----------------------------------------------------------------------------------------------------


def test_a_trajectory_goes_from_noise_to_the_samples_and_changes_none(monkeypatch):
    monkeypatch.setattr(samples_room, "_shown", lambda levels: 60)  # what a picture shows is followed, no more
    o = options(num_samples=70, batch_size=16, steps=10)
    plain = generate_with_nfe(experiment(X), {}, o, seed=0, progress=False)
    found = generate_with_nfe(experiment(X), {}, dataclasses.replace(o, trajectory=4), seed=0, progress=False)
    assert plain.states is None and found.states.shape == (4, 60, 2)
    np.testing.assert_array_equal(found.states[-1], found.x[:60])
    np.testing.assert_allclose(found.x, plain.x, atol=1e-6)  # another program may round otherwise
    assert found.nfe.tolist() == plain.nfe.tolist()
    assert found.states[0].std() == pytest.approx(1.0, abs=4 / 240**0.5)  # the prior
    # Moments of 10 steps even in their number: 0, 3, 7, 10; the state there is a solve to that time, not denoised.
    times = np.linspace(1.0, 1e-3, 11)
    to = options(num_samples=70, batch_size=16, denoise=False, grid=jax.numpy.asarray(times[:4], np.float32))
    np.testing.assert_allclose(found.states[1], generate(experiment(X), {}, to, seed=0)[:60], atol=1e-5)


def test_all_moments_are_shown_at_the_spread_of_the_last():
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(3, 200, 4)).astype(np.float32)
    last = (0.2 * unit[2] - 0.5)[None]
    shown = scaled_for_display(np.concatenate([50 * unit[:1], unit[1:2] + 3, last]))
    np.testing.assert_array_equal(shown[2], last[0])
    np.testing.assert_allclose(shown.std(axis=(1, 2)), last.std(), rtol=1e-4)
    np.testing.assert_allclose(shown.mean(axis=(1, 2)), last.mean(), rtol=1e-4)


def test_the_last_column_is_the_samples_written(tmp_path):
    e = experiment(np.zeros((4, 2), np.uint8), levels=16)
    last = np.random.default_rng(0).uniform(-1, 1, size=(9, 8, 8, 1)).astype(np.float32)
    states = np.stack([30 * np.random.default_rng(1).normal(size=last.shape).astype(np.float32), last])
    samples = e.unscale(jax.numpy.asarray(last))
    written = write(samples, 16, tmp_path / "a", states)[3:]
    assert [p.name for p in written] == ["a_strip.png", "a.gif"]
    with Image.open(written[0]) as image:
        found = np.asarray(image)
    assert found.shape == (8 * 34, 2 * 34)
    np.testing.assert_array_equal(found[:, 34:], Image.open(io.BytesIO(image_grid(samples[:8], 16, columns=1))))
    inside = found[:, :34] != 64
    assert len(np.unique(found[:, :34][inside])) == 16  # noise, and not all of it at the ends
    assert ((found[:, :34] > 0) & (found[:, :34] < 255)).mean() > 0.5
    with Image.open(written[1]) as image, Image.open(tmp_path / "a.png") as picture:
        image.seek(1)
        np.testing.assert_array_equal(image.convert("L"), picture)
