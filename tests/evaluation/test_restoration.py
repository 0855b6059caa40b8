"""Restored samples are of the posterior, each of its own measurement; figures and pictures say what they should."""

import dataclasses
import io
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import score_sde as ss
from score_sde.data import DataError
from score_sde.evaluation import measured
from score_sde.evaluation.provenance import Origin, Provenance
from score_sde.evaluation.restoration import (
    Restored,
    RestoreOptions,
    assess,
    displayed,
    keep_in_range,
    observed_range,
    read_input,
    restore,
    write_restored,
)
from score_sde.evaluation.samples import NonFiniteSamples, SamplingOptions
from score_sde.plots import restorations
from tests.evaluation.stub import TARGET, experiment

POINTS = np.array([[0.5, -0.4], [-0.2, 0.1], [1.0, 0.6]], np.float32)
ONE = measured.Project(measurements=1)
EXACT = measured.MomentMatching(iterations=2)


def how(steps=150, batch_size=512, sampler=None):
    sampler = sampler or ss.DDIM(eta=1.0)
    solve = partial(ss.sample, sampler=sampler, steps=steps, grid=ss.grids.log_snr, t_end=None, denoise=True)
    return SamplingOptions(solve, 8, batch_size, steps, sampler=sampler)


def posterior(matrix, y, noise):
    """Mean and covariance of the target given y = matrix x + noise z."""
    mean, covariance = (np.asarray(v, np.float64) for v in (TARGET.mean, TARGET.covariance))
    gain = covariance @ matrix.T @ np.linalg.inv(matrix @ covariance @ matrix.T + noise**2 * np.eye(len(matrix)))
    return mean + gain @ (y - matrix @ mean), covariance - gain @ matrix @ covariance


# The bias that is left is of 600 steps (150 make the variance 8 % too small), and of 64 particles.
@pytest.mark.parametrize("method", [EXACT, pytest.param(measured.SMC(particles=64), marks=pytest.mark.slow)])
def test_samples_have_the_posterior_of_a_gaussian(method):
    noise, samples = 0.3, 2048
    options = RestoreOptions(ONE, method, noise, samples=samples, measured=True)
    matrix = np.asarray(ONE((2,)).matrix, np.float64)
    y = np.array([[0.8], [-0.5]], np.float32)
    restored = restore(experiment(POINTS), {}, how(steps=600), options, y, seed=0)
    assert restored.truth is None and restored.samples.shape == (2, samples, 2)
    np.testing.assert_array_equal(restored.measurements, y)
    for one, x in zip(y, restored.samples, strict=True):
        mean, covariance = posterior(matrix, one, noise)
        spread = np.sqrt(np.diag(covariance))
        assert (np.abs(x.mean(0) - mean) < 4 * spread / samples**0.5 + 0.02).all()
        assert np.abs(np.cov(x.T) - covariance).max() < 4 * 0.3 * (2 / samples) ** 0.5


def test_a_sample_is_of_its_own_measurement_whatever_the_batch():
    options = RestoreOptions(ONE, EXACT, 0.1, samples=2)
    few, all_at_once = (
        restore(experiment(POINTS), {}, how(steps=10, batch_size=size), options, POINTS, seed=3) for size in (4, 64)
    )
    np.testing.assert_array_equal(few.measurements, all_at_once.measurements)
    np.testing.assert_allclose(few.samples, all_at_once.samples, atol=1e-4)
    assert len(np.unique(few.samples.reshape(6, 2).round(4), axis=0)) == 6


def test_measurements_have_the_noise_that_was_asked_for():
    x = np.zeros((4000, 2), np.float32)
    e, options = experiment(x), RestoreOptions(ONE, measured.Projection(), 0.3, samples=1)
    restored = restore(e, {}, how(steps=1, batch_size=4000), options, x, seed=0)
    assert abs(restored.measurements.std() - 0.3) < 4 * 0.3 / (2 * 4000) ** 0.5


def images(n=1, channels=1, size=8):
    e = experiment(np.zeros((4, 2), np.uint8), levels=256)
    return dataclasses.replace(e, shape=(size, size, channels)), np.zeros((n, size, size, channels), np.float32)


@pytest.mark.parametrize("spec, wanted", [
    (measured.Inpaint("left"), 32), (measured.Inpaint("top"), 32), (measured.Inpaint("border"), 48),
    (measured.Fourier(0.5), 64), (measured.SuperResolve(2), 16), (measured.Deblur(0.7), 64), (measured.Project(5), 5),
])  # fmt: skip
def test_operators_by_name_see_what_they_say(spec, wanted):
    operator = spec((8, 8, 1))
    assert operator.rank == wanted
    x = jnp.arange(64.0).reshape(1, 8, 8, 1)
    if spec == measured.Inpaint("left"):
        np.testing.assert_array_equal(operator(x)[0, :, :4], x[0, :, :4])
        assert not operator(x)[0, :, 4:].any()
    assert displayed(operator, np.asarray(operator(x))).shape == x.shape
    assert measured.settings_of(spec).startswith(measured.name_of(spec))


