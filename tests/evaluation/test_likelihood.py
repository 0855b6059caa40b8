"""Likelihoods of a perfect network are those of the closed form, with errors that mean what they say."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.evaluation.likelihood import EvalOptions, LikelihoodReport, evaluate_likelihood, write_likelihood
from tests.evaluation.stub import SDE, TARGET, experiment

N = 150
X = np.asarray(TARGET.sample(jax.random.key(1), N))
# -log p of the marginal at T where the flow ends, N(alpha m, alpha^2 C + sigma^2), against the prior's: |log ratio| is
# at most alpha |m| |z| + O(alpha^2), alpha(T) = 0.0066, |m| = 0.4, |z| < 4: 0.01 nats or 5e-3 a dimension.
PRIOR_MISMATCH = 5e-3


def options(**changes):
    return EvalOptions(**{
        "split": "test", "batch_size": 64, "num_examples": None, "divergence": ss.ExactDivergence(), "rtol": 1e-5,
        "atol": 1e-5, **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def evaluated():
    return evaluate_likelihood(experiment(X), {}, options(), step=7, seed=0)


def test_values_are_those_of_the_closed_form_in_the_order_of_the_split(evaluated):
    _, arrays = evaluated
    exact = -np.asarray(TARGET.log_prob(jnp.asarray(X))) / 2
    assert arrays["value"].shape == (N,) and arrays["converged"].all()  # 150 = 64 + 64 + 22: the rest counts too
    np.testing.assert_allclose(arrays["value"], exact, atol=PRIOR_MISMATCH)
    assert exact.std() > 20 * PRIOR_MISMATCH


def test_the_mean_is_the_entropy_within_its_standard_error(evaluated):
    report, arrays = evaluated
    entropy = 0.5 * np.log(np.linalg.det(2 * np.pi * np.e * np.asarray(TARGET.covariance))) / 2
    # log p of 2-D Gaussian data has variance 1 about its mean: 1/2 a dimension, 0.04 for 150 examples
    assert report.standard_error == pytest.approx(0.5 / N**0.5, rel=0.3)
    assert abs(report.value - entropy) < 3 * report.standard_error + PRIOR_MISMATCH
    assert report.value == pytest.approx(arrays["value"].mean(), rel=1e-6)
    assert report.standard_error == pytest.approx(arrays["value"].std(ddof=1) / N**0.5, rel=1e-5)


def test_the_report_is_complete(evaluated):
    report, arrays = evaluated
    assert (report.unit, report.split, report.examples, report.not_converged, report.step) == (
        "nats/dim", "test", N, 0, 7,
    )  # fmt: skip
    assert report.nfe_max == arrays["nfe"].max() and report.nfe_mean == pytest.approx(arrays["nfe"].mean())
    assert arrays["nfe"].min() > 10 and report.images_per_second > 0
    assert f"test {report.value:.3f} +- {report.standard_error:.3f} nats/dim (150 examples" in report.line()


def test_random_probes_belong_to_their_example():
    some = {"divergence": ss.Hutchinson(), "num_examples": 10, "rtol": 1e-3, "atol": 1e-3}
    e = experiment(X)
    (_, four), (_, eight) = (
        evaluate_likelihood(e, {}, options(batch_size=size, **some), step=0, seed=0) for size in (4, 8)
    )
    assert len(four["value"]) == len(eight["value"]) == 10
    np.testing.assert_allclose(four["value"], eight["value"], atol=1e-4)
    exact = -np.asarray(TARGET.log_prob(jnp.asarray(X[:10]))) / 2
    assert np.abs(four["value"] - exact).max() > 0.02, "the probes are random"  # J is not diagonal


def test_what_does_not_converge_is_counted_and_left_out():
    x = X[:8].copy()
    x[3] = 1000.0  # where the network returns nan
    report, arrays = evaluate_likelihood(experiment(x), {}, options(batch_size=4), step=0, seed=0)
    assert (report.examples, report.not_converged) == (7, 1)
    assert np.flatnonzero(~arrays["converged"]).tolist() == [3] and np.isnan(arrays["value"][3])
    assert report.value == pytest.approx(np.delete(arrays["value"], 3).mean(), rel=1e-6)
    assert "1 did not converge and are left out" in report.line()


def test_nothing_converged_is_nan_not_an_error():
    report, _ = evaluate_likelihood(experiment(X[:4], broken=True), {}, options(batch_size=4), step=0, seed=0)
    assert np.isnan(report.value) and np.isnan(report.standard_error)
    assert (report.examples, report.not_converged) == (0, 4)


def test_grey_levels_are_in_bits_of_their_own_cells():
    # a Gaussian wide of the range [0, 4) is almost flat on it: -log2 p of the cell of width 1/2, whatever the noise
    target = ss.Gaussian(np.full(2, 2.0, np.float32), np.float32(30.0**2))
    levels = np.random.default_rng(0).integers(8, size=(8, 2)).astype(np.uint8)
    e = experiment(levels, target=target, levels=8, data_range=(0.0, 4.0))
    report, arrays = evaluate_likelihood(e, {}, options(batch_size=4), step=0, seed=0)
    assert report.unit == "bits/dim"
    # the latent has the target's width, sigma^2 + alpha^2 900 = 1 + 0.039: the prior's density is off by 0.02 nats
    flat = -np.log2(0.5 / (30 * (2 * np.pi) ** 0.5))
    np.testing.assert_allclose(arrays["value"], flat, atol=0.03 / np.log(2))


def test_a_report_is_readable(tmp_path):
    report = LikelihoodReport(1.5, float("nan"), "bits/dim", "test", 1, 0, 20.0, 20, 3.0, 9)
    arrays = {"value": np.array([1.5]), "converged": np.array([True])}
    written = write_likelihood(report, arrays, tmp_path / "eval" / "likelihood_test")
    assert [p.name for p in written] == ["likelihood_test.json", "likelihood_test.npz"]
    found = json.loads(written[0].read_text())
    assert (found["value"], found["standard_error"], found["unit"], found["step"]) == (1.5, None, "bits/dim", 9)
    with np.load(written[1], allow_pickle=False) as found:
        assert found["value"] == 1.5 and found["converged"].dtype == bool


def test_the_prior_mismatch_is_as_stated():
    assert float(SDE.alpha(np.float32(1.0))) == pytest.approx(0.0066, rel=0.01)
