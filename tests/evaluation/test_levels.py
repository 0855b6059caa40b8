"""What noise levels cost a perfect network is what the closed form says, within the errors stated."""

import dataclasses

import jax
import numpy as np
import pytest

import score_sde as ss
from score_sde.evaluation.levels import bound_by_level, loss_by_level
from score_sde.evaluation.pictures import write_bound_by_level, write_learning_curve, write_loss_by_level
from score_sde.evaluation.provenance import Origin
from score_sde.files import WorkdirError
from tests.evaluation.stub import SDE, TARGET, experiment

N, BINS = 1000, 8
X = np.asarray(TARGET.sample(jax.random.key(1), N))
HOW = dict(split="test", batch_size=256, seed=0, examples=N, bins=BINS)


def bins():
    """Log-SNR (bins, points) evenly in each bin, and the bins' width."""
    low, high = (float(SDE.log_snr(jax.numpy.float32(t))) for t in (SDE.t_max, SDE.t_min))
    width = (high - low) / BINS
    return low + width * (np.arange(BINS)[:, None] + (np.arange(200) + 0.5) / 200), width


def noise_error(log_snr):
    """E|eps_hat - eps|^2 per dimension of the exact score: tr Cov(eps | x_t)/d, 1 - sigma^2/(alpha^2 c + sigma^2) on
    average over the eigenvalues c of the data's covariance."""
    c = np.linalg.eigvalsh(np.asarray(TARGET.covariance, np.float64))
    snr = np.exp(log_snr)[..., None]
    return (snr * c / (snr * c + 1)).mean(axis=-1)


def check(found, name, exact):
    deviations = (found.values[name] - exact) / found.errors[name]
    assert np.abs(deviations).max() < 4.5
    assert 0.3 < deviations.std() < 2.0, "standard errors are of the right size"


def weighted(x):
    """The perfect network, trained with the weighting g^2."""
    return dataclasses.replace(experiment(x), weighting=ss.weightings.Likelihood())


@pytest.fixture(scope="module")
def losses():
    return loss_by_level(weighted(X), {}, **HOW)


def test_the_loss_of_the_exact_score_of_a_gaussian_is_the_closed_form(losses):
    log_snr, _ = bins()
    np.testing.assert_allclose(losses.log_snr, log_snr.mean(axis=1), atol=1e-4)
    exact = noise_error(log_snr).mean(axis=1)
    assert exact[0] < 0.001 and exact[-1] > 0.99
    t = SDE.inverse_log_snr(jax.numpy.float32(log_snr))
    ratio = np.square(np.asarray(SDE.diffusion(t)) / np.asarray(SDE.sigma(t)))  # with sigma^2 it were the noise's error
    check(losses, "loss", (noise_error(log_snr) * ratio).mean(axis=1))
    check(losses, "noise", np.sqrt(exact))
    data = (noise_error(log_snr) * np.exp(-log_snr)).mean(axis=1) / np.square(X).mean()
    check(losses, "data", np.sqrt(data))
    assert losses.examples == N and max(losses.errors["loss"] / losses.values["loss"]) < 0.2


def test_values_belong_to_their_example_whatever_the_batch(losses):
    few = loss_by_level(weighted(X), {}, **HOW | dict(examples=10, batch_size=4))
    same = loss_by_level(weighted(X), {}, **HOW | dict(examples=10))
    assert few.examples == same.examples == 10
    for name, values in few.values.items():
        np.testing.assert_allclose(values, same.values[name], rtol=1e-5)
        assert (np.abs(values - losses.values[name]) > 0).any()


@pytest.mark.parametrize("levels", [pytest.param(None, marks=pytest.mark.slow), 8])
def test_the_bound_by_level_is_the_closed_form_in_its_unit(levels):
    log_snr, width = bins()
    if levels is None:
        found, exact, unit = bound_by_level(experiment(X), {}, **HOW), noise_error(log_snr), 1.0
    else:  # far from the target: |eps_hat - eps|^2 = (v^2 + r d^2)/(v + 1)^2, r = SNR, v = 900 r, d^2 = E|x_0 - m|^2
        x = np.random.default_rng(0).integers(levels, size=(N, 2)).astype(np.uint8)
        target = ss.Gaussian(np.full(2, 2.0, np.float32), np.float32(900.0))
        e = experiment(x, target=target, levels=levels, data_range=(0.0, 4.0))
        found, unit = bound_by_level(e, {}, **HOW), np.log(2)
        snr, off = np.exp(log_snr), np.square((x + 0.5) / 2 - 2).mean() + 0.25 / 12  # uniform in its cell of 1/2
        exact = ((900 * snr) ** 2 + snr * off) / (900 * snr + 1) ** 2
    check(found, "bound", 0.5 * width * exact.mean(axis=1) / unit)


def test_pictures_and_values_are_readable(losses, tmp_path):
    told, values, png = write_loss_by_level(losses, tmp_path, Origin("run", step=3))
    assert png.read_bytes().startswith(b"\x89PNG") and png.name.startswith("loss_by_level_test_step00000003_all1000_")
    with np.load(values, allow_pickle=False) as found:
        np.testing.assert_array_equal(found["loss"], losses.values["loss"])
        np.testing.assert_array_equal(found["noise_standard_error"], losses.errors["noise"])
        np.testing.assert_array_equal(found["log_snr"], losses.log_snr)
    few = bound_by_level(experiment(X), {}, **HOW | dict(examples=1))  # which has no standard error
    assert np.isnan(few.errors["bound"]).all() and np.isfinite(few.values["bound"]).all()
    written = write_bound_by_level(few, tmp_path / "b", Origin("run", step=3), unit="nats/dim")
    assert [p.name for p in written] == ["b_by_level.json", "b_by_level.npz", "b_by_level.png"]
    assert set(tmp_path.iterdir()) == {told, values, png, *written}


def test_no_metrics_make_no_curve(tmp_path):
    with pytest.raises(WorkdirError, match="no metrics in"):
        write_learning_curve(tmp_path / "metrics.jsonl", tmp_path / "curve", Origin("run"))
    assert not list(tmp_path.iterdir())