def test_a_mask_comes_from_a_file(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[2] = 255
    Image.fromarray(pixels).save(file := tmp_path / "mask.png")
    np.testing.assert_array_equal(measured.Inpaint(str(file))((8, 8, 3)).mask[..., 0], pixels / 255)


@pytest.mark.parametrize("spec, shape, message", [
    (measured.Inpaint("lef"), (8, 8, 1), "restore.known to be left, right"),
    (measured.Inpaint(), (2,), "expected images"),
    (measured.Colourise(), (8, 8, 1), "expected colour images"),
    (measured.SuperResolve(3), (8, 8, 1), "divisible by 3"),
    (measured.SuperResolve(0), (8, 8, 1), "restore.factor of at least 1"),
    (measured.Deblur(0.0), (8, 8, 1), "restore.blur to be positive"),
    (measured.Fourier(1.5), (8, 8, 1), "restore.share to be a share of the 8 rows"),
    (measured.Project(65), (8, 8, 1), "restore.measurements in 1..64"),
])  # fmt: skip
def test_operators_that_do_not_fit_are_refused(spec, shape, message):
    with pytest.raises(ValueError, match=message):
        spec(shape)


def test_files_to_restore(tmp_path):
    e, _ = images()
    options = RestoreOptions(measured.SuperResolve(2), EXACT, input=str(tmp_path / "x.png"))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_input(e, options)[0, ..., 0], pixels)
    np.save(tmp_path / "x.npy", pixels[:4, :4, None] / 255.0)
    known = dataclasses.replace(options, input=str(tmp_path / "x.npy"), measured=True)
    assert read_input(e, known).shape == (1, 4, 4, 1)
    for x, message in [
        (np.full((8, 8, 1), np.nan), "expected finite numbers, got nan"),
        (np.zeros((8, 7, 1)), "expected an array of shape"),
        (np.full((8, 8, 1), 256), "expected grey levels in 0..255"),
    ]:
        np.save(tmp_path / "bad.npy", x)
        with pytest.raises(DataError, match=message):
            read_input(e, dataclasses.replace(options, input=str(tmp_path / "bad.npy")))
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    for name, message in [("bad.npy", "expected a .npy array"), ("bad.png", "expected a PNG"), ("no.npy", "No such")]:
        with pytest.raises(DataError, match=message):
            read_input(e, dataclasses.replace(options, input=str(tmp_path / name)))
    with pytest.raises(DataError, match="expected 4x4 pixels, got 8x8"):
        read_input(e, dataclasses.replace(options, measured=True))


def test_the_figures_of_restored_samples():
    e, _ = images()
    rng = np.random.default_rng(0)
    options = RestoreOptions(measured.Inpaint("left"), EXACT, 0.1)
    centre = rng.normal(size=(200, 1, 8, 8, 1)) * 0.3
    draws = (centre + 0.2 * rng.normal(size=(200, 5, 8, 8, 1))).astype(np.float32)  # truth and samples alike
    operator = options.operator(e.shape)
    truth = draws[:, 0]
    y = operator(jnp.asarray(truth)) + 0.1 * rng.normal(size=truth.shape).astype(np.float32)
    report = assess(e, options, Restored(truth, np.asarray(operator.restrict(y)), draws[:, 1:], 1.0))
    assert abs(report.spread - 1) < 0.03
    # data range 2: 10 log10(4 / 0.04 (1 + 1/4)) and 10 log10(4 / (2 * 0.04))
    assert abs(report.psnr_of_mean - 19.03) < 0.1 and abs(report.psnr_of_sample - 16.99) < 0.1
    assert abs(report.misfit - np.sqrt(1 + 2 * 0.04 / 0.01)) < 0.1
    assert len(report.table().splitlines()) == 4
    unknown = assess(e, options, Restored(None, np.asarray(operator.restrict(y)), draws[:, 1:], 1.0))
    assert unknown.psnr_of_mean is None and len(unknown.table().splitlines()) == 1


@pytest.mark.parametrize("channels, spec", [(1, measured.Inpaint()), (3, measured.Colourise()), (3, ONE)])
@pytest.mark.parametrize("known", [True, False])
def test_what_is_written(channels, spec, known, tmp_path):
    e, zeros = images(2, channels)
    y = np.zeros((2, *spec(e.shape).output.shape), np.float32)
    samples = np.random.default_rng(0).uniform(-1, 1, (2, 3, *e.shape)).astype(np.float32)
    restored = Restored(zeros if known else None, y, samples, 10.0)
    options = RestoreOptions(spec, EXACT)
    written = write_restored(e, options, restored, tmp_path / "some", Provenance("restored", "it", Origin("run")))
    assert [p.name for p in written] == ["some.json", "some.npz", "some.png"]
    with np.load(written[1]) as found:
        assert set(found.files) == {"samples", "measurements"} | ({"truth"} if known else set())
        np.testing.assert_array_equal(found["samples"], e.unscale(jnp.asarray(samples)))


