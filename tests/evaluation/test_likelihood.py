"""Likelihoods of a perfect network are those of the closed form, with errors that mean what they say."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import score_sde as ss
from score_sde.evaluation import likelihood as likelihood_room
from score_sde.evaluation.likelihood import (
    EvalOptions,
    EvaluationError,
    evaluate_likelihood,
    provenance_of,
    spreads,
    write_likelihood,
)
from score_sde.evaluation.partial import Partial
from score_sde.evaluation.provenance import Origin, weights_digest
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
        "nats/dim", "test", N, [], 7,
    )  # fmt: skip
    assert report.nfe_max == arrays["nfe"].max() and report.nfe_mean == pytest.approx(arrays["nfe"].mean())
    assert arrays["nfe"].min() > 10 and report.images_per_second > 0
    assert f"test {report.value:.3f} +- {report.standard_error:.3f} nats/dim (150 examples" in report.line()


@pytest.mark.slow
def test_random_probes_belong_to_their_example():
    some = {"divergence": ss.Hutchinson(), "num_examples": 10, "rtol": 1e-3, "atol": 1e-3}
    e = experiment(X)
    (_, four), (_, eight) = (
        evaluate_likelihood(e, {}, options(batch_size=size, **some), step=0, seed=0) for size in (4, 8)
    )
    assert len(four["value"]) == len(eight["value"]) == 10
    np.testing.assert_allclose(four["value"], eight["value"], atol=1e-4)
    exact = -np.asarray(TARGET.log_prob(jnp.asarray(X[four["index"]]))) / 2
    assert np.abs(four["value"] - exact).max() > 0.02, "the probes are random"  # J is not diagonal


def test_what_does_not_converge_is_counted_and_left_out():
    x = X[:8].copy()
    x[3] = 1000.0  # where the network returns nan
    report, arrays = evaluate_likelihood(experiment(x), {}, options(batch_size=4), step=0, seed=0)
    assert (report.examples, report.not_converged) == (7, [3])
    assert np.flatnonzero(~arrays["converged"]).tolist() == [3] and np.isnan(arrays["value"][3])
    assert report.value == pytest.approx(np.delete(arrays["value"], 3).mean(), rel=1e-6)
    assert "1 did not converge and are left out (examples 3)" in report.line()


def test_nothing_converged_is_nan_not_an_error():
    report, _ = evaluate_likelihood(experiment(X[:4], broken=True), {}, options(batch_size=4), step=0, seed=0)
    assert np.isnan(report.value) and np.isnan(report.standard_error)
    assert (report.examples, report.not_converged) == (0, [0, 1, 2, 3])


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


def test_a_report_is_readable(tmp_path, evaluated):
    report, arrays = evaluated
    made = provenance_of(experiment(X), options(), Origin("run", step=7), seed=0)
    written = write_likelihood(report, arrays, tmp_path / "eval" / "likelihood_test", made)
    assert [p.name for p in written] == ["likelihood_test.json", "likelihood_test.npz", "likelihood_test.png"]
    found = json.loads(written[0].read_text())
    assert (found["value"], found["unit"], found["step"]) == (report.value, "nats/dim", 7)
    assert found["bound"] is None and found["spread_draws"] is None  # JSON has no nan
    with np.load(written[1], allow_pickle=False) as found:
        np.testing.assert_array_equal(found["value"], arrays["value"])
    with Image.open(written[2]) as image:
        assert image.size == (480, 240) and len(np.unique(np.asarray(image))) > 2
    table = report.table()
    assert f"{report.value:.4f} +- {report.standard_error:.4f} nats/dim" in table
    assert "bound" not in table and "pass to pass" not in table  # what was not asked for is not shown


# --- bounds, passes, round trips -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_full():
    few = options(
        divergence=ss.Hutchinson(4), passes=3, bound="continuous", bound_draws=40, round_trip=5, num_examples=60
    )
    return evaluate_likelihood(experiment(X), {}, few, step=0, seed=0)


def test_all_that_is_asked_for_is_reported(in_full):
    report, arrays = in_full
    assert report.passes == 3 and report.examples == 60
    assert {k: v.shape for k, v in arrays.items()} == dict.fromkeys(arrays, (60, 3))
    assert {"value", "bound", "probe_error", "prior_kl", "latent_norm", "nfe", "converged", "index"} == set(arrays)
    # The bound is one: above the value, but for the errors of both.
    assert report.bound > report.value - 3 * (report.bound_standard_error + report.standard_error)
    assert abs(report.bound - report.value) < 0.5
    # KL = alpha^2 |x|^2/(2 sigma^2) a dimension: alpha = 0.0066, |x|^2/2 = 0.32 on average
    chosen = X[arrays["index"][:, 0]]
    assert report.prior_kl == pytest.approx(0.5 * 0.0066**2 * np.square(chosen).sum(1).mean() / 2, rel=0.05)
    assert 0.7 < report.latent_norm < 1.4  # a chi-square of 120 degrees over 120: 1 +- 0.13
    assert report.round_trip < 1e-3  # tolerance 1e-5, both ways
    table = report.table()
    for part in ("probability flow", "pass to pass", "over probes", "bound", "prior mismatch", "latent", "round trip"):
        assert part in table


def test_the_spread_between_passes_is_that_of_the_probes(in_full):
    report, arrays = in_full
    # Continuous data: only the probes differ, 4 of them, whose error each pass estimates.
    assert report.spread_draws == pytest.approx(report.probe_error, rel=0.35)
    exact = np.asarray(TARGET.log_prob(jnp.asarray(X[arrays["index"][:, 0]]))) / 2
    assert report.spread_examples == pytest.approx(exact.std(ddof=1), rel=0.1)


def test_spreads_are_those_of_an_analysis_of_variance():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, 1)) * 2.0 + rng.normal(size=(4000, 5)) * 3.0
    mean, error, between, within = spreads(values)
    assert between == pytest.approx(2.0, rel=0.1) and within == pytest.approx(3.0, rel=0.03)
    assert error == pytest.approx(((4 + 9 / 5) / 4000) ** 0.5, rel=0.05) and abs(mean) < 4.5 * error
    assert np.isnan(spreads(values[:, :1])[3]) and np.isnan(spreads(values[:1])[1])


def test_an_evaluation_that_was_cut_off_is_taken_up_again(tmp_path, monkeypatch):
    e, few, partial_file = experiment(X), options(num_examples=12, batch_size=4, passes=2), tmp_path / "part.npz"
    whole, arrays = evaluate_likelihood(e, {}, few, step=0, seed=0)
    keep, calls = Partial.keep, []

    def stop_after_four(*args):
        keep(*args)
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Partial, "keep", stop_after_four)
    with pytest.raises(KeyboardInterrupt):
        evaluate_likelihood(e, {}, few, step=0, seed=0, partial_file=partial_file)
    monkeypatch.setattr(Partial, "keep", lambda *args: calls.append(None) or keep(*args))
    resumed, again = evaluate_likelihood(e, {}, few, step=0, seed=0, partial_file=partial_file)
    assert len(calls) == 6  # of 2 * 3 batches, 4 were there
    for name, values in arrays.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)
    assert resumed.value == whole.value and partial_file.exists()  # until the report is written
    monkeypatch.setattr(Partial, "keep", lambda *args: pytest.fail("there is nothing left to do"))
    assert evaluate_likelihood(e, {}, few, step=0, seed=0, partial_file=partial_file)[0].value == whole.value


class Stop(Exception):
    """Raised where the first batch would be computed."""


FEW = options(num_examples=4, batch_size=4)
OTHERS = {  # what is not the evaluation of FEW on X by weights of ones at step 0 with seed 0 -> what is told of it
    "seed": (dict(seed=1), "settings"),
    "step": (dict(step=5), "step"),
    "tolerance": (dict(options=options(num_examples=4, batch_size=4, rtol=1e-3)), "settings"),
    "solver": (dict(options=options(num_examples=4, batch_size=4, solver=ss.likelihood.cash_karp)), "settings"),
    "weights": (dict(params={"w": np.full(3, 2.0, np.float32)}), "weights"),
    "a weight's place": (dict(params={"v": np.ones(3, np.float32)}), "weights"),
    "data": (dict(experiment=experiment(X + np.float32(1e-6))), "data"),
    "scaling": (dict(experiment=experiment(X, data_range=(0.0, 1.0))), "settings"),
}


@pytest.mark.parametrize("case", [None, "damaged", "a folder", *OTHERS])
def test_only_its_own_part_is_taken_and_any_other_is_set_aside(case, tmp_path, monkeypatch, caplog):
    """Nothing of another evaluation is used, deleted or passed over in silence."""
    given = dict(experiment=experiment(X), params={"w": np.ones(3, np.float32)}, options=FEW, step=0, seed=0)

    def evaluate(experiment, params, options, **how):
        return evaluate_likelihood(experiment, params, options, partial_file=tmp_path / "a.partial.npz", **how)

    monkeypatch.setattr(likelihood_room, "per_device", lambda *_: stop)  # no program is compiled

    def stop(*_):
        raise Stop

    origin = Origin("", step=0, weights=weights_digest(given["params"]))
    stamp = likelihood_room.provenance_of(given["experiment"], FEW, origin, seed=0).decisive()
    if case == "a folder":
        (tmp_path / "a.partial.npz").mkdir()
    else:
        names = ("value", "converged", "nfe", "probe_error", "prior_kl", "latent_norm", "index", "number")
        Partial(tmp_path / "a.partial.npz", stamp).keep([{name: np.ones(4) for name in names}])
    if case == "damaged":
        data = bytearray((tmp_path / "a.partial.npz").read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "a.partial.npz").write_bytes(bytes(data))
    if case is None:
        assert evaluate(**given)[0].value == 1.0 and not caplog.records
        return
    change, what = OTHERS.get(case, ({}, "damaged"))
    with pytest.raises(Stop):
        evaluate(**(given | change))
    (line,) = (record.getMessage() for record in caplog.records)
    assert what in line and "set aside as a.partial.aside.npz" in line and "\n" not in line
    assert [p.name for p in tmp_path.iterdir()] == ["a.partial.aside.npz"]


@pytest.mark.slow
def test_the_discrete_bound_can_be_asked_for():
    few = options(num_examples=20, bound="discrete", bound_draws=100)
    report, _ = evaluate_likelihood(experiment(X), {}, few, step=0, seed=0)
    assert abs(report.bound - report.value) < 1.0 and np.isfinite(report.bound_standard_error)


def test_an_exact_divergence_that_takes_hours_is_refused(monkeypatch):
    monkeypatch.setattr(likelihood_room, "_EXACT_IS_QUICK", 1)
    e = experiment(X)
    likelihood_room._refuse_hours(e, {}, options(), 10)  # two dimensions take no hours
    with pytest.raises(EvaluationError, match="2 dimensions takes .* hours here .* eval.divergence=hutch"):
        likelihood_room._refuse_hours(e, {}, options(), 10, limit=0.0)
    likelihood_room._refuse_hours(e, {}, options(divergence=ss.Hutchinson()), 10, limit=0.0)


def test_the_prior_mismatch_is_as_stated():
    assert float(SDE.alpha(np.float32(1.0))) == pytest.approx(0.0066, rel=0.01)
