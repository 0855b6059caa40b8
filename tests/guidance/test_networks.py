"""Guidance to labels beyond exact scores: real networks, and samples of a run on several devices."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.evaluation.guided import GuidanceOptions, by_classifier
from score_sde.evaluation.samples import SamplingOptions, generate
from score_sde.models import Classifier, UNet
from score_sde.training.experiment import Classification, Experiment
from tests.guidance import exact

SDE, SHAPE = exact.SDE, (4, 4, 1)


@pytest.fixture(scope="module", autouse=True)
def strict_promotion():
    """Not here: networks promote."""


class Noise(nn.Module):
    """The exact noise prediction of the mixture."""

    def __call__(self, x, label, *, train=False):
        t = label / 999
        return -SDE.sigma(t)[:, None] * exact.mixture().score(SDE)(x, t)


class Component(nn.Module):
    """The exact log-probabilities of its components."""

    def __call__(self, x, label, *, train=False):
        return exact.Classifier()(x, label / 999)


def tasks(network, classifier, shape):
    """A run and a classifier of it; nothing is loaded."""
    shared = dict(
        sde=SDE, times=ss.times.Uniform(), load={}.__getitem__, shape=shape, levels=None, data_range=(-1.0, 1.0)
    )
    noise = dict(prediction=ss.predictions.Noise(), weighting=ss.weightings.SigmaSquared())
    return Experiment(network=network, **noise, **shared), Classification(network=classifier, num_classes=3, **shared)


def drawn(task):
    """Parameters of a task's network, none of which is 0, as some are at first."""
    shapes, rng = jax.eval_shape(task.init, jax.random.key(0)), np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes)


def test_real_networks_guide_without_compiling_again():
    run, classifier = tasks(
        UNet(nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), dropout=0.0),
        Classifier(num_classes=3, nf=8, ch_mult=(1,)),
        SHAPE,
    )
    params, weights = drawn(run), drawn(classifier)
    traces = []

    def counted(params, x, t):
        traces.append(x.shape)
        return run.score(params)(x, t)

    def samples(label, scale):
        score = jax.tree_util.Partial(counted, params)
        guided = ss.classifier_guidance(score, classifier.log_prob(weights), label, scale)
        keys = jax.random.split(jax.random.key(2), 3)
        return np.asarray(ss.sample(keys, SDE, guided, (3, *SHAPE), sampler=ss.DDIM(), steps=3).x)

    plain = samples(jnp.array([0, 1, 2]), jnp.zeros(3))
    compiled = len(traces)
    some = samples(jnp.array([0, 1, 2]), jnp.array([0.0, 1.0, 5.0]))
    others = samples(jnp.array([2, 2, 0]), jnp.array([1.0, 1.0, 5.0]))
    assert len(traces) == compiled and np.isfinite(some).all() and np.isfinite(others).all()
    np.testing.assert_allclose(some[0], plain[0], atol=1e-5)  # scale 0
    assert np.abs(some[1:] - plain[1:]).max((1, 2, 3)).min() > 1e-3 < np.abs(others[2] - some[2]).max()


@pytest.mark.skipif(jax.device_count() == 1, reason="one device")
def test_guided_samples_of_a_run_are_the_same_on_one_device_and_on_several():
    run, classifier = tasks(Noise(), Component(), (2,))
    solve = partial(ss.sample, sampler=ss.Ancestral(), steps=20)
    how = GuidanceOptions(by_classifier, label=1, scale=2.0, interval=(-4.0, 3.0))
    options = SamplingOptions(solve, 11, 2 * jax.device_count(), steps=20, guidance=how)
    many = generate(run, {}, options, seed=3, progress=False, guide=(classifier, {})).x

    interval = ss.NoiseInterval(SDE, -4.0, 3.0)
    guided = ss.classifier_guidance(exact.mixture().score(SDE), exact.Classifier(), 1, 2.0, interval=interval)
    one = solve(jax.random.key(3), SDE, guided, (11, 2)).x  # sample i from fold_in(key, i)
    assert len(one.devices()) == 1
    np.testing.assert_allclose(many, one, atol=1e-4)
