"""Guidance by class labels, and by a weaker network.

    classifier        s(x, t) + w grad log p_t(c | x)                    (Dhariwal & Nichol 2021, section 4)
    classifier-free   s(x, t) + w (s(x, t, c) - s(x, t))                 (Ho & Salimans 2022; their scale is w - 1)
    autoguidance      s_weak(x, t) + w (s(x, t) - s_weak(x, t))          (Karras et al. 2024)

At w = 1 the first two are the score of the conditional law, if the classifier, or the conditional network, is exact.
At no other scale does any of them sample the tilted law proportional to p(x) p(c | x)^w: the tilted law does not
diffuse into p_t(x) p_t(c | x)^w, so the ODE and the SDE miss it, each in its own way: see
tests/guidance/test_particles.py.
`sample_smc` samples it.

Scales are numbers, one for each sample (B,), or functions of time, `lambda t: f(sde.log_snr(t))` for a schedule in
noise level; with `interval` they act within a range of noise levels and the rest is sampled without guidance.
Networks are evaluated only where a scale asks for them: at w = 0 and 1 (see each) one evaluation runs, not two.  Under
differentiation both run, since the derivative in w asks for both.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from score_sde import derivatives
from score_sde.arrays import PerSample, rows
from score_sde.guidance.guided import (
    Guided,
    NoiseInterval,
    Scale,
    State,
    Tilted,
    Times,
    anywhere,
    combine,
    network_evaluations,
    numbers,
    scale_at,
    scales,
    score_of,
)
from score_sde.predictions import Network, PredictedScore, Prediction
from score_sde.sdes import AffineSDE, Score, check_score, evaluate
from score_sde.trees import Frozen, Number, is_concrete

LabelledScore = Callable[[Array, Array, Array], Array]  # score(x, t, label): label (B,) integers


class ConditionalScore(Frozen):
    """`score(x, t, label)` of a class-conditional network, `apply(c_in(t) x, noise label (B,), class label (B,)) -> F`.

    As `Network` and `PredictedScore`; `jax.tree_util.Partial(fn, params)` keeps weights traced.
    """

    apply: Callable
    sde: AffineSDE
    prediction: Prediction

    def __call__(self, x: State, t: Times, label: Int[Array, " b"]) -> State:
        network = Network(lambda x, noise: self.apply(x, noise, label), self.sde, self.prediction)
        return PredictedScore(network, self.sde, self.prediction)(x, t)


class ClassifierGuidance(Tilted):
    """See `classifier_guidance`."""

    classifier: Callable
    label: Array | PerSample
    scale: Any
    interval: NoiseInterval | None

    def scales(self, x: State, t: Times) -> Times:
        return scale_at(self.scale, self.interval, 0.0, x, t)

    def log_likelihood(self, x: State, t: Times) -> Float[Array, " b"]:
        """The scaled log-probability of the label, in float32 at least."""
        logits = self.classifier(x, t)
        log_probs = jax.nn.log_softmax(logits.astype(_at_least_float32(logits)))
        label = rows(self.label, len(x))
        # outside of the classes: nan, which a solve reports
        return self.scales(x, t) * jnp.take_along_axis(log_probs, label[:, None], 1, mode="fill")[:, 0].astype(x.dtype)

    def gradient(self, x: State, t: Times) -> tuple[Float[Array, " b"], State]:
        dtype = _at_least_float32(x)

        def total(wide):
            value = self.log_likelihood(wide, t.astype(dtype))
            return jnp.sum(value), value

        gradient, value = jax.grad(total, has_aux=True)(x.astype(dtype))
        return value.astype(x.dtype), gradient.astype(x.dtype)

    def parts(self, x, t):
        def nothing():
            return jnp.zeros(len(x), x.dtype), jnp.zeros_like(x)

        guided = anywhere(self.scales(x, t) != 0)
        return evaluate(self.score, x, t), *derivatives.cond(guided, lambda: self.gradient(x, t), nothing)

    def evaluations(self, t):
        guided = jnp.any(self.scales(t, t) != 0)
        return super().evaluations(t) + jnp.where(guided, 2, 0)

    def check_inputs(self, x):
        super().check_inputs(x)
        t = jax.ShapeDtypeStruct(x.shape[:1], x.dtype)
        try:
            out = jax.eval_shape(self.classifier, x, t)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the classifier does not take x of shape {x.shape}, the score network's: {error}"
            ) from error
        if len(getattr(out, "shape", ())) != 2 or out.shape[0] != x.shape[0]:
            raise ValueError(
                f"expected classifier_log_prob(x, t) of shape ({x.shape[0]}, classes), "
                f"got {getattr(out, 'shape', type(out).__name__)}. Return log-probabilities for every class."
            )
        check_label_range(self.label, out.shape[1])


def classifier_guidance(
    score: Score,
    classifier_log_prob: Callable[[Array, Array], Array],
    label: Any,
    scale: Scale = 1.0,
    *,
    interval: NoiseInterval | None = None,
) -> ClassifierGuidance:
    """s(x, t) + scale grad log p_t(label | x), by a classifier of noised data.

    Args:
        score: `score(x, t)` of the law without labels.
        classifier_log_prob: `f(x, t) -> (B, classes)`, log-probabilities of the classes of x at times t (normalised
            again, so logits will do).  Its gradient is taken in float32 or better.
        label: an integer, or one for each sample (B,).
        scale: a number, one for each sample (B,), or a function of the times.  Where all are 0 the classifier is not
            evaluated.
        interval: the noise levels at which guidance acts (scale 0 outside).

    Returns:
        A score.  Labels and scales are traced: others do not compile again.

    Raises:
        ValueError: a label that is negative or no integer, a scale that is not finite; before a solve, a label that the
            classifier has no class for, or a classifier of another shape.

    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> sde, target = ss.VP(), ss.GaussianMixture(means=jnp.array([[-1.0], [1.0]]), stds=jnp.array([0.2, 0.2]))
    >>> def log_prob(x, t):  # exact: the posterior of the component
    ...     alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    ...     return jax.nn.log_softmax(-0.5 * (x - alpha * jnp.array([-1.0, 1.0]))**2 / (0.04 * alpha**2 + sigma**2))
    >>> guided = ss.classifier_guidance(target.score(sde), log_prob, jnp.array([0, 1, 1]))
    >>> x = ss.sample(jax.random.key(0), sde, guided, (3, 1), sampler=ss.DPMSolverPP(2), steps=20).x
    >>> jnp.sign(x[:, 0]).tolist()
    [-1.0, 1.0, 1.0]
    """
    return ClassifierGuidance(score, classifier_log_prob, labels(label), scales(scale), interval)


class ClassifierFreeGuidance(Guided):
    """See `classifier_free_guidance`."""

    label: Array | PerSample
    scale: Any
    null: Array
    interval: NoiseInterval | None

    def __call__(self, x: State, t: Times) -> State:
        scale, label, null = self.scales(x, t), rows(self.label, len(x)), rows(self.null, len(x))

        def one():
            return evaluate(lambda x, t: self.score(x, t, jnp.where(scale == 0, null, label)), x, t)

        def both():  # neighbours, so that a batch split over devices stays where it is
            asked = jnp.stack([null, label], 1).reshape(-1)
            doubled, times = jnp.repeat(x, 2, axis=0), jnp.repeat(t, 2)
            s = evaluate(lambda x, t: self.score(x, t, asked), doubled, times).reshape(len(x), 2, *x.shape[1:])
            return combine(scale, s[:, 0], s[:, 1])

        return derivatives.cond(anywhere((scale != 0) & (scale != 1)), both, one)

    def scales(self, x: State, t: Times) -> Times:
        return scale_at(self.scale, self.interval, 1.0, x, t)

    def evaluations(self, t):
        scale = self.scales(t, t)
        return super().evaluations(t) * jnp.where(jnp.any((scale != 0) & (scale != 1)), 2, 1)


def classifier_free_guidance(
    score: LabelledScore,
    label: Any,
    scale: Scale = 1.0,
    *,
    num_classes: int,
    interval: NoiseInterval | None = None,
) -> ClassifierFreeGuidance:
    """s(x, t, null) + scale (s(x, t, label) - s(x, t, null)), by one network that has seen data without labels.

    Args:
        score: `score(x, t, label)`, label (B,) integers, of which `num_classes` stands for none (see
            `ConditionalScore`).
        label: an integer in 0..num_classes-1, or one for each sample (B,).
        scale: a number, one for each sample (B,), or a function of the times.  1 is the conditional score, 0 the one
            without labels: where each sample has one of these the network sees x once, elsewhere one batch of 2 B.
        num_classes: of the network.
        interval: the noise levels at which guidance acts (scale 1 outside).

    Returns:
        A score.  Labels and scales are traced: others do not compile again.

    Raises:
        ValueError: a label out of range or no integer, a scale that is not finite.
    """
    guided = ClassifierFreeGuidance(score, labels(label), scales(scale), jnp.asarray(num_classes), interval)
    check_label_range(guided.label, num_classes)
    return guided


class AutoGuidance(Guided):
    """See `autoguidance`."""

    weak: Score
    scale: Any
    interval: NoiseInterval | None

    def __call__(self, x: State, t: Times) -> State:
        scale = self.scales(x, t)
        weak, strong = score_of(self.weak, x, t), score_of(self.score, x, t)
        choice = self.choice(scale)
        return derivatives.cond(
            choice == 0,
            lambda: combine(scale, weak(), strong()),
            lambda: jax.lax.cond(choice == 1, weak, strong),
        )

    def scales(self, x: State, t: Times) -> Times:
        return scale_at(self.scale, self.interval, 1.0, x, t)

    def choice(self, scale: Times) -> Array:
        """0: both networks; 1: the weak one alone; 2: the other alone."""
        one = jnp.where(anywhere(scale != 1), 0, 2)
        return jnp.where(anywhere(scale != 0), one, 1)

    def evaluations(self, t):
        strong, weak = network_evaluations(self.score, t), network_evaluations(self.weak, t)
        return jax.lax.select_n(self.choice(self.scales(t, t)), strong + weak, weak, strong)

    def check_inputs(self, x):
        super().check_inputs(x)
        check_score(self.weak, x.shape, x.dtype)


def autoguidance(
    score: Score, weak: Score, scale: Scale = 1.0, *, interval: NoiseInterval | None = None
) -> AutoGuidance:
    """s_weak(x, t) + scale (s(x, t) - s_weak(x, t)): away from the errors of a weaker network of the same data.

    Args:
        score: `score(x, t)`.
        weak: `score(x, t)` of an earlier state of training, or of a smaller network.
        scale: a number, one for each sample (B,), or a function of the times.  Where all are 1 (or 0) one network runs.
        interval: the noise levels at which guidance acts (scale 1 outside).

    Raises:
        ValueError: a scale that is not finite.
    """
    return AutoGuidance(score, weak, scales(scale), interval)


def labels(label: Any) -> Array | PerSample:
    """A class, or one for each sample, as guided scores keep it.

    Raises:
        ValueError: a label that is no integer, or negative.
    """
    if not jnp.issubdtype(jnp.asarray(label).dtype, jnp.integer):
        raise ValueError(f"expected labels to be integers, got {jnp.asarray(label).dtype}.")
    label = numbers("label", label)
    check_label_range(label, None)
    return label


def check_label_range(label: Array | PerSample, classes: Number | None) -> None:
    """Raise ValueError where a concrete label is not in 0..classes-1."""
    if is_concrete(label):
        values = np.asarray(jax.tree.leaves(label)[0])
        if (values < 0).any() or (classes is not None and (values >= classes).any()):
            wanted = "at least 0" if classes is None else f"in 0..{classes - 1}"
            bad = values[(values < 0) | (values >= (np.inf if classes is None else classes))]
            raise ValueError(f"expected labels {wanted}, got {bad.ravel()[0]}. Ask for a class of the data.")


def _at_least_float32(x: Array) -> Any:
    return x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32