def test_a_picture_has_a_column_for_everything():
    shades = np.zeros((2, 8, 8, 1), np.uint8)
    shades[0] = 200
    draw = partial(restorations, shades, shades[:, None], shades, shades / 255.0, levels=256, title="")
    sizes = [Image.open(io.BytesIO(draw(truth=truth))).size for truth in (None, shades)]
    assert sizes[1][0] == sizes[0][0] * 5 // 4 and sizes[0][1] == 2 * 58 + 32


def test_a_method_that_cannot_take_the_sampler_says_so():
    adaptive = SamplingOptions(partial(ss.sample_adaptive, t_end=None), 8, 8)
    options = RestoreOptions(ONE, measured.Projection(), samples=1)
    with pytest.raises(ValueError, match="of a fixed grid"):
        restore(experiment(POINTS), {}, adaptive, options, POINTS, seed=0)


class Wild(nn.Module):
    """A network whose predicted noise is a tenth off, and steep."""

    @nn.compact
    def __call__(self, x, label, *, train=False):
        return x + 0.1 * jnp.sin(30 * x)


def test_the_score_of_a_run_is_kept_in_range():
    """At high noise D(x) of a network is far off: without the clip these samples would be too."""
    e, zeros = images()
    e = dataclasses.replace(e, network=Wild())
    options = RestoreOptions(measured.Inpaint(), measured.PiGDM(), 0.05, samples=2, measured=True)
    restored = restore(e, {}, how(steps=30, batch_size=4), options, zeros, seed=0)
    assert np.abs(restored.samples).max() < 1.5


def test_real_numbers_are_kept_in_the_range_that_was_observed():
    e, own = experiment(POINTS), how()
    observed = observed_range(e.load("test"))
    np.testing.assert_allclose(observed, (-0.4 - 0.25 * 1.4, 1.0 + 0.25 * 1.4), rtol=1e-6)  # -0.4..1 and a quarter
    assert keep_in_range(e, own).transform is None, "nobody knows a range"
    kept = keep_in_range(e, own, observed).transform
    assert kept.func is ss.Clipped and kept.keywords == dict(low=observed[0], high=observed[1])
    grey = keep_in_range(images()[0], own, observed).transform
    assert grey.keywords == dict(low=-1.0, high=1.0), "grey levels have a range of their own"
    chosen = dataclasses.replace(own, transform=ss.DynamicThreshold)
    assert keep_in_range(e, chosen, observed) is chosen


def test_pigdm_of_a_learned_score_of_points_stays_in_the_range_that_was_observed():
    """Wild's predicted data are far off where the noise is high, and pigdm's gradient with them."""
    e = dataclasses.replace(experiment(POINTS), network=Wild())
    options = RestoreOptions(ONE, measured.PiGDM(), 0.01, samples=8, measured=True)
    y, solve = np.zeros((1, 1), np.float32), how(steps=30, batch_size=8)
    restored = restore(e, {}, keep_in_range(e, solve, observed_range(e.load("test"))), options, y, seed=0)
    assert np.abs(restored.samples).max() < 2.0
    free = restore(e, {}, solve, options, y, seed=0).samples
    assert np.abs(free).max() > 10.0, np.abs(free).max()


class NanFrom(nn.Module):
    """A network that returns nan where the first number is above a bound, its parameter."""

    @nn.compact
    def __call__(self, x, label, *, train=False):
        return jnp.where(x[:, :1] > self.param("bound", nn.initializers.ones, ()), jnp.nan, x)


def test_restored_samples_that_are_finite_are_not_lost_for_one_that_is_not(tmp_path):
    e = dataclasses.replace(experiment(POINTS), network=NanFrom(), levels=16)
    options = RestoreOptions(ONE, measured.Projection(), 0.1, samples=6, measured=True)
    y, solve = np.zeros((3, 1), np.float32), how(steps=3, batch_size=8)
    with pytest.raises(NonFiniteSamples, match="of 18 samples are not finite") as raised:
        restore(e, {"bound": 1.2}, solve, options, y, seed=0)
    found = raised.value.found
    assert found.finite.shape == (3, 6) and 0 < found.finite.sum() < 18
    made = Provenance("restored", "it", Origin("run"))
    with np.load(write_restored(e, options, found, tmp_path / "some", made)[1]) as arrays:
        np.testing.assert_array_equal(arrays["finite"], found.finite)
        assert arrays["samples"].dtype == np.uint8 and "psnr_of_mean" not in arrays
    with pytest.raises(NonFiniteSamples, match="18 of 18 samples are not finite"):  # and no batch is tried in vain
        restore(e, {"bound": -99.0}, solve, options, y, seed=0)
