"""The score that a run samples with: its own, of one class, or guided by a classifier or an earlier state."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.guidance import (
    NoiseInterval,
    autoguidance,
    classifier_free_guidance,
    classifier_guidance,
    network_evaluations,
)
from score_sde.sdes import Score
from score_sde.training.experiment import Classification, Experiment


@dataclass(frozen=True)
class GuidanceOptions:
    """How samples are steered.

    guide: one of the functions below, or None for the network's own score.
    label: the class asked for, or None.  A class-conditional network without a guide is told it.
    scale: of the guidance; 0 leaves it out.
    interval: lowest and highest log-SNR at which it acts, or None for all.
    workdir: of the classifier, or of the weaker run (its own, unless given); step: of its checkpoint, the newest
    unless given.
    """

    guide: Callable[..., Score] | None = None
    label: int | None = None
    scale: float = 1.0
    interval: tuple[float, float] | None = None
    workdir: str | None = None
    step: int | None = None

    def score(self, experiment: Experiment, params: Any, other: tuple | None = None) -> Score:
        """The score to sample with; `other` is (task, parameters) of the classifier or the weaker state."""
        if self.guide is None:
            return _of_label(experiment, params, self.label)
        low, high = self.interval or (None, None)
        interval = None if self.interval is None else NoiseInterval(experiment.sde, low, high)
        return self.guide(experiment, params, other, label=self.label, scale=self.scale, interval=interval)


def by_label(experiment: Experiment, params: Any, other: None, *, label: int, **how: Any) -> Score:
    """Classifier-free: s(x, t) + scale (s(x, t, label) - s(x, t)), of a class-conditional network."""
    return classifier_free_guidance(
        experiment.conditional_score(params), label, num_classes=experiment.num_classes, **how
    )  # fmt: skip


def by_classifier(experiment: Experiment, params: Any, other: tuple, *, label: int, **how: Any) -> Score:
    """s(x, t) + scale grad log p_t(label | x), by a classifier of noised data; needs guidance.workdir=DIR."""
    classification, weights = other
    return classifier_guidance(experiment.score(params), classification.log_prob(weights), label, **how)


def by_weaker(experiment: Experiment, params: Any, other: tuple, *, label: int | None, **how: Any) -> Score:
    """Autoguidance: away from the errors of an earlier state of the run; needs guidance.step or guidance.workdir."""
    return autoguidance(_of_label(experiment, params, label), _of_label(*other, label), **how)


def weaker_problems(experiment: Experiment, weaker: Any) -> list[str]:
    """Why a run cannot be the weaker one of another."""
    if not isinstance(weaker, Experiment):
        return ["it holds a classifier, not a score network"]
    found = _noise_problems(experiment, weaker)
    if weaker.shape != experiment.shape or weaker.num_classes != experiment.num_classes:
        found.append(f"it is for data of shape {weaker.shape} in {weaker.num_classes} classes")
    return found


def _of_label(experiment: Experiment, params: Any, label: int | None) -> Score:
    if label is None:
        return experiment.score(params)
    return by_label(experiment, params, None, label=label, scale=1.0, interval=None)


def classifier_problems(experiment: Experiment, classification: Any, label: int) -> list[str]:
    """Why a run cannot guide another one to a label."""
    if not isinstance(classification, Classification):
        return ["it holds a score network, not a classifier"]
    found = []
    if classification.shape != experiment.shape:
        found.append(f"it is for data of shape {classification.shape}, the samples have {experiment.shape}")
    if label >= classification.num_classes:
        found.append(f"it has classes 0..{classification.num_classes - 1}, sampling.label is {label}")
    return found + _noise_problems(experiment, classification)


def _noise_problems(experiment: Experiment, other: Experiment | Classification) -> list[str]:
    found = []
    if not _same(other.sde, experiment.sde):
        found.append(f"it was trained on the noise of {other.sde}, the samples are of {experiment.sde}")
    if (other.levels, other.data_range) != (experiment.levels, experiment.data_range):
        found.append("its data are scaled otherwise (data.range, grey levels)")
    return found


def _same(a: Any, b: Any) -> bool:
    one, two = jax.tree.flatten(a), jax.tree.flatten(b)
    return one[1] == two[1] and all(np.array_equal(p, q) for p, q in zip(one[0], two[0], strict=True))


def most_evaluations(score: Score, times: Any) -> int:
    """The most networks that a call of a score evaluates at any of some times."""
    t = jnp.asarray(times)
    return int(np.max(np.asarray(jax.vmap(lambda t: network_evaluations(score, t[None])[0])(t))))
