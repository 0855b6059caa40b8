"""The loop: what stops it, what it writes, and that the device count does not change what is learned."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import VP, predictions, times, weightings
from score_sde.data import ArraySource
from score_sde.training.experiment import Experiment
from score_sde.training.loop import TrainingError, TrainingOptions, train

RNG = np.random.default_rng(0)
DATA = RNG.standard_normal((64, 2)).astype(np.float32)
OPTIONS = dict(batch_size=8, steps=20, warmup=0, learning_rate=0.05, log_every=10, checkpoint_every=20, ema_rate=0.5)


class Affine(nn.Module):
    @nn.compact
    def __call__(self, x, label, *, train=False):
        return nn.Dense(x.shape[-1])(x)


def experiment(data=DATA, sde=None):
    return Experiment(
        sde or VP(), Affine(), predictions.Noise(), weightings.SigmaSquared(), times.Uniform(),
        load=lambda split: ArraySource(data), shape=(2,), levels=None, data_range=(-1.0, 1.0),
    )  # fmt: skip


def test_metrics_snapshots_and_the_final_checkpoint(tmp_path):
    seen = []
    state = train(
        experiment(), TrainingOptions(**OPTIONS, snapshot_every=10), tmp_path, snapshot=lambda n, s: seen.append(n)
    )
    assert seen == [0, 10, 20] and int(state.step) == 20
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert all(line["loss"] > 0 and line["skipped"] == 0 for line in lines)
    assert (tmp_path / "checkpoints" / "20").is_dir()


def test_a_finished_run_is_not_run_again(tmp_path):
    first = train(experiment(), TrainingOptions(**OPTIONS), tmp_path)
    again = train(experiment(), TrainingOptions(**OPTIONS), tmp_path)
    np.testing.assert_array_equal(jax.tree.leaves(first.params)[0], jax.tree.leaves(again.params)[0])


def test_persistent_nan_stops_the_run_with_finite_weights(tmp_path):
    class Broken(VP):
        def sigma(self, t):
            return super().sigma(t) * jnp.nan

    options = TrainingOptions(**OPTIONS, max_bad_steps=10)
    with pytest.raises(TrainingError, match="the last 10 steps up to 10 had no finite loss"):
        train(experiment(sde=Broken()), options, tmp_path)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] is None and line["skipped"] == 10


def test_the_loss_falls(tmp_path):
    options = TrainingOptions(**{**OPTIONS, "steps": 400, "log_every": 100})
    train(experiment(), options, tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # The optimum for N(0, I) under VP: eps = sigma x, with the loss E[alpha^2] = 0.2 over uniform times; zero gives 1.
    assert losses[-1] < 0.6 < losses[0] + 0.5


def test_one_device_and_four_learn_the_same(tmp_path, monkeypatch):
    from score_sde.training import loop, mesh

    assert jax.device_count() == 4  # of the host, by conftest
    four = train(experiment(), TrainingOptions(**OPTIONS), tmp_path / "four")
    single = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    monkeypatch.setattr(loop, "data_mesh", lambda: single)
    one = train(experiment(), TrainingOptions(**OPTIONS), tmp_path / "one")
    for a, b in zip(jax.tree.leaves(four.ema), jax.tree.leaves(one.ema), strict=True):
        # the mean over 4 shards is rounded otherwise: 1e-7 a step, amplified by Adam's normalisation
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert mesh.data_mesh().size == 4


@pytest.mark.parametrize(
    "change, fragment",
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"ema_rate": 1.0}, r"ema_rate must be in \[0, 1\)"),
        ({"steps_per_dispatch": 3}, "log_every must be a multiple of steps_per_dispatch = 3"),
    ],
)
def test_options_know_their_problems(change, fragment):
    import re

    assert any(re.search(fragment, problem) for problem in TrainingOptions(**change).problems())


def test_the_published_options_have_no_problem():
    assert TrainingOptions().problems() == []
