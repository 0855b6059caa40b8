"""What a run samples with: which score the options stand for, and what cannot guide it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.evaluation.guided import (
    GuidanceOptions,
    by_classifier,
    by_label,
    by_weaker,
    classifier_problems,
    most_evaluations,
    weaker_problems,
)
from tests.evaluation.test_accuracy import classification
from tests.training.test_experiment import experiment

RUN, CLASSIFIER = experiment(0.0), classification()
PARAMS, WEIGHTS = RUN.init(jax.random.key(0)), CLASSIFIER.init(jax.random.key(0))
X, T = jnp.array([[0.3], [-1.0]]), jnp.array([0.2, 0.7])


def score_of(**options):
    other = {by_classifier: (CLASSIFIER, WEIGHTS), by_weaker: (RUN, {"one": jnp.asarray(0.5)})}
    return GuidanceOptions(**options).score(RUN, PARAMS, other.get(options.get("guide")))


def said(data):
    """The score of the network's prediction `data`, of every sample."""
    return (RUN.sde.alpha(T)[:, None] * data - X) / RUN.sde.sigma(T)[:, None] ** 2


@pytest.mark.parametrize(
    "options, data",
    [
        (dict(), 3.0),  # no class
        (dict(label=1), 1.0),
        (dict(guide=by_label, label=1, scale=2.5), 3 + 2.5 * (1 - 3)),
        (dict(guide=by_weaker, label=2, scale=2.0), 1 + 2 * (2 - 1)),  # the weaker says half
        (dict(guide=by_weaker, scale=0.0), 1.5),
        (dict(guide=by_label, label=1, scale=2.5, interval=(90.0, 99.0)), 1.0),  # nowhere: the class as it is
    ],
)
def test_the_options_stand_for_their_score(options, data):
    np.testing.assert_allclose(score_of(**options)(X, T), said(data), rtol=1e-4)


def test_a_classifier_s_gradient_is_added():
    guided = score_of(guide=by_classifier, label=1, scale=2.0)
    gradient = jax.grad(lambda x: CLASSIFIER.log_prob(WEIGHTS)(x, T)[:, 1].sum())(X)
    np.testing.assert_allclose(guided(X, T), said(3.0) + 2 * gradient, rtol=1e-4)
    assert most_evaluations(guided, T) == 3 and most_evaluations(score_of(), T) == 1


def test_what_does_not_fit_is_told():
    assert classifier_problems(RUN, CLASSIFIER, 1) == [] == weaker_problems(RUN, RUN)
    other = dataclasses.replace(CLASSIFIER, sde=ss.VP(0.1, 10.0), shape=(2,), data_range=(0.0, 1.0))
    told = classifier_problems(RUN, other, 2)
    assert [any(word in line for line in told) for word in ("shape", "classes 0..1", "noise", "data.range")] == [
        True
    ] * 4
    assert "not a classifier" in classifier_problems(RUN, RUN, 0)[0]
    assert "not a score network" in weaker_problems(RUN, CLASSIFIER)[0]
    assert weaker_problems(RUN, dataclasses.replace(RUN, num_classes=4))
